"""Selections in less memory than the windows take are those of the reference; all golden cases hold."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.config import Select
from longattn.selection import reference, select_windows
from longattn.storage.tables import LABELLED
from tests.labelled import write_score_table
from tests.selection import golden_cases

WINDOWS = 400_000


def test_bounds_and_caps_spill_and_select_the_same(tmp_path, monkeypatch):
    draw = np.random.default_rng(0)
    documents = [f"{i // 2:032x}" for i in draw.permutation(WINDOWS)]
    values = {
        **{f.name: pa.nulls(WINDOWS, f.type) for f in LABELLED},
        "data_id": [f"book-{name}-{i}" for i, name in enumerate(documents)],
        "category": ["book"] * WINDOWS,
        "document_id": documents,
        "token_start": np.zeros(WINDOWS, np.int64),
        "token_stop": np.full(WINDOWS, 9),
        "ds": draw.integers(0, 2000, WINDOWS) / 2000,  # with many ties
        "variance": draw.random(WINDOWS),
    }
    table = pa.table(values, schema=LABELLED)
    path = tmp_path / "out/labelled/book/a.parquet"
    path.parent.mkdir(parents=True)
    footer = f'{{"fingerprint": "f", "rows": {WINDOWS}}}'.encode()
    pq.write_table(table.replace_schema_metadata({b"longattn": footer}), path)
    gap = np.where(draw.random(WINDOWS) < 0.1, None, draw.random(WINDOWS)).tolist()
    write_score_table(path, "gap", {"gap": pa.array(gap, pa.float64())})
    found = {}

    def kept(table, *_):
        found.update(table.connection.execute("SELECT data_id, lds FROM kept").fetchall())
        return []

    monkeypatch.setattr(select_windows, "write_selected", kept)
    for rank_by, overlap in (("gap", "allow"), ("lds", "prefer_distinct")):
        rule = Select(
            rank_by=rank_by,
            overlap=overlap,
            per_document=1,
            keep={"count": 20_000},
            memory="64M",
            where=[{"column": "ds", "quantiles": [0.1, 0.75]}, {"column": "gap", "min": 0.2}],
        )
        found.clear()
        told = select_windows.select(str(tmp_path / "out"), rule)["book"]
        assert found == reference.selected(table, rule, {"gap": gap})
        assert told.out["ds quantiles 0.1 to 0.75"] == WINDOWS * 35 // 100
        assert told.out["per_document"] > 1000


def test_more_than_memory_holds_is_spilled_and_selects_the_same(tmp_path, monkeypatch):
    n = 600_000
    draw = np.random.default_rng(0)
    ids = [f"book-{i:032x}-0" for i in draw.permutation(n)]
    scores = {"ds": draw.random(n), "variance": draw.random(n)}
    empty = {f.name: pa.nulls(n, f.type) for f in LABELLED}
    values = {
        **empty,
        **scores,
        "data_id": ids,
        "category": ["book"] * n,
        "document_id": ids,
        "token_start": np.zeros(n, np.int64),
        "token_stop": np.full(n, 9),
    }
    table = pa.table(values, schema=LABELLED)
    path = tmp_path / "out/labelled/book/a.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(
        table.replace_schema_metadata({b"longattn": b'{"fingerprint": "f", "rows": 600000}'}), path
    )
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    spilled = []
    cut = select_windows._cut

    def watched(*arguments):
        held = {f: f.stat().st_size for f in tmp_path.glob("temporary/*/**/*") if f.is_file()}
        spilled.append({f.parent.name == "spilled" for f, size in held.items() if size > 2**20})
        cut(*arguments)

    monkeypatch.setattr(select_windows, "_cut", watched)
    monkeypatch.setattr(select_windows, "write_selected", lambda table, *_: kept(table))
    found = []

    def kept(table):
        found.append(dict(table.connection.execute("SELECT data_id, lds FROM kept").fetchall()))
        return []

    for overlap in ("allow", "prefer_distinct"):
        la.select(str(tmp_path / "out"), memory="64M", keep={"count": 1000}, overlap=overlap)
    assert found[0] == found[1] == reference.selected(table, Select(keep={"count": 1000}))
    assert spilled == [{False}, {False, True}], "ids lie on disk; ordering documents takes memory"
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("kind", golden_cases.SCORES)
def test_golden_scores_select_what_they_always_did(tmp_path, kind):
    """Those that the fast suite leaves out."""
    for first in (1, 2, 3):
        assert golden_cases.wrong(tmp_path / str(first), kind, slice(first, None, 4)) == []
