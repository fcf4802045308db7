"""Bounds, ranking by any column, categories of their own, caps of a document: as the reference has them."""

import json
import math
import random
from itertools import pairwise
from types import SimpleNamespace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longattn as la
from longattn.config import Select
from longattn.selection import reference, score_table, select_windows, where
from longattn.selection.columns import require_columns
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import LABELLED, write_table
from tests.examples import examples
from tests.labelled import labelled_table, write_heads_table, write_labelled, write_score_table
from tests.selection.test_select_windows import row, score, selected, window

HEADS = 3
LAYERS = (2, 7)
DEEPER = {
    # asked for -> the places of layers 2 and 7, of two heads each
    "one": ({"score": "deep", "layer": 7, "head": 0}, [2]),
    "some": ({"score": "deep", "layer": [7, 2], "head": 1}, [3, 1]),
    "layer": ({"score": "deep", "layer": 2}, [0, 1]),
    "all": ({"score": "deep"}, [0, 1, 2, 3]),
}
value = st.one_of(st.sampled_from([0.0, -0.0, 0.25, 0.5]), st.floats(-1, 1))
quantiles = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda q: q[0] < q[1])
column = st.sampled_from(["lds", "ds", "recurrence_pairs", "gap", "gap_weighted"])


def bound(name, kind, low, high, shares):
    low, high = sorted((low, high))
    ranges = {"min": {"min": low}, "max": {"max": high}, "both": {"min": low, "max": high}}
    return {"column": name, **ranges.get(kind, {"quantiles": list(shares)})}


bounds = st.lists(
    st.builds(
        bound, column, st.sampled_from(["min", "max", "both", "quantiles"]), value, value, quantiles
    ),
    max_size=2,
)
keep = st.one_of(
    st.builds(lambda x: {"fraction": x}, st.floats(0.01, 1)),
    st.builds(lambda x: {"count": x}, st.integers(1, 20)),
    st.builds(lambda x: {"tokens": x}, st.integers(1, 150)),
)
rules = st.fixed_dictionaries(
    {
        "rank_by": column,
        "where": bounds,
        "keep": keep,
        "heads": st.sampled_from(["all", [1], [2, 0], *(asked for asked, _ in DEEPER.values())]),
        "overlap": st.sampled_from(["allow", "prefer_distinct"]),
        "per_document": st.sampled_from([None, 1, 2]),
        "own": st.one_of(
            st.none(),
            st.fixed_dictionaries({"keep": keep}),
            st.builds(lambda w: {"where": w}, bounds),
        ),
    }
)


def with_heads(values, number):
    """A row with scores of each head, which are float32."""
    of = np.random.default_rng(number).random((2, HEADS)).astype(np.float32).tolist()
    return {**row(*values, number), "ds_heads": of[0], "variance_heads": of[1]}


def unscored(rows, heads):
    """Whether a category has no window with a value, each counted where its data_id comes first."""
    first = {}
    for each, of in zip(rows, heads, strict=True):
        first.setdefault((each["category"], each["data_id"]), of)
    categories = {category for category, _ in first}
    return categories - {category for (category, _), of in first.items() if of}


@settings(max_examples=examples(10))
@given(
    rows=st.lists(
        st.tuples(
            window, score, score, score, st.one_of(st.none(), value), value, st.integers(0, 3)
        ),
        min_size=1,
        max_size=30,
    ),
    cut=st.integers(0, 30),
    rules=rules,
    few=st.sampled_from([0, 1000]),
)
def test_any_rule_selects_what_the_reference_selects(tmp_path_factory, rows, cut, rules, few):
    as_the_reference(tmp_path_factory.mktemp("where"), rows, cut, rules, few)


def as_the_reference(tmp_path, rows, cut, rules, few):
    further = {"gap": [each[4] for each in rows], "gap_weighted": [each[5] for each in rows]}
    deeper = [
        np.random.default_rng(number).normal(size=(2, 4)).tolist() if each[6] else None
        for number, each in enumerate(rows)
    ]
    rows = [with_heads(each[:4], number) for number, each in enumerate(rows)]
    for number, (start, stop) in enumerate(pairwise(sorted({0, min(cut, len(rows)), len(rows)}))):
        table = pa.Table.from_pylist(rows[start:stop], schema=LABELLED)
        url = f"{tmp_path}/labelled/{number}.parquet"
        write_table(url, table, {"fingerprint": "f"})
        part = {name: pa.array(of[start:stop], pa.float64()) for name, of in further.items()}
        write_score_table(url, "gap", part)
        write_heads_table(url, "deep", LAYERS, deeper[start:stop], heads=2)
    own, there = rules.pop("own"), {each["category"] for each in rows}
    rules["categories"] = {"a": own} if own and "a" in there else {}
    with pytest.MonkeyPatch.context() as patch:
        for module in (select_windows, where):
            patch.setattr(module, "FEW", few)
            patch.setattr(module, "BUCKETS", 3)
        patch.setattr(score_table, "INSERTED", 7)
        places = next((of for asked, of in DEEPER.values() if asked == rules["heads"]), None)
        of_heads = places and [
            each and [[scores[place] for place in places] for scores in each] for each in deeper
        ]
        if of_heads and unscored(rows, of_heads):
            with pytest.raises(ValueError, match="has a value of the score deep"):
                la.select(str(tmp_path), **rules)
            return
        told = la.select(str(tmp_path), **rules)
    table = pa.Table.from_pylist(rows, schema=LABELLED)
    want = reference.selected(table, Select(**rules), further, of_heads)
    found = [
        each
        for file in tmp_path.glob("selected/*/*.parquet")
        for each in pq.ParquetFile(file).read(["data_id", "lds"]).to_pylist()
    ]
    assert {each["data_id"]: each["lds"] for each in found} == want and len(found) == len(want)
    assert sum(of.kept for of in told.values()) == len(want)


