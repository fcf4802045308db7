import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.config import Keep, Select
from longattn.selection.reference import budget_of, selected, within
from tests.labelled import labelled_table


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


def rows(ds, category="a", **columns):
    """Windows a-0, a-1, ... with these DS and equal variance, each of a document of its own."""
    ids = [f"{category}-{i}" for i in range(len(ds))]
    table = labelled_table(category, ids, ds, [1.0] * len(ds))
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(
            table.column_names.index(name), field, pa.array(values, field.type)
        )
    return table


def kept(table, columns=None, of_heads=None, **rules):
    """Numbers of the windows that are kept, in order; all that may be, unless `keep` says less."""
    rules = {"keep": {"fraction": 1}, **rules}
    return sorted(
        int(i[-1]) for i in selected(table, Select.check(rules, "select"), columns, of_heads)
    )


UP = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("bound", "inside"),
    [
        ({"min": 0.2}, [2, 3, 4, 5]),
        ({"max": 0.2}, [0, 1, 2]),
        ({"min": 0.1, "max": 0.3}, [1, 2, 3]),
        ({"quantiles": [0, 0.5]}, [0, 1, 2]),
        ({"quantiles": [0.5, 1]}, [3, 4, 5]),
        ({"quantiles": [0.25, 0.75]}, [2, 3, 4]),  # 1.5 and 4.5 are rounded up
        ({"quantiles": [0.2, 0.9], "min": 0.3}, [3, 4]),
    ],
)
def test_bounds_hold_their_ends_and_quantiles_are_ranks(bound, inside):
    assert kept(rows(UP), where=[{"column": "ds", **bound}]) == inside


def test_equal_values_are_parted_by_id_and_what_has_no_value_is_out():
    table = rows([0.5] * 6)
    half = {"column": "ds", "quantiles": [0, 0.5]}
    assert kept(table.take([5, 3, 1, 0, 2, 4]), where=[half]) == [0, 1, 2]
    gap = [0.1, None, 0.3, None, 0.5, 0.6]
    assert kept(table, {"gap": gap}, where=[{"column": "gap", "min": 0}]) == [0, 2, 4, 5]
    assert kept(table, {"gap": gap}, where=[{"column": "gap", "quantiles": [0.5, 1]}]) == [4, 5]
    assert kept(table, {"gap": gap}, rank_by="gap") == [0, 2, 4, 5]
    assert kept(table, {"gap": gap}, rank_by="gap", keep={"count": 1}) == [5]


def test_every_bound_is_to_hold_and_a_category_may_have_its_own():
    table = pa.concat_tables([rows(UP), rows(UP, "b")])
    where = [{"column": "ds", "min": 0.2}, {"column": "recurrence", "max": 0.4}]
    assert kept(table, where=where) == [2, 2, 3, 3, 4, 4]
    own = {"b": {"where": [], "keep": {"count": 1}}}
    assert kept(table, where=where, categories=own) == [2, 3, 4, 5]


def test_a_share_counts_windows_that_bounds_take_out_and_of_copies_the_first():
    where = [{"column": "ds", "max": 0.35}]
    assert kept(rows(UP), where=where, keep={"fraction": 0.5}) == [1, 2, 3]
    copies = pa.concat_tables([rows(UP[:3]), rows([0.9, 0.8, 0.7])])
    assert kept(copies, where=[{"column": "ds", "max": 0.5}]) == [0, 1, 2]
    assert kept(copies, keep={"fraction": 0.5}) == [1, 2]  # of three windows


@pytest.mark.parametrize("most", [1, 2])
def test_the_best_windows_of_each_document_are_taken(most):
    table = rows([0.1, 0.5, 0.3, 0.3, 0.2, 0.4], document_id=["x", "x", "x", "y", None, None])
    # Without a document_id each is a document of its own.
    assert kept(table, per_document=most) == {1: [1, 3, 4, 5], 2: [1, 2, 3, 4, 5]}[most]


def test_windows_that_share_tokens_count_for_less_where_that_is_asked():
    spans = {"token_start": [0, 3, 0, 50], "token_stop": [5, 8, 5, 55]}
    table = rows([1.0, 0.9, 0.8, 0.0], document_id=["x", "x", "y", "z"], **spans)
    for overlap, best in (("allow", [0, 1]), ("prefer_distinct", [0, 2])):
        assert kept(table, overlap=overlap, keep={"count": 2}) == best
        assert kept(table, overlap=overlap, keep={"tokens": 10}) == best
    pairs = {"recurrence_pairs": [1.0, 0.9, 0.8, 0.0]}
    table = rows([0.5] * 4, document_id=["x", "x", "y", "z"], **spans, **pairs)
    assert kept(
        table, overlap="prefer_distinct", rank_by="recurrence_pairs", keep={"count": 2}
    ) == [0, 2]


def test_lds_may_be_of_some_heads_and_of_deeper_ones():
    heads = [[0.1, 0.9], [0.2, 0.5], [0.3, 0.1]]
    table = rows([0.5] * 3, ds_heads=heads, variance_heads=[[1.0, 1.0]] * 3)
    best = {"keep": {"count": 1}}
    assert [kept(table, heads=of, **best) for of in ([0], [1], [0, 1])] == [[2], [0], [0]]
    deep = [([0.1, 0.2], [1.0, 1.0]), None, ([0.3, 0.1], [1.0, 1.0])]
    asked = {"score": "deep", "layer": 2}
    assert kept(table, None, deep, heads=asked) == [0, 2]  # the second has none
    assert kept(table, None, deep, heads=asked, **best) == [2]
    flat = [([0.1], [3.0]), ([0.1], [2.0]), ([0.1], [1.0])]  # even attention is the better
    assert kept(table, None, flat, heads=asked, **best) == [2]
    found = selected(table, Select(heads=asked, alpha=2, keep={"fraction": 1}), None, flat)
    assert found["a-2"] == pytest.approx(2 * 1.5**0.5) and found["a-1"] == 0
