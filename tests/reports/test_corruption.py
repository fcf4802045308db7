"""`verify` notices what is planted in every file of a run, and every bit that changes a value.

Here every fortieth kind of `tests/corruptions.py` is planted; tests/integration/test_corruption.py plants all.
"""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.reports.verify import verify
from longattn.storage.tables import METADATA_KEY
from tests.conftest import _first_document
from tests.corruptions import corruptions, missed_of

EVERY = 40  # of more than 500 kinds one is planted


def small_output(folder: Path, checkpoint: str) -> Path:
    """An output with all a run writes: two categories, several files, bad records, a sample."""
    text = _first_document("book")
    (folder / "book").mkdir()
    for part in range(2):
        texts = [text[p : p + 1400] for p in range(part * 4000, part * 4000 + 3000, 1500)]
        lines = [json.dumps({"content": t}) for t in texts]
        (folder / "book" / f"{part}.jsonl").write_text("\n".join([*lines, "bad", '{"content": 1}']))
    texts = [text[p : p + 1500] for p in range(20_000, 26_000, 2000)]
    pq.write_table(pa.table({"content": texts}), folder / "code.parquet")
    sources = [
        {"category": "book", "path": f"{folder}/book"},
        {"category": "code", "path": f"{folder}/code.parquet", "sample": {"fraction": 0.8}},
    ]
    settings = {
        "sources": sources,
        "output": str(folder / "out"),
        "window": {"tokens": 128},
        "scorer": {"model": checkpoint},
        "max_bad_fraction": 1,
    }
    la.run(settings, executor="local")
    assert list(verify(str(folder / "out"))) == []
    return folder / "out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint) -> Path:
    return small_output(tmp_path_factory.mktemp("whole"), checkpoint)


@pytest.fixture
def output(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def test_each_planted_corruption_is_a_finding_of_a_line(whole, output):
    some = list(corruptions(whole))[::EVERY]
    assert len(some) >= 12
    assert missed_of(some, whole, output) == []


def value_of(path: Path):
    """What a reader gets from a file, without checksums; None where it gets nothing."""
    try:
        if path.suffix == ".parquet":
            footer = pq.read_metadata(path).metadata.get(METADATA_KEY)
            return pq.read_table(path).replace_schema_metadata(), footer
        return json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
    except Exception:  # noqa: BLE001
        return None


def unnoticed_flips(whole: Path, output: Path, count: int) -> list[tuple[str, int]]:
    """Of bits flipped in each file at a time, those that changed a value and that no finding names."""
    rng = random.Random(7)
    names = sorted(str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file())
    run = "_longattn/run.json"  # without it nothing else is looked at: flipped alone
    names.remove(run)
    flips, missed = 0, []
    while flips < count:
        for group in (names, [run]):
            places = {}
            for name in group:
                data = bytearray((whole / name).read_bytes())
                places[name] = bit = rng.randrange(8 * len(data))
                data[bit // 8] ^= 1 << bit % 8
                (output / name).write_bytes(data)
            found = "\n".join(verify(str(output)))
            for name, bit in places.items():
                if name not in found and value_of(output / name) != value_of(whole / name):
                    missed.append((name, bit))
                shutil.copy(whole / name, output / name)
            flips += len(group)
    return missed


def test_no_flipped_bit_changes_a_value_unnoticed(whole, output):
    assert unnoticed_flips(whole, output, 40) == []


def test_a_record_without_its_checksum_hides_no_other_finding(whole, output):
    records = ["samples", "summary", "selection", "rates"]
    for name in records:
        path = output / f"_longattn/{name}.json"
        path.write_text(path.read_text().replace('"checksum"', '"chec{sum"'))
    found = list(verify(str(output)))
    for name in records:
        assert f"{output}/_longattn/{name}.json: it has lost its checksum" in found
    assert not [line for line in found if "cannot be checked" in line]