BETWEEN = {"column": "gap_weighted", "quantiles": [0.2, 0.9]}
HARD = [
    {"rank_by": "gap", "where": [BETWEEN], "keep": {"fraction": 0.4}, "per_document": 2},
    {"rank_by": "lds", "where": [{"column": "lds", "min": -0.5}], "keep": {"tokens": 90},
     "overlap": "prefer_distinct"},
    {"rank_by": "ds", "where": [], "keep": {"count": 9}, "heads": DEEPER["some"][0],
     "overlap": "prefer_distinct", "per_document": 1},
    {"rank_by": "lds", "where": [BETWEEN, {"column": "gap", "max": 0.5}], "keep": {"count": 6},
     "heads": DEEPER["layer"][0], "own": {"keep": {"tokens": 60}, "where": []}},
    {"rank_by": "lds", "where": [{"column": "ds", "quantiles": [0, 0.7]}], "keep": {"fraction": 0.5},
     "heads": [2, 0], "own": {"where": [BETWEEN]}},
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(HARD)))
def test_rules_that_meet_each_other_select_what_the_reference_selects(tmp_path, case):
    """Forty windows with ties and copies, which share tokens: more than is drawn at random."""
    draw = random.Random(case)
    ties = [0.0, 0.25, 0.5, 0.75, -0.5]
    rows = [
        (
            (draw.choice("ab"), draw.randrange(4), draw.randrange(8)),
            *(draw.choice([*ties, draw.random()]) for _ in range(3)),
            draw.choice([None, *ties, draw.random()]),
            draw.choice([*ties, draw.random()]),
            draw.randrange(4),
        )
        for _ in range(40)
    ]
    rules = {"heads": "all", "overlap": "allow", "per_document": None, "own": None, **HARD[case]}
    as_the_reference(tmp_path, rows, 17, rules, 0)


def folder(path, n=40, category="book"):
    """A labelled file whose `recurrence` is 0, 1/n, ... and whose scores are drawn; returns its URL."""
    rng = np.random.default_rng(0)
    ids = [f"{category}-{i:03d}" for i in range(n)]
    table = labelled_table(category, ids, rng.random(n), rng.random(n))
    place = table.column_names.index("recurrence")
    return write_labelled(path, category, table.set_column(place, "recurrence", [np.arange(n) / n]))


def kept(path):
    return [int(data_id[-3:]) for data_id in selected(path)["data_id"].to_pylist()]


def test_bounds_by_value_and_by_quantiles_are_counted_by_themselves(tmp_path):
    folder(tmp_path)
    where = [
        {"column": "recurrence", "min": 0.25},
        {"column": "recurrence", "quantiles": ["20%", 0.8]},
    ]
    told = la.select(str(tmp_path), where=where, keep={"fraction": 1.0})["book"]
    assert kept(tmp_path) == list(range(10, 32))
    assert told.out == {"recurrence at least 0.25": 10, "recurrence quantiles 0.2 to 0.8": 16}
    stored = json.loads((tmp_path / "_longattn/selection.json").read_text())
    assert stored["categories"]["book"]["out"] == told.out
    assert (told.windows, told.kept) == (40, 22)


@pytest.mark.parametrize(
    ("shares", "inside"),
    [
        ([0, 1], range(40)),
        ([0.02, 1], range(1, 40)),  # 0.8 of a window is one
        ([0.01, 1], range(40)),
        ([0, 0.98], range(39)),
        ([0, 0.01], []),
        ([0.99, 1], []),
        ([0.5, 0.525], [20]),
        ([0.4875, 0.5125], [20]),  # halves go up
    ],
)
def test_a_quantile_takes_ranks_up_to_its_ends(tmp_path, shares, inside):
    folder(tmp_path)
    rule = {"where": [{"column": "recurrence", "quantiles": shares}], "keep": {"fraction": 1.0}}
    told = la.select(str(tmp_path), **rule)["book"]
    assert told.kept == len(inside) and told.out[next(iter(told.out))] == 40 - len(inside)
    assert not inside or kept(tmp_path) == list(inside)


