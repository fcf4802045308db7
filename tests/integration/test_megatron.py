"""The selected set of a real run, in the formats of trainers, read back by the trainers' own readers."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from longattn.config import Mix
from tests.formats.made import (
    drawn,
    exported,
    pieces_of,
    short_rows,
    write_selected,
    write_short,
)

# A process of its own: importing megatron.core, 5 s of a core, changes more than a test should.
READ = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
for line in sys.stdin:
    found = {}
    for prefix in json.loads(line):
        data = IndexedDataset(prefix)
        found[prefix] = {
            "dtype": data.index.dtype.__name__,
            "documents": data.document_indices.tolist(),
            "rows": [data[i].tolist() for i in range(len(data))],
            "second": data.get(1, offset=3, length=4).tolist() if len(data) > 1 else None,
        }
    print("found:", json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def read():
    """What Megatron reads at prefixes."""
    pytest.importorskip("megatron")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", READ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:

        def ask(*prefixes):
            print(json.dumps([*map(str, prefixes)]), file=reader.stdin, flush=True)
            lines = iter(reader.stdout.readline, "")  # up to its end, if it fails
            answer = next(line for line in lines if line.startswith("found: "))
            return json.loads(answer.removeprefix("found: "))

        yield ask
        reader.stdin.close()


def test_megatron_reads_the_selected_windows_back(finished, read):
    settings, summary = finished
    prefixes = exported(settings.output, "megatron", 8192, 512, part_bytes=10 * 512 * 2)
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


def test_a_large_vocabulary_any_lengths_and_packed_documents(tmp_path, read):
    rows = [[0, 128_000, 7], [5], list(range(9))]
    write_selected(tmp_path / "large", "a", rows)
    (large,) = exported(tmp_path / "large", "megatron", 128_256)
    write_selected(tmp_path, "book", drawn(5, 8, 100))
    write_short(tmp_path, short_rows())
    source = {"category": "web", "path": str(tmp_path / "short"), "ids_column": "input_ids"}
    mix = Mix.of({"shares": {"book": 0.5, "web": 0.5}, "packed": [source], "tokens": 10**6})
    book, web = exported(tmp_path, "megatron", mix=mix)
    got = read(large, book, web)
    assert got[large]["dtype"] == "int32" and got[large]["rows"] == rows
    assert got[book]["rows"] == drawn(5, 8, 100)
    assert sorted(got[web]["rows"]) == pieces_of(short_rows())  # each document of its own
    assert got[web]["documents"] == list(range(len(got[web]["rows"]) + 1))
