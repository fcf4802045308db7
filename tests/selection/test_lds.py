import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import longattn as la
from longattn.selection.lds import moments

finite = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(st.tuples(finite, finite), min_size=2, max_size=40), st.floats(0, 3))
def test_lds_is_equation_8(pairs, alpha):
    ds, variance = np.array(pairs).T

    def z(x):
        return (x - x.mean()) / x.std() if x.std() > 1e-12 else np.zeros_like(x)

    if min(ds.std(), variance.std()) < 1e-9:
        return
    np.testing.assert_allclose(
        la.long_distance_scores(ds, variance, alpha), z(ds) + alpha * z(-variance), atol=1e-6
    )


def test_minmax_scales_each_to_the_unit_interval():
    lds = la.long_distance_scores([1, 2, 3], [4, 6, 5], alpha=0.5, standardize="minmax")
    np.testing.assert_allclose(lds, [0 + 0.5, 0.5 + 0, 1 + 0.25])


def test_constant_columns_count_as_zero():
    np.testing.assert_array_equal(la.long_distance_scores([0.1] * 3, [0.3] * 3), [0, 0, 0])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (([[1.0]], [[1.0]]), "1-D"),
        (([1.0, 2.0], [1.0]), "of one length"),
        (([1.0, math.nan], [1.0, 2.0]), "finite"),
        (([1.0, 2.0], [1.0, math.nan]), "finite"),
        (([1.0, 2.0], [math.inf, 1.0]), "finite"),
        (([-math.inf, 2.0], [1.0, 1.0]), "finite"),
        (([1.0, 2.0], [1.0, 2.0], 0.5, "softmax"), "zscore or minmax"),
    ],
)
def test_what_is_no_score_is_refused(args, said):
    with pytest.raises(ValueError, match=said):
        la.long_distance_scores(*args)


@given(st.lists(finite, min_size=1, max_size=60), st.randoms())
def test_moments_are_exact_and_independent_of_order(values, random):
    x = np.array(values)
    exact = sum(map(Fraction, values)) / len(values)
    assert moments(x)[0] == pytest.approx(float(exact), rel=1e-15, abs=1e-300)
    random.shuffle(values)
    assert moments(np.array(values)) == moments(x)