@settings(max_examples=examples(10))
@given(
    st.lists(st.integers(0, 9) | st.floats(-1e3, 1e3), min_size=1, max_size=25), st.integers(0, 4)
)
def test_the_value_of_each_rank_is_found_by_counting(values, few):
    """As of millions of values, of which few are sorted."""
    with pytest.MonkeyPatch.context() as patch, duckdb.connect(":memory:") as connection:
        patch.setattr(where, "FEW", few)
        patch.setattr(where, "BUCKETS", 3)
        connection.register("given_values", pa.table({"x": np.array(values, float)}))
        connection.execute("CREATE TABLE drawn AS FROM given_values")
        table = SimpleNamespace(connection=connection)
        found = [where._nth(table, "x", "FROM drawn WHERE true", n + 1) for n in range(len(values))]
    assert found == sorted(map(float, values))


def test_equal_values_are_parted_by_id_where_a_quantile_ends(tmp_path):
    n = 20
    ids = [f"book-{i:03d}" for i in np.random.default_rng(1).permutation(n)]
    write_labelled(tmp_path, "book", labelled_table("book", ids, np.full(n, 0.5), np.full(n, 0.1)))
    la.select(
        str(tmp_path), where=[{"column": "ds", "quantiles": [0.25, 0.5]}], keep={"fraction": 1.0}
    )
    assert kept(tmp_path) == [5, 6, 7, 8, 9]


def test_the_share_that_is_kept_is_of_all_windows_of_a_category(tmp_path):
    folder(tmp_path)
    rule = {"where": [{"column": "recurrence", "max": 0.7}], "rank_by": "recurrence"}
    assert la.select(str(tmp_path), keep={"fraction": 0.5}, **rule)["book"].kept == 20
    assert kept(tmp_path) == list(range(9, 29))


def test_a_category_may_have_its_own_bounds_and_budget(tmp_path):
    for category in ("book", "code"):
        folder(tmp_path, category=category)
    told = la.select(
        str(tmp_path),
        where=[{"column": "recurrence", "max": 0.5}],
        keep={"count": 3},
        categories={"code": {"keep": {"tokens": 40}, "where": []}},
    )
    assert {name: (of.kept, of.out) for name, of in told.items()} == {
        "book": (3, {"recurrence at most 0.5": 19}),
        "code": (5, {}),
    }


def test_a_category_without_windows_is_named(tmp_path, caplog):
    folder(tmp_path)
    assert la.select(str(tmp_path), categories={"cod": {"keep": {"count": 1}}})["book"].kept == 20
    assert "select.categories: no windows of category 'cod'; there are: book" in caplog.text


def test_bounds_that_leave_nothing_keep_nothing(tmp_path):
    folder(tmp_path)
    told = la.select(str(tmp_path), where=[{"column": "recurrence", "min": 2}])["book"]
    assert (told.kept, told.windows, told.threshold) == (0, 40, None)
    assert not list(tmp_path.glob("selected/**/*.parquet"))
    told = la.select(
        str(tmp_path), where=[{"column": "recurrence", "min": 2}], overlap="prefer_distinct"
    )
    assert told["book"].kept == 0


def test_a_document_gives_at_most_so_many_windows(tmp_path):
    table = labelled_table(
        "book", [f"book-{i:03d}" for i in range(12)], np.arange(12) / 12, [0.1] * 12
    )
    place = table.column_names.index("document_id")
    table = table.set_column(place, "document_id", [["long"] * 8 + ["b", "b", "c", "d"]])
    write_labelled(tmp_path, "book", table)
    told = la.select(str(tmp_path), per_document=2, keep={"fraction": 1.0})["book"]
    assert kept(tmp_path) == [6, 7, 8, 9, 10, 11]
    assert told.out == {"per_document": 6}


