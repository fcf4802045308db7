"""Files cut into parts that are read alone, and the part that an estimate reads."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from longattn.corpus.parts import cut_files, row_group_sizes, sample_part
from longattn.corpus.reading import read_split
from longattn.corpus.records import Split
from tests.corpus.files import jsonl, parquet, put, splits_of, texts
from tests.corpus.test_arrow import arrow

LONG = [{"text": f"{i:03} " * 25} for i in range(100)]
ALL = [row["text"] for row in LONG]
TABLE = pa.table({"text": ALL})
FILES = {
    "a.jsonl": jsonl(LONG),
    "a.parquet": parquet(TABLE, row_group_size=10, compression="none", use_dictionary=False),
    "a.arrow": arrow(TABLE, rows=10),
    "stream.arrow": arrow(TABLE, rows=10, stream=True),
    "a.json": json.dumps(LONG).encode(),
    "a.csv": b"text,n\n" + ",1\n".join([*ALL, ""]).encode(),
    "a.jsonl.gz": gzip.compress(jsonl(LONG), 0),
    "a.txt": "\n".join(ALL).encode(),
}
CUT = ("a.jsonl", "a.parquet", "a.arrow")


def whole(tmp_path: Path, name: str) -> Split:
    (split,) = splits_of(put(tmp_path / name, FILES[name]))
    return split


@pytest.mark.parametrize("name", FILES)
def test_parts_hold_every_record_once_and_about_what_was_asked(tmp_path: Path, name: str) -> None:
    split = whole(tmp_path, name)
    size = split.file_size
    assert cut_files([split], size) == [split]
    assert (cut_files([split], size - 1) == [split]) == (name not in CUT)
    everything = list(read_split(split))
    for split_bytes in (size // 2, size // 4):
        parts = cut_files([split, split], split_bytes)
        assert parts[: len(parts) // 2] == parts[len(parts) // 2 :]
        parts = parts[: len(parts) // 2]
        wanted = -(-size // split_bytes) if name in CUT else 1
        assert wanted - 1 <= len(parts) <= wanted + 1
        assert [item.text for of in parts for item in read_split(of)] == [
            x.text for x in everything
        ]
        assert [of.start for of in parts[1:]] == [of.stop for of in parts[:-1]]


def test_row_groups_share_the_bytes_of_their_file(tmp_path: Path) -> None:
    sizes = row_group_sizes(whole(tmp_path, "a.parquet"))
    assert len(sizes) == 10 and max(sizes) <= 1.1 * min(sizes)
    assert len(FILES["a.parquet"]) - 10 <= sum(sizes) <= len(FILES["a.parquet"])
    (broken,) = splits_of(put(tmp_path / "broken" / "a.parquet", b"PAR1" * 9))
    assert row_group_sizes(broken) == []
    assert cut_files([broken], 1) == [broken]


@pytest.mark.parametrize("name", FILES)
def test_a_sample_is_about_so_many_bytes_and_says_what_it_stands_for(
    tmp_path: Path, name: str
) -> None:
    split = whole(tmp_path, name)
    size = split.file_size
    with sample_part(split, size) as (part, stands_for):
        assert (part, stands_for) == (split, size)
    budget = size // 4
    with sample_part(split, budget) as (part, stands_for):
        items = list(read_split(part))
        found = texts(items)
    if name == "stream.arrow":  # which is read from its start alone
        assert (part, stands_for, found) == (split, size, ALL)
        return
    assert budget <= stands_for < budget + size // 8
    if name == "a.txt":
        assert found == ["\n".join(ALL)[:budget]]
        return
    assert found == [text for text in ALL if text in {*found}]  # a run of them, in order
    places = [ALL.index(text) for text in found]
    assert places == list(range(places[0], places[0] + len(places)))
    assert abs(len(found) - len(ALL) * stands_for / size) <= 2
    assert len(items) - len(found) <= 1  # of what is cut off, one bad record
    if name not in CUT:
        assert places[0] == 0 and not Path(part.path).exists()  # the head, in a file that is gone


@pytest.mark.parametrize("name", CUT)
def test_samples_of_different_files_begin_at_different_places(tmp_path: Path, name: str) -> None:
    split = whole(tmp_path, name)
    starts = set()
    for i in range(40):
        drawn = replace(split, category=f"c{i}")
        with sample_part(drawn, split.file_size // 4) as (part, _):
            starts.add(part.start)
            assert part.stop is not None and 0 <= part.start < part.stop
            assert part.stop <= (split.file_size if name == "a.jsonl" else 10)
        with sample_part(drawn, split.file_size // 4) as (again, _):
            assert again == part  # drawn by the file alone
    assert len(starts) > (30 if name == "a.jsonl" else 5)
    with sample_part(split, split.file_size - 1) as (part, _):
        assert part.start == 0
