"""Exports read back by the trainers' own readers: mosaicml-streaming, ProLong's collator's rules, OLMo-core.

`.ci/run` installs them without what they depend on, which these readers need no more than to import.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
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

for package in ("streaming", "olmo_core"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

STUBS = """
import sys
from unittest.mock import MagicMock
import transformers.models.auto.tokenization_auto
from transformers.tokenization_utils_base import BatchEncoding
for name in ("torchvision", "torchvision.datasets", "torchvision.transforms",
             "torchvision.transforms.functional", "cached_path", "cached_path.schemes"):
    sys.modules[name] = MagicMock()
from pathlib import Path
sys.modules["cached_path"].cached_path = lambda path, **_: Path(path)
sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})
"""

MOSAIC = """
import json
import torch
from streaming import Stream, StreamingDataset

def read(**settings):
    rows = []
    for sample in StreamingDataset(batch_size=1, **settings):
        # What ProLong's collator does with a sample.
        ids = torch.tensor(sample["input_ids"], dtype=torch.long)
        documents = [torch.tensor(sample["input_ids"][a:b], dtype=torch.long).tolist()
                     for a, b in sample["indices"]]
        rows.append({"ids": ids.tolist(), "documents": documents, "length": sample["length"],
                     "domain": sample["domain"], "data_id": sample["data_id"]})
    return rows

folders, shares, shuffled = json.loads(sys.argv[1])
streams = [Stream(local=of, proportion=share) for of, share in zip(folders, shares)]
found = {of: read(local=of, shuffle=False) for of in [*folders, shuffled]}
found["mixed"] = read(streams=streams, epoch_size=32, shuffle=True)
print(json.dumps(found))
"""
OLMO = """
import json
import numpy as np
from olmo_core.data import NumpyFSLDataset
from olmo_core.data.utils import iter_document_indices
found = []
for paths, dtype in json.loads(sys.argv[1]):
    data = NumpyFSLDataset(
        *paths, sequence_length=8, pad_token_id=99, eos_token_id=98, vocab_size=100,
        dtype=getattr(np, dtype), label_mask_paths=[path.replace(".npy", ".mask") for path in paths],
    )
    rows = [{name: data[i][name].tolist() for name in ("input_ids", "label_mask")}
            for i in range(len(data))]
    bounds = [list(iter_document_indices(path, use_array_if_local=False)) for path in paths]
    found.append([rows, bounds])
print(json.dumps(found))
"""


def read(script, argument):
    """What a script prints as JSON: in a process of its own, with stand-ins for what it never calls."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STUBS + script, json.dumps(argument)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def filled(folder):
    for category, n in (("book", 40), ("code", 20)):
        write_selected(folder, category, drawn(n, 8, 100, n))
    write_short(folder, short_rows())
    return folder


def mix(folder):
    source = {"category": "web", "path": str(folder / "short"), "ids_column": "input_ids"}
    shares = {"book": 0.3, "code": 0.2, "web": 0.5}
    return Mix.of({"shares": shares, "packed": [source], "tokens": 10**6, "pad_token": 99})


def test_mosaicml_streaming_reads_categories_mixes_and_what_is_shuffled(tmp_path):
    one, other = filled(tmp_path / "one"), filled(tmp_path / "other")
    folders = exported(one, "mds", mix=mix(one), part_bytes=300)
    assert [path.rpartition("/")[2] for path in folders] == ["book", "code", "web"]
    (shuffled,) = exported(other, "mds", shuffle=3, part_bytes=300)
    found = read(MOSAIC, [folders, [0.5, 0.25, 0.25], shuffled])
    book, code, web = (found[of] for of in folders)
    for rows, n, name in ((book, 40, "book"), (code, 20, "code")):
        assert [row["ids"] for row in rows] == drawn(n, 8, 100, n)
        assert [row["data_id"] for row in rows] == [f"{name}-{i:03d}" for i in range(n)]
        assert all(row["documents"] == [row["ids"]] and row["length"] == 8 for row in rows)
    assert sorted(piece for row in web for piece in row["documents"]) == pieces_of(short_rows())
    assert all([i for of in row["documents"] for i in of] == row["ids"] for row in web)
    domains = [row["domain"] for row in found["mixed"]]
    assert {name: domains.count(name) for name in set(domains)} == {"book": 16, "code": 8, "web": 8}
    of = {row["data_id"]: row["ids"] for row in (*book, *code)}
    rows = found[shuffled]
    assert len(rows) == 60 and all(row["ids"] == of[row["data_id"]] for row in rows)
    assert len({row["domain"] for row in rows[:20]}) == 2


def test_olmo_core_reads_windows_masks_and_bounds(tmp_path):
    folder, cases = filled(tmp_path), []
    for name, vocab_size, dtype in (("small", 100, "uint16"), ("large", 128_256, "uint32")):
        paths = exported(folder, "npy", vocab_size, mix=mix(folder), shuffle=1, part_bytes=320)
        assert len(paths) > 2
        (folder / "npy").rename(folder / name)
        cases.append(([path.replace("/npy/", f"/{name}/") for path in paths], dtype))
    windows_of = [*drawn(40, 8, 100, 40), *drawn(20, 8, 100, 20)]
    for (paths, dtype), (rows, bounds) in zip(cases, read(OLMO, cases), strict=True):
        windows = {tuple(row["input_ids"]) for row in rows if all(row["label_mask"])}
        assert set(map(tuple, windows_of)) <= windows
        ids = [np.fromfile(path, dtype) for path in paths]
        found = [part[a:b].tolist() for part, of in zip(ids, bounds, strict=True) for a, b in of]
        assert sorted(found) == sorted([*windows_of, *pieces_of(short_rows())])
        tokens = [pair for row in rows for pair in zip(*row.values(), strict=True)]
        assert {token for token, real in tokens if not real} == {99}
