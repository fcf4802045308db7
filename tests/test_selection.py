import json
import math
import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longattn as la
from longattn import cuts as longattn_cuts
from longattn import scores as longattn_scores
from longattn.config import Keep
from longattn.lds import moments
from longattn.overlap import distinct_scores
from longattn.selection import CategorySelection, kept
from longattn.storage.tables import LABELLED, SELECTED, write_table
from tests.labelled import labelled_table, write_labelled

finite = st.floats(0, 1, allow_subnormal=False)


def selected(path):
    return pq.read_table(str(path / "selected")).sort_by("data_id")


def scores(n, seed=0):
    rng = np.random.default_rng(seed)
    ids = [f"book-{i:05d}" for i in range(n)]
    return ids, rng.normal(0.4, 0.02, n), rng.gamma(2, 1e-6, n)


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


@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.one_of(
        st.builds(Keep, fraction=st.floats(0.01, 1)),
        st.builds(Keep, count=st.integers(1, 40)),
        st.builds(Keep, tokens=st.integers(1, 400)),
    ),
)
def test_the_kept_are_the_best_ties_by_id_and_as_many_as_asked(values, keep):
    lds = np.array(values, float)
    n = len(lds)
    best = kept(lds, np.full(n, 10), keep)
    ranked = sorted(range(n), key=lambda i: (-lds[i], i))
    assert best.tolist() == ranked[: len(best)]
    if keep.count:
        assert len(best) == min(n, keep.count)
    elif keep.tokens:
        assert len(best) == min(n, keep.tokens // 10)
    else:
        assert abs(len(best) - keep.fraction * n) <= 0.5 + 1e-9


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


def plain_selection(files, alpha, standardize, rank_by, overlap, keep):
    """The kept rows by data_id with their LDS, and what is told, with fsum and sorted."""
    rows, copies = {}, {"a": 0, "b": 0}
    for each in (each for file in files for each in file):
        copies[each["category"]] += each["data_id"] in rows
        rows.setdefault(each["data_id"], each)

    def standard(x):
        low, high = min(x), max(x)
        if low == high:
            return [0.0] * len(x)
        mean, deviation = population(x)
        if standardize == "minmax":
            mean, deviation = low, high - low
        return [(v - mean) / deviation if deviation else 0.0 for v in x]

    def population(x):
        mean = math.fsum(x) / len(x)
        return mean, math.sqrt(math.fsum((v - mean) * (v - mean) for v in x) / len(x))

    chosen, told = {}, {}
    for category in "ab":
        own = sorted(
            (each for each in rows.values() if each["category"] == category),
            key=lambda each: each["data_id"],
        )
        if not own:
            continue
        ds, du = [each["ds"] for each in own], [-each["variance"] for each in own]
        lds = [a + alpha * b for a, b in zip(standard(ds), standard(du), strict=True)]
        order = lds if rank_by == "lds" else [each[rank_by] for each in own]
        if overlap == "prefer_distinct":
            document = [each["document_id"] or each["data_id"] for each in own]
            start, stop = (np.array([r[f"token_{end}"] for r in own]) for end in ("start", "stop"))
            order = distinct_scores(
                np.array(order), document, start, stop, population(order)[1]
            ).tolist()
        best = sorted(range(len(own)), key=lambda i: (-order[i], own[i]["data_id"]))
        sizes = [own[i]["token_stop"] - own[i]["token_start"] for i in best]
        if "fraction" in keep:
            best = best[: math.floor(keep["fraction"] * len(own) + 0.5)]
        elif "count" in keep:
            best = best[: keep["count"]]
        else:
            best = [
                i for i, held in zip(best, np.cumsum(sizes), strict=True) if held <= keep["tokens"]
            ]
        chosen |= {own[i]["data_id"]: (own[i]["content"], lds[i]) for i in best}
        held = {
            (own[i]["document_id"] or own[i]["data_id"], token)
            for i in best
            for token in range(own[i]["token_start"], own[i]["token_stop"])
        }
        told[category] = CategorySelection(
            len(own), copies[category], len(best),
            sum(own[i]["token_stop"] - own[i]["token_start"] for i in best), len(held),
            *population(ds), *population(du), min((lds[i] for i in best), default=None),
        )  # fmt: skip
    return chosen, told


@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(window, score, score, score), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    rules=rules,
    partition=st.sampled_from([3, 10, 1000]),
    few=st.sampled_from([0, 2, 1000]),
)
def test_any_layout_and_number_of_partitions_gives_what_one_table_gives(
    tmp_path_factory, rows, cuts, rules, partition, few
):
    tmp_path = tmp_path_factory.mktemp("layout")
    rows = [row(*values, number) for number, values in enumerate(rows)]
    bounds = sorted({0, *(cut for cut in cuts if cut < len(rows)), len(rows)})
    files = [rows[a:b] for a, b in pairwise(bounds)]
    for number, file in enumerate(files):
        url = tmp_path / "labelled" / f"{number}.parquet"
        write_table(str(url), pa.Table.from_pylist(file, schema=LABELLED), {"fingerprint": "f"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longattn_scores, "PARTITION", partition)
        patch.setattr(longattn_cuts, "FEW", few)
        told = la.select(str(tmp_path), **rules, file_bytes=3000)
    found = [
        (each["data_id"], (each["content"], each["lds"]))
        for file in tmp_path.glob("selected/*/*.parquet")
        for each in pq.ParquetFile(file).read().to_pylist()
    ]
    want, want_told = plain_selection(files, **rules)
    assert dict(found) == want and len(found) == len(want)
    assert told == want_told


@pytest.mark.parametrize("overlap", ["allow", "prefer_distinct"])
def test_ray_selects_what_this_process_selects(tmp_path, ray_cluster, monkeypatch, overlap):
    rng = np.random.default_rng(0)
    for number in range(12):
        rows = [
            row((rng.choice(["a", "b"]), int(rng.integers(400)), int(rng.integers(4))),
                *rng.normal(0, 1, 3).round(1), f"{number}/{i}")
            for i in range(250)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=LABELLED)
        write_table(f"{tmp_path}/labelled/{number:02d}.parquet", table, {"fingerprint": "f"})
    monkeypatch.setattr(longattn_scores, "PARTITION", 600)
    monkeypatch.setattr(longattn_cuts, "FEW", 10)
    answers = []
    for on in ("local", "ray"):
        told = la.select(str(tmp_path), overlap=overlap, file_bytes=8_000, on=on)
        files = sorted(tmp_path.glob("selected/*/*.parquet"))
        answers.append((told, {file: file.read_bytes() for file in files}))
        for file in files:
            file.unlink()
    assert answers[0] == answers[1] and len(answers[0][1]) > 3
    assert sum(of.duplicate_rows for of in answers[0][0].values()) > 100


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


@settings(max_examples=8, deadline=None)
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
