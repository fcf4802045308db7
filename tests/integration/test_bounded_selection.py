"""Bounds, caps and score tables in less memory than the windows take: the same as the reference."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longattn.config import Select
from longattn.selection import reference, select_windows
from longattn.storage.tables import LABELLED
from tests.labelled import write_score_table

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
