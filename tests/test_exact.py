import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.exact import Cut, Totals, exact_sum, keys, rounded, spread

finite = st.floats(-1e300, 1e300)
few = st.sampled_from([0.0, -0.0, 0.5, 1.0, -2.0])
names = st.text("aé\0-", max_size=20)


@given(st.lists(st.lists(finite, max_size=20), min_size=1, max_size=5))
def test_sums_of_pieces_add_up_to_the_exactly_rounded_sum(pieces):
    total = sum(exact_sum(np.array(piece, float)) for piece in pieces)
    assert rounded(total) == math.fsum(x for piece in pieces for x in piece)


def test_subnormal_and_distant_numbers_lose_no_bit():
    x = np.array([1e300, 5e-324, -1e300, 5e-324])
    assert rounded(exact_sum(x)) == 1e-323


def test_what_is_not_finite_is_refused():
    with pytest.raises(OverflowError, match="not finite"):
        exact_sum(np.array([1.0, np.inf]))


@given(st.lists(st.lists(finite, max_size=20), min_size=1, max_size=5))
def test_totals_of_pieces_are_those_of_the_whole(pieces):
    parts = [Totals.of(np.array(piece, float)) for piece in pieces]
    whole = Totals.of(np.array([x for piece in pieces for x in piece], float))
    assert sum(parts[1:], parts[0]) == whole


@given(st.lists(st.one_of(finite, few), max_size=30))
def test_keys_are_in_the_order_of_the_best_first(values):
    x = np.array(values, float)
    order = np.argsort(keys(x), kind="stable")
    assert order.tolist() == sorted(range(len(x)), key=lambda i: -x[i])


@given(
    st.lists(st.tuples(st.one_of(finite, few), names, st.integers(0, 9)), max_size=40, unique_by=lambda r: r[1]),
    st.integers(0, 200),
    st.integers(1, 4),
    st.integers(0, 5),
)  # fmt: skip
def test_a_cut_keeps_the_longest_prefix_of_the_order_that_fits(rows, budget, pieces, enough):
    kept, left = set(), budget
    for value, name, weight in sorted(rows, key=lambda row: (-row[0], row[1])):
        if weight > left:
            break
        left -= weight
        kept.add((value, name))
    parts = [rows[i::pieces] for i in range(pieces)]
    columns = [
        (
            keys(np.array([value for value, _, _ in part], float)),
            pa.array(["before", *(name for _, name, _ in part)], pa.string()).slice(1),
            np.array([weight for _, _, weight in part], np.int64),
        )
        for part in parts
    ]
    cut, at = Cut(budget), len(rows)
    while not cut.all and at > enough and len(cut.words) < 7:
        sums = cut.nothing()
        for bins, *found in (cut.histogram(*c) for c in columns):
            for total, here in zip(sums, found, strict=True):
                total[bins] += here
        cut, at = cut.narrowed(*sums)
    if not cut.all:
        cut = cut.decided(row for c in columns for row in cut.undecided(*c))
    found = {
        (value, name)
        for part, (key, ids, _) in zip(parts, columns, strict=True)
        for (value, name, _), inside in zip(part, cut.within(key, ids), strict=True)
        if inside
    }
    assert found == kept


def test_the_same_id_goes_to_the_same_part_and_parts_are_of_about_one_size():
    ids = [f"{'category' * (i % 9)}-{i * 7919 % 2**31:032x}-{i % 700}" for i in range(20_000)]
    parts = spread(pa.array(ids), 10)
    assert np.array_equal(spread(pa.array(["", *ids[500:]]).slice(1), 10), parts[500:])
    assert parts[:20].tolist() == [spread(pa.array([name]), 10)[0] for name in ids[:20]]
    last = spread(pa.array([f"{'long' * 30}-{i}" for i in range(1000)]), 10)
    assert np.bincount(last, minlength=10).min() > 50
    assert np.bincount(parts, minlength=10).min() > 1800