def test_a_score_table_ranks_and_windows_without_a_score_are_not_kept(tmp_path):
    url = folder(tmp_path)
    gap = [None if i % 4 else i / 40 for i in range(40)]
    write_score_table(url, "loss_gap", {"loss_gap": pa.array(gap), "loss_gap_weighted": gap})
    told = la.select(str(tmp_path), rank_by="loss_gap", keep={"count": 4})["book"]
    assert kept(tmp_path) == [24, 28, 32, 36]
    assert told.out == {"loss_gap has no value": 30}
    assert told.threshold == 0.6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url, table: table.slice(1), "its rows are not those of the labelled file"),
        (lambda url, table: table.take(list(range(39, -1, -1))), "its rows are not those"),
        (lambda url, table: table.set_column(1, "gap", [[math.nan] * 40]), "gap must be finite"),
        (lambda url, table: table.set_column(1, "gap", [["x"] * 40]), "gap is string, not numbers"),
        (
            lambda url, table: table.rename_columns(["data_id", "other"]),
            "has no column gap in labelled/ or scores/; there are: lds, window_index",
        ),
    ],
)
def test_a_score_table_that_does_not_fit_is_refused(tmp_path, change, said):
    url = write_score_table(folder(tmp_path), "gap", {"gap": np.arange(40.0)})
    write_table(url, change(url, pq.ParquetFile(url).read()), {"fingerprint": "s"})
    with pytest.raises(ValueError, match=said) as refused:
        la.select(str(tmp_path), rank_by="gap")
    assert "\n" not in str(refused.value) and not (tmp_path / "selected").exists()


def test_a_score_table_that_lacks_files_or_mixes_settings_is_refused(tmp_path):
    first, second = folder(tmp_path), folder(tmp_path, category="code")
    write_score_table(first, "gap", {"gap": np.arange(40.0)})
    with pytest.raises(ValueError, match=r"scores/gap lacks 1 of 2 files"):
        la.select(str(tmp_path), where=[{"column": "gap", "min": 0}])
    write_score_table(second, "gap", {"gap": np.arange(40.0)}, {"fingerprint": "other"})
    with pytest.raises(ValueError, match=r"scores/gap: files of different settings"):
        la.select(str(tmp_path), rank_by="gap")
    write_score_table(second, "gap", {"gap": np.arange(40.0)})
    for url in (first, second):
        write_score_table(url, "twin", {"gap": np.arange(40.0)})
    with pytest.raises(ValueError, match="the column gap is in scores/gap and scores/twin"):
        la.select(str(tmp_path), rank_by="gap")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"where": [{"column": "ds"}]}, "where.0: one or more of min, max, quantiles"),
        ({"where": [{"column": "ds", "min": 2, "max": 1}]}, "min 2.0 is over max 1.0"),
        ({"where": [{"column": "ds", "quantiles": [0.5, 0.5]}]}, "the first share is to be below"),
        ({"where": [{"column": "data_id", "min": 0}]}, "the column data_id is string, not numbers"),
        (
            {"where": [{"column": "dss", "min": 0}]},
            "select.where.0.column: .* has no column dss.*; did you mean ds\\?; there are",
        ),
        ({"rank_by": "ds_heads"}, "ds_heads is list"),
        ({"heads": []}, "heads"),
        ({"heads": [5]}, r"select.heads: heads \[5\]: allowed: 0 to 0"),
        ({"heads": "auto"}, "so it holds no settings; give a config whose output it is"),
        (
            {"categories": {"book": {"kep": 1}}},
            "categories.book.kep: no such setting; did you mean",
        ),
        ({"name": "a/b"}, "a selection names a folder"),
        ({"name": "book"}, "a category and a selection cannot share a folder"),
    ],
)
def test_a_bad_rule_is_refused_in_one_line(tmp_path, overrides, said):
    folder(tmp_path)
    with pytest.raises(ValueError, match=said) as refused:
        la.select(str(tmp_path), **overrides)
    assert "\n" not in str(refused.value)


def test_a_column_that_no_window_will_have_is_refused_before_anything_is_scored(tmp_path):
    folder = OutputFolder(str(tmp_path))
    for rank_by in ("lds", "variance", "recurrence_pairs", "ds_k64", "gap"):
        require_columns(folder, Select(rank_by=rank_by), ["gap"])
    bound = {"column": "stars", "min": 1}
    for asked in (
        {"rank_by": "stars"},
        {"where": [bound]},
        {"categories": {"a": {"where": [bound]}}},
    ):
        with pytest.raises(ValueError, match=r"column stars; allowed: lds, .*, ds, .*, gap$"):
            require_columns(folder, Select.check(asked, "select"), ["gap"])
    for asked in ({"rank_by": "url"}, {"where": [bound | {"column": "url"}]}):
        with pytest.raises(
            ValueError, match=r"^select.*: the column url is string, not numbers; allowed: .*, gap$"
        ):
            require_columns(folder, Select.check(asked, "select"), ["gap"], {"url": "string"})
    url = write_labelled(tmp_path, "a", labelled_table("a", ["a-0"], np.ones(1), np.ones(1)))
    write_score_table(url, "stars", {"stars": pa.array([3.0])})
    require_columns(folder, Select(rank_by="stars"), [])
    with pytest.raises(ValueError, match=r"allowed: lds, .*, stars$") as refused:
        require_columns(folder, Select(rank_by="star"), [])
    assert "data_id" not in str(refused.value)
