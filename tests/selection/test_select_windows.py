import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import longattn as la
from longattn.config import Select
from longattn.selection import reference, score_table, select_windows
from longattn.selection.overlap import distinct_scores
from longattn.selection.selection_record import CategorySelection
from longattn.storage.files import list_files
from longattn.storage.tables import LABELLED, SELECTED, write_table
from tests.examples import examples
from tests.labelled import labelled_table, write_labelled
from tests.s3 import CountingProxy, environment
from tests.selection import golden_cases


def selected(path):
    return pq.read_table(str(path / "selected")).sort_by("data_id")


def scores(n, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"book-{i:05d}" for i in range(n)]
    return ids, rng.normal(0.4, 0.02, n), rng.gamma(2, 1e-6, n)


def test_selection_is_the_same_for_any_layout_of_files(tmp_path):
    ids, ds, variance = scores(200)
    ds[50:120] = ds[50]
    variance[50:120] = variance[50]  # ties across files
    answers = []
    for layout, (seed, cuts) in {"one": (0, [200]), "many": (1, [3, 50, 51, 130, 200])}.items():
        order = np.random.default_rng(seed).permutation(200)
        start = 0
        for stop in cuts:
            part = order[start:stop]
            table = labelled_table("book", [ids[i] for i in part], ds[part], variance[part])
            write_labelled(tmp_path / layout, "book", table)
            start = stop
        summary = la.select(str(tmp_path / layout), keep={"count": 77}, alpha=0.7)["book"]
        answers.append((summary, selected(tmp_path / layout)))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1].equals(answers[1][1])
    lds = la.long_distance_scores(ds, variance, 0.7)
    want = sorted(sorted(range(200), key=lambda i: (-lds[i], ids[i]))[:77])
    table = answers[0][1]
    assert table["data_id"].to_pylist() == [ids[i] for i in want]
    assert table["lds"].to_pylist() == lds[want].tolist()
    assert table["content"].to_pylist() == [f"text of {ids[i]}" for i in want]


score = st.one_of(st.sampled_from([0.0, -0.0, 0.1, 0.25]), st.floats(-1, 1))
window = st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.integers(0, 11))
rules = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([0.0, 0.5, 2.0]),
        "standardize": st.sampled_from(["zscore", "minmax"]),
        "rank_by": st.sampled_from(["lds", "recurrence_pairs"]),
        "overlap": st.sampled_from(["allow", "prefer_distinct"]),
        "keep": st.one_of(
            st.builds(lambda x: {"fraction": x}, st.floats(0.01, 1)),
            st.builds(lambda x: {"count": x}, st.integers(1, 30)),
            st.builds(lambda x: {"tokens": x}, st.integers(1, 200)),
        ),
    }
)


def row(name, ds, variance, pairs, number):
    """A labelled row; copies of an id may have other scores. Every second document has no id."""
    category, document, index = name
    start = 3 * index
    return {
        "data_id": f"{category}-{document}-{index}",
        "content": f"row {number}",
        "input_ids": [1],
        "category": category,
        "document_id": f"d{document}" if document % 2 else None,
        "token_start": start,
        "token_stop": start + 4 + document,
        "recurrence_pairs": pairs,
        "ds": ds,
        "variance": variance,
    }


def figures(rows, chosen):
    """What is told of a selection, of plain rows and the kept ids with their LDS, with sums by fsum."""
    told = {}
    for category in sorted({each["category"] for each in rows}):
        of_all = [each for each in rows if each["category"] == category]
        own = list({each["data_id"]: each for each in reversed(of_all)}.values())
        kept = [each for each in own if each["data_id"] in chosen]
        held = {
            (each["document_id"] or each["data_id"], token)
            for each in kept
            for token in range(each["token_start"], each["token_stop"])
        }
        ds, du = [each["ds"] for each in own], [-each["variance"] for each in own]
        told[category] = CategorySelection(
            len(own),
            len(of_all) - len(own),
            len(kept),
            sum(each["token_stop"] - each["token_start"] for each in kept),
            len(held),
            *population(ds),
            *population(du),
            min((chosen[each["data_id"]] for each in kept), default=None),
            None,
        )
    return told


