import json
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longattn as la
from longattn.config import Keep
from longattn.overlap import distinct_scores
from longattn.selection import kept, moments
from longattn.storage import SELECTED
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


def test_a_relative_path_is_the_same_folder(tmp_path, monkeypatch):
    table = labelled_table("a", ["x", "y"], [0.1, 0.2], [1e-7, 1e-7])
    write_labelled(tmp_path / "out", "a", table)
    monkeypatch.chdir(tmp_path)
    la.select("out")
    (file,) = (tmp_path / "out/selected").glob("*/*.parquet")
    before = file.stat().st_mtime_ns
    la.select("out")
    assert file.stat().st_mtime_ns == before
