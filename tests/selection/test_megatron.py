"""The selected set of a real run, in the formats of trainers, read back by the trainers' own readers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from longattn.selection.megatron import export_megatron
from longattn.storage.files import filesystem, list_files
from longattn.storage.tables import SELECTED, write_table
from tests.labelled import labelled_table

# A process of its own: importing megatron.core changes more than a test should.
READ = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
found = {}
for prefix in sys.argv[1:]:
    data = IndexedDataset(prefix)
    found[prefix] = {
        "dtype": data.index.dtype.__name__,
        "documents": data.document_indices.tolist(),
        "rows": [data[i].tolist() for i in range(len(data))],
        "second": data.get(1, offset=3, length=4).tolist() if len(data) > 1 else None,
    }
print(json.dumps(found))
"""


def read(*prefixes):
    pytest.importorskip("megatron")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, *map(str, prefixes)],
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def select_rows(folder, category, rows):
    table = labelled_table(
        category, [f"{i:03d}" for i in range(len(rows))], *[[0.1] * len(rows)] * 2
    )
    table = table.set_column(table.column_names.index("input_ids"), "input_ids", [rows])
    table = table.append_column("lds", [[0.0] * len(rows)]).select(SELECTED.names).cast(SELECTED)
    write_table(f"{folder}/selected/{category}/a.parquet", table, {})


def test_megatron_reads_the_selected_windows_back(finished):
    settings, summary = finished
    prefixes = export_megatron(settings.output, 8192, part_bytes=10 * 512 * 2)
    got = read(*prefixes)
    for category in ("book", "code"):
        files = sorted(Path(settings.output, "selected", category).glob("*.parquet"))
        truth = [ids for f in files for ids in pq.ParquetFile(f).read()["input_ids"].to_pylist()]
        parts = [p for p in prefixes if f"/{category}-" in p]
        assert [row for p in parts for row in got[p]["rows"]] == truth
        assert all(len(got[p]["rows"]) == 10 for p in parts[:-1])
        assert len(truth) == summary.categories[category].selection.kept > 10
    for part in got.values():
        assert part["dtype"] == "uint16"
        assert part["documents"] == list(range(len(part["rows"]) + 1))
        assert part["second"] is None or part["second"] == part["rows"][1][3:7]


def test_a_large_vocabulary_takes_int32_and_any_lengths(tmp_path):
    rows = [[0, 128_000, 7], [5], list(range(9))]
    select_rows(tmp_path, "a", rows)
    (prefix,) = export_megatron(str(tmp_path), 128_256)
    (got,) = read(prefix).values()
    assert got["dtype"] == "int32" and got["rows"] == rows


def test_an_id_outside_the_vocabulary_is_refused_and_nothing_appears(tmp_path):
    select_rows(tmp_path, "a", [[1, 2], [3, 70_000]])
    with pytest.raises(ValueError, match="ids from 3 to 70000; the vocabulary has 0 to 65535"):
        export_megatron(str(tmp_path), 65_536)
    assert not list((tmp_path / "megatron").glob("*"))


def test_nothing_selected_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no selected windows"):
        export_megatron(str(tmp_path), 100)


def test_a_second_export_replaces_the_first_on_an_object_store(s3):
    folder = "s3://bucket/export"
    select_rows(folder, "a", [[i, i] for i in range(6)])
    assert len(export_megatron(folder, 100, part_bytes=8)) == 3
    (prefix,) = export_megatron(folder, 100)
    assert sorted(list_files(f"{folder}/megatron", "")) == [prefix + ".bin", prefix + ".idx"]
    fs, path = filesystem(prefix + ".bin")
    assert np.frombuffer(fs.cat_file(path), "<u2").tolist() == [i for i in range(6) for _ in "ab"]


def test_the_readme_s_lines_give_a_hugging_face_dataset(finished, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    readme = (Path(__file__).parents[2] / "longattn/selection/README.md").read_text("utf-8")
    (code,) = [
        b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "streaming=True" in b
    ]
    assert len([line for line in code.splitlines() if line]) == 4
    settings, summary = finished
    names: dict = {}
    exec(code.replace("out/quickstart", settings.output), names)
    rows = list(names["windows"])
    assert len(rows) == sum(c.selection.kept for c in summary.categories.values())
    assert {tuple(row) for row in rows} == {("input_ids",)}
    assert all(row["input_ids"].shape == (512,) for row in rows)