def population(x):
    mean = math.fsum(x) / len(x)
    return mean, math.sqrt(math.fsum((v - mean) * (v - mean) for v in x) / len(x))


# Windows 0 and 1 of document 1 share tokens: of two, the second is bought, or a distinct one.
SHARING = [
    (("a", document, index), ds, 0.0, ds)
    for document, index, ds in ((1, 0, 1.0), (1, 1, 0.9), (0, 0, 0.8), (2, 5, 0.0))
]
TWO = {"alpha": 0.5, "standardize": "zscore", "rank_by": "lds", "keep": {"count": 2}}


@settings(max_examples=examples(12))
@example(SHARING, [2], {**TWO, "overlap": "prefer_distinct"}, 0, 7)
@example(SHARING, [2], {**TWO, "overlap": "allow"}, 1000, 1)
@given(
    rows=st.lists(st.tuples(window, score, score, score), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    rules=rules,
    few=st.sampled_from([0, 2, 1000]),
    batch=st.sampled_from([1, 7, 1000]),
)
def test_any_layout_of_files_selects_what_the_reference_selects(
    tmp_path_factory, rows, cuts, rules, few, batch
):
    tmp_path = tmp_path_factory.mktemp("layout")
    rows = [row(*values, number) for number, values in enumerate(rows)]
    bounds = sorted({0, *(cut for cut in cuts if cut < len(rows)), len(rows)})
    for number, (start, stop) in enumerate(pairwise(bounds)):
        table = pa.Table.from_pylist(rows[start:stop], schema=LABELLED)
        write_table(f"{tmp_path}/labelled/{number}.parquet", table, {"fingerprint": "f"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select_windows, "FEW", few)
        patch.setattr(select_windows, "BUCKETS", 3)
        patch.setattr(score_table, "INSERTED", batch)
        patch.setattr(score_table.batches, "__defaults__", (batch,))
        told = la.select(str(tmp_path), **rules, file_bytes=3000)
    want = reference.selected(pa.Table.from_pylist(rows, schema=LABELLED), Select(**rules))
    found = [
        each
        for file in tmp_path.glob("selected/*/*.parquet")
        for each in pq.ParquetFile(file).read().to_pylist()
    ]
    assert {each["data_id"]: each["lds"] for each in found} == want and len(found) == len(want)
    first_row = {each["data_id"]: each for each in reversed(rows)}
    first = {each["data_id"]: each["content"] for each in reversed(rows)}
    assert all(each["content"] == first[each["data_id"]] for each in found)
    assert {name: replace(of, threshold=None) for name, of in told.items()} == figures(rows, want)
    for name, of in told.items():
        kept = [first_row[each] for each in want if first_row[each]["category"] == name]
        if rules["rank_by"] == "lds" and rules["overlap"] == "allow":
            assert of.threshold == of.lds_threshold
        elif rules["overlap"] == "allow":
            assert of.threshold == min((each[rules["rank_by"]] for each in kept), default=None)


@pytest.mark.parametrize("kind", golden_cases.SCORES)
def test_golden_scores_select_what_they_always_did(tmp_path, kind):
    """A quarter of the cases; the others are in tests/integration/test_selection.py."""
    assert golden_cases.wrong(tmp_path, kind, slice(0, None, 4)) == []


def test_only_narrow_columns_are_fetched_from_a_store(s3, tmp_path):
    ids = [f"{i:032x}" for i in range(256)]
    values = np.linspace(0, 1, 256)
    table = labelled_table("a", ids, values, values, window=2048)
    output = "s3://bucket/narrow-select"
    write_labelled(output, "a", table)
    (size,) = list_files(output, ".parquet").values()
    proxy = CountingProxy(s3)
    with environment(AWS_ENDPOINT_URL=proxy.endpoint):
        told = la.select(output, keep={"tokens": 1})  # keeps none: whole rows are not read
    proxy.close()
    assert (told["a"].windows, told["a"].kept) == (256, 0)
    assert size > 400_000 and 1000 < proxy.received < 120_000


def test_categories_are_compared_within_themselves(tmp_path):
    for category, shift in (("a", 0.0), ("b", 0.3)):
        ids, ds, variance = scores(20)
        table = labelled_table(category, [f"{category}{i}" for i in ids], ds + shift, variance)
        write_labelled(tmp_path, category, table)
    summary = la.select(str(tmp_path), keep={"fraction": 0.25})
    assert {c: s.kept for c, s in summary.items()} == {"a": 5, "b": 5}
    kept_ids = [i[1:] for i in selected(tmp_path)["data_id"].to_pylist()]
    assert kept_ids[:5] == kept_ids[5:]


def test_a_repeated_row_is_used_once_and_counted(tmp_path):
    ids, ds, variance = scores(10)
    write_labelled(tmp_path, "book", labelled_table("book", ids, ds, variance))
    write_labelled(tmp_path, "book", labelled_table("book", ids[4:7], ds[4:7], variance[4:7]))
    summary = la.select(str(tmp_path), keep={"fraction": 1.0})["book"]
    assert (summary.windows, summary.duplicate_rows, summary.kept) == (10, 3, 10)
    assert selected(tmp_path)["data_id"].to_pylist() == ids
    assert summary.ds_mean == pytest.approx(ds.mean())


def test_another_selection_replaces_the_first_and_the_same_one_rewrites_nothing(tmp_path):
    ids, ds, variance = scores(30)
    write_labelled(tmp_path, "book", labelled_table("book", ids, ds, variance))
    la.select(str(tmp_path), keep={"count": 20})
    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("selected/**/*.parquet")}
    la.select(str(tmp_path), keep={"count": 20})
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.glob("selected/**/*.parquet")}
    la.select(str(tmp_path), keep={"count": 4})
    assert len(selected(tmp_path)) == 4
    manifest = json.loads((tmp_path / "_longattn/selection.json").read_text())
    there = sorted(map(str, tmp_path.glob("selected/**/*.parquet")))
    assert manifest["files"] == there and manifest["select"]["keep"] == {"count": 4}


