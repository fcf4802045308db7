import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longattn.config import Keep
from longattn.selection.reference import budget_of, within


@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.one_of(
        st.builds(Keep, fraction=st.floats(0.01, 1)),
        st.builds(Keep, count=st.integers(1, 40)),
        st.builds(Keep, tokens=st.integers(1, 400)),
        st.builds(Keep, tokens=st.integers(1, 30).map(lambda n: 10 * n)),  # met exactly
    ),
)
def test_the_kept_are_the_best_ties_by_id_and_as_many_as_asked(values, keep):
    lds = np.array(values, float)
    n = len(lds)
    best = within(lds, np.full(n, 10), keep, budget_of(keep, n))
    ranked = sorted(range(n), key=lambda i: (-lds[i], i))
    assert best.tolist() == ranked[: len(best)]
    if keep.count:
        assert len(best) == min(n, keep.count)
    elif keep.tokens:
        assert len(best) == min(n, keep.tokens // 10)
    else:
        assert abs(len(best) - keep.fraction * n) <= 0.5 + 1e-9


def test_a_budget_that_is_met_exactly_is_spent():
    lds, tokens = np.array([1.0, 3.0, 2.0]), np.array([5, 5, 7])
    assert within(lds, tokens, Keep(tokens=12), 12).tolist() == [1, 2]
    assert within(lds, tokens, Keep(tokens=11), 11).tolist() == [1]
    assert within(lds, tokens, Keep(tokens=17), 17).tolist() == [1, 2, 0]
