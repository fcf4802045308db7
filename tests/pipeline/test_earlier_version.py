"""A run of version 0.1.0, stored by value: this version gives the same windows, scores and selection."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import longattn as la

STORED = json.loads((Path(__file__).parent / "run_0_1_0.json").read_text())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def test_windows_scores_and_selection_are_those_of_version_0_1_0(tmp_path):
    sample = STORED["config"]["sample"]
    sources = [
        {"category": name, "path": f"samples:{name}.jsonl.gz", "sample": sample}
        for name in ("book", "c")
    ]
    values = {
        "sources": sources,
        "window": {"tokens": STORED["config"]["window"]},
        "select": {"keep": {"fraction": STORED["config"]["keep"]}},
        "output": str(tmp_path),
    }
    summary = la.run(values, executor="local")
    rows = pq.read_table(tmp_path / "labelled").sort_by("data_id").to_pylist()
    assert len(rows) == len(STORED["labelled"]) == 49
    for row, before in zip(rows, STORED["labelled"], strict=True):
        ids = np.array(row["input_ids"], "<i4")
        assert before["data_id"] == row["data_id"]
        assert before["content"] == digest(row["content"].encode())
        assert before["input_ids"] == digest(ids.tobytes())
        assert before["span"] == [row["token_start"], row["token_stop"]]
        names = ("recurrence", "recurrence_rarity", "recurrence_pairs")
        assert before["recurrence"] == [row[name] for name in names]
        # Float32 products: another processor, or keys centred before them, moves the last digits.
        assert row["ds"] == pytest.approx(before["ds"], rel=1e-5)
        assert row["variance"] == pytest.approx(before["variance"], rel=1e-4)
    selected = sorted(pq.read_table(tmp_path / "selected")["data_id"].to_pylist())
    assert selected == STORED["selected"]
    for name, before in STORED["categories"].items():
        now = summary.categories[name].to_dict()
        for key in ("windows", "kept", "documents"):
            assert now[key] == before[key]
        for key in ("ds_mean", "du_mean", "lds_threshold"):
            assert now[key] == pytest.approx(before[key], rel=1e-3)