@settings(max_examples=examples(2), deadline=None)
@given(st.integers(300, 5000))
def test_selected_files_have_about_the_size_asked(tmp_path_factory, file_bytes):
    tmp_path = tmp_path_factory.mktemp("sizes")
    ids, ds, variance = scores(60)
    sizes = 0
    for start in range(0, 60, 20):
        rows = slice(start, start + 20)
        url = write_labelled(
            tmp_path, "book", labelled_table("book", ids[rows], ds[rows], variance[rows])
        )
        sizes += (tmp_path / url).stat().st_size
    la.select(str(tmp_path), keep={"fraction": 1.0}, file_bytes=file_bytes)
    files = list(tmp_path.glob("selected/**/*.parquet"))
    assert abs(len(files) - max(1, sizes / file_bytes)) <= 1
    table = selected(tmp_path)
    assert table["data_id"].to_pylist() == ids
    assert pq.read_schema(files[0]).names == SELECTED.names


def test_a_folder_without_windows_or_with_mixed_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no labelled windows"):
        la.select(str(tmp_path))
    ids, ds, variance = scores(4)
    write_labelled(tmp_path, "a", labelled_table("a", ids, ds, variance), {"fingerprint": "1"})
    write_labelled(tmp_path, "b", labelled_table("b", ids, ds, variance), {"fingerprint": "2"})
    with pytest.raises(ValueError, match="different settings"):
        la.select(str(tmp_path))


