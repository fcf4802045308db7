import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longattn.selection import lds
from longattn.selection.database import database
from longattn.selection.exact_sums import moments
from tests.examples import examples

finite = st.one_of(
    st.floats(-1e150, 1e150),
    st.floats(-1, 1),
    st.sampled_from([5e-324, -5e-324, 2.2250738585072014e-308, -0.0, 1.0, 1e150]),
)


@pytest.fixture(scope="module")
def connection():
    with database(256 * 10**6) as found:
        yield found


@settings(max_examples=examples(25))
@given(st.lists(st.tuples(st.integers(0, 1), finite), min_size=1, max_size=30), st.randoms())
@example([(0, 1e150), (0, 5e-324), (0, -1e150), (0, 5e-324)], None)
@example([(0, 0.1)] * 7, None)
def test_moments_are_those_of_exactly_rounded_sums_in_any_order(connection, rows, random):
    if random:
        random.shuffle(rows)
    connection.register(
        "drawn", pa.table({"category": [c for c, _ in rows], "x": [x for _, x in rows]})
    )
    found, halves, below = moments(connection, "drawn", ["x", "x / 2", "-x"])
    for category in {c for c, _ in rows}:
        x = np.array([value for of, value in rows if of == category])
        got = found[category]
        assert (got.mean, got.deviation) == lds.moments(x)
        assert (got.rows, got.low, got.high) == (len(x), x.min(), x.max())
        assert (halves[category].mean, halves[category].deviation) == lds.moments(x / 2)
        assert (below[category].mean, below[category].high) == (-got.mean, -got.low)


def test_subnormal_and_huge_numbers_lose_no_bit(connection):
    x = [1e150, 1e-322, -1e150, 5e-324]
    connection.register("drawn", pa.table({"category": [0] * 4, "x": x}))
    assert moments(connection, "drawn", ["x"])[0][0].mean == math.fsum(x) / 4 != 0


@pytest.mark.parametrize("x", [[1e308, 1e308, 1e308], [1e160, -1e160]])
def test_what_no_double_holds_is_refused(connection, x):
    connection.register("drawn", pa.table({"category": [0] * len(x), "x": x}))
    with pytest.raises(OverflowError):
        moments(connection, "drawn", ["x"])


def test_no_rows_have_no_moments(connection):
    empty = pa.table({"category": pa.array([], pa.int32()), "x": pa.array([], pa.float64())})
    connection.register("drawn", empty)
    assert moments(connection, "drawn", ["x"]) == [{}]