def overlapping(path):
    """Two windows of each of 20 documents, which share half their tokens."""
    ids, ds, variance = scores(40)
    table = labelled_table("book", ids, ds, variance)
    columns = {
        "document_id": [f"d{i // 2}" for i in range(40)],
        "token_start": [4 * (i % 2) for i in range(40)],
        "token_stop": [4 * (i % 2) + 8 for i in range(40)],
    }
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(
            place, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    write_labelled(path, "book", table)


def test_distinct_windows_are_preferred_and_unique_tokens_told(tmp_path):
    overlapping(tmp_path)
    found = {}
    for overlap in ("allow", "prefer_distinct"):
        told = la.select(str(tmp_path), overlap=overlap, keep={"count": 16})["book"]
        rows = selected(tmp_path).to_pylist()
        held = {
            (r["document_id"], t) for r in rows for t in range(r["token_start"], r["token_stop"])
        }
        assert told.unique_tokens == len(held) and told.kept_tokens == 16 * 8
        found[overlap] = told
        assert told.lds_threshold == min(row["lds"] for row in rows)
    assert found["allow"].unique_tokens < found["prefer_distinct"].unique_tokens
    stored = json.loads((tmp_path / "_longattn/selection.json").read_text())
    assert stored["select"]["overlap"] == "prefer_distinct"
    table = pq.read_table(str(tmp_path / "labelled")).sort_by("data_id")
    lds = la.long_distance_scores(table["ds"].to_numpy(), table["variance"].to_numpy())
    worth = distinct_scores(
        lds, *(table[c].to_numpy() for c in ("document_id", "token_start", "token_stop")), lds.std()
    )
    best = np.argsort(-worth, kind="stable")[:16]
    assert selected(tmp_path)["data_id"].to_pylist() == sorted(
        table["data_id"].take(best).to_pylist()
    )


def test_windows_may_be_ranked_by_far_recurrence(tmp_path):
    ids, ds, variance = scores(30)
    table = labelled_table("book", ids, ds, variance)
    pairs = np.random.default_rng(1).permutation(30) / 30
    place = table.column_names.index("recurrence_pairs")
    write_labelled(tmp_path, "book", table.set_column(place, "recurrence_pairs", [pairs]))
    la.select(str(tmp_path), rank_by="recurrence_pairs", keep={"count": 5})
    got = selected(tmp_path)
    assert sorted(got["recurrence_pairs"].to_pylist()) == sorted(pairs)[-5:]
    assert set(got["lds"].to_pylist()) < set(la.long_distance_scores(ds, variance).tolist())


def test_windows_without_the_column_to_rank_by_are_refused(tmp_path):
    ids, ds, variance = scores(4)
    table = labelled_table("book", ids, ds, variance)
    place = table.column_names.index("recurrence")
    write_labelled(tmp_path, "book", table.set_column(place, "recurrence", pa.nulls(4, "double")))
    with pytest.raises(ValueError, match="rank_by: some windows have no recurrence"):
        la.select(str(tmp_path), rank_by="recurrence")


def test_windows_labelled_before_the_column_to_rank_by_was_are_refused(tmp_path):
    table = labelled_table("book", *scores(4)).drop_columns(["recurrence"])
    write_labelled(tmp_path, "book", table)
    with pytest.raises(ValueError, match="has no column recurrence"):
        la.select(str(tmp_path), rank_by="recurrence")


def test_a_score_that_is_not_finite_is_refused_with_its_file(tmp_path):
    ids, ds, variance = scores(4)
    ds[2] = math.nan
    url = write_labelled(tmp_path, "book", labelled_table("book", ids, ds, variance))
    with pytest.raises(ValueError, match=f"{url}: ds must be finite"):
        la.select(str(tmp_path))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["variance", "recurrence"])
def test_infinity_is_refused_with_its_file(tmp_path, column, value):
    table = labelled_table("book", *scores(4))
    place = table.column_names.index(column)
    table = table.set_column(place, column, pa.array([0.1, value, 0.2, 0.3]))
    url = write_labelled(tmp_path, "book", table)
    with pytest.raises(ValueError, match=url):
        la.select(str(tmp_path), rank_by="recurrence")


def test_scores_whose_deviation_is_no_number_are_refused(tmp_path):
    table = labelled_table("book", ["a", "b"], [1e200, -1e200], [0.1, 0.2])
    write_labelled(tmp_path, "book", table)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: .*too far apart"):
        la.select(str(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"second_pass": 0.1}, "second_pass: no such setting; score exactly instead"),
        ({"memory": "1K"}, "memory: 64,000,000 or more is required"),
        ({"keep": {"part": 1}}, "keep.part"),
        ({"rankby": "lds"}, "rankby"),
        ({"file_bytes": 0}, "file_bytes"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said) as refused:
        la.select(str(tmp_path), **overrides)
    assert "\n" not in str(refused.value)


def test_settings_may_come_whole_with_some_of_them_changed(tmp_path):
    write_labelled(tmp_path, "book", labelled_table("book", *scores(10)))
    told = la.select(str(tmp_path), Select(alpha=0, keep={"count": 3}), standardize="minmax")
    assert told["book"].kept == 3
    stored = json.loads((tmp_path / "_longattn/selection.json").read_text())["select"]
    assert (stored["alpha"], stored["standardize"]) == (0, "minmax") and "memory" not in stored


@pytest.mark.parametrize("column", ["ds", "content"])
def test_a_broken_page_is_refused_with_its_file(tmp_path, column):
    """`ds` is read of all windows, `content` of those that are kept."""
    url = write_labelled(
        tmp_path, "book", labelled_table("book", ["a", "b"], [0.1, 0.3], [0.2, 0.1])
    )
    group = pq.read_metadata(url).row_group(0)
    places = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    with Path(url).open("r+b") as file:
        file.seek(places[column].dictionary_page_offset or places[column].data_page_offset)
        file.write(b"\xff" * 16)
    with pytest.raises((OSError, ValueError), match=rf"^{re.escape(url)}: cannot be read: "):
        la.select(str(tmp_path))


def test_nothing_may_be_kept(tmp_path):
    write_labelled(tmp_path, "book", labelled_table("book", *scores(4)))
    la.select(str(tmp_path), keep={"fraction": 1.0})
    told = la.select(str(tmp_path), keep={"tokens": 1})["book"]
    assert (told.kept, told.lds_threshold) == (0, None)
    assert not list(tmp_path.glob("selected/**/*.parquet"))


def test_a_relative_path_is_the_same_folder(tmp_path, monkeypatch):
    table = labelled_table("a", ["x", "y"], [0.1, 0.2], [1e-7, 1e-7])
    write_labelled(tmp_path / "out", "a", table)
    monkeypatch.chdir(tmp_path)
    la.select("out")
    (file,) = (tmp_path / "out/selected").glob("*/*.parquet")
    before = file.stat().st_mtime_ns
    la.select("out")
    assert file.stat().st_mtime_ns == before


def test_an_alpha_too_large_for_doubles_is_refused_and_any_memory_is_taken(tmp_path):
    write_labelled(tmp_path, "book", labelled_table("book", *scores(20)))
    with pytest.raises(ValueError, match="their LDS is no double"):
        la.select(str(tmp_path), alpha=1e308)
    assert not (tmp_path / "selected").exists()
    assert la.select(str(tmp_path), memory=10**30)["book"].kept == 10


def test_equal_hashes_of_different_ids_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(score_table, "ID_HASH", "hash(data_id) % 3")
    ids, ds, variance = scores(60)
    for start, stop in ((0, 40), (30, 60)):  # ten copies
        table = labelled_table("book", ids[start:stop], ds[start:stop], variance[start:stop])
        write_labelled(tmp_path, "book", table)
    told = la.select(str(tmp_path), keep={"count": 20})["book"]
    assert (told.windows, told.duplicate_rows) == (60, 10)
    want = np.argsort(-la.long_distance_scores(ds, variance), kind="stable")[:20]
    assert selected(tmp_path)["data_id"].to_pylist() == sorted(ids[i] for i in want)


def test_a_file_of_hundreds_of_windows_is_selected_from(tmp_path):
    ids = [f"book-{i}" for i in range(300)]
    write_labelled(tmp_path, "book", labelled_table("book", ids, np.arange(300.0), np.ones(300)))
    assert la.select(str(tmp_path), keep={"count": 40})["book"].kept == 40
    assert {*selected(tmp_path)["data_id"].to_pylist()} == {*ids[-40:]}
