"""Archives of every kind, and files that are not what their name says."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pyarrow.feather
import pytest

from longattn.corpus import records
from longattn.corpus.archives import FEED
from longattn.corpus.records import BadRecord
from tests.corpus.files import ROWS, TEXTS, jsonl, parquet, put, read, reasons, texts, zstd

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
DATA = {
    ".jsonl": jsonl(ROWS),
    ".json": json.dumps(ROWS).encode(),
    ".ndjson": jsonl(ROWS),
    ".csv": b"text,n\n" + b"".join(f"{t},1\n".encode() for t in TEXTS),
    ".tsv": b"n\ttext\n" + b"".join(f"1\t{t}\n".encode() for t in TEXTS),
}


@pytest.mark.parametrize("pack", PACK)
@pytest.mark.parametrize("suffix", DATA)
def test_every_text_format_is_read_from_every_archive(
    tmp_path: Path, suffix: str, pack: str
) -> None:
    assert texts(read(put(tmp_path / f"a{suffix}", DATA[suffix]))) == TEXTS
    file = put(tmp_path / f"a{suffix}{pack}", PACK[pack](DATA[suffix]))
    assert texts(read(file)) == TEXTS
    with patch.object(records, "CHUNK", 5):
        assert texts(read(file)) == TEXTS


@pytest.mark.parametrize("pack", PACK)
def test_members_follow_each_other(tmp_path: Path, pack: str) -> None:
    data = jsonl(ROWS)
    cuts = [*range(0, len(data), 101), len(data)]
    members = [PACK[pack](data[a:b]) for a, b in pairwise(cuts)]
    for chunk in (1, 13, 1 << 20):
        with patch.object(records, "CHUNK", chunk):
            assert texts(read(put(tmp_path / f"a.jsonl{pack}", b"".join(members)))) == TEXTS


@pytest.mark.parametrize("zeros", [1, 511, FEED["gzip"], 3 * FEED["gzip"] + 1])
def test_a_gzip_padded_with_zeros(tmp_path: Path, zeros: int) -> None:
    half = len(jsonl(ROWS[:20]))
    parts = [gzip.compress(jsonl(ROWS)[:half]), gzip.compress(jsonl(ROWS)[half:])]
    for data in (parts[0] + parts[1] + bytes(zeros), parts[0] + bytes(zeros) + parts[1]):
        assert texts(read(put(tmp_path / "a.jsonl.gz", data))) == TEXTS
    items = read(put(tmp_path / "b.jsonl.gz", parts[0] + bytes(zeros) + b"x"))
    assert (texts(items), reasons(items)) == (TEXTS[:20], ["truncated_archive"])


def test_an_xz_padded_with_zeros(tmp_path: Path) -> None:
    packed = lzma.compress(jsonl(ROWS[:20])) + bytes(8) + lzma.compress(jsonl(ROWS[20:])) + bytes(4)
    assert texts(read(put(tmp_path / "a.jsonl.xz", packed))) == TEXTS


@pytest.mark.parametrize("pack", PACK)
def test_a_broken_archive_keeps_the_rows_before(tmp_path: Path, pack: str) -> None:
    first, second = PACK[pack](jsonl(ROWS[:20])), PACK[pack](jsonl(ROWS[20:]))
    for data in (
        first + second[: len(second) // 2],
        first + second[:8],
        first + second + b"trailing garbage",
    ):
        items = read(put(tmp_path / f"a.jsonl{pack}", data))
        assert texts(items)[:20] == TEXTS[:20]
        assert reasons(items) == ["truncated_archive"]
    items = read(put(tmp_path / f"b.jsonl{pack}", b"no archive at all"))
    assert reasons(items) == ["truncated_archive"]


@pytest.mark.parametrize("pack", [".bz2", ".xz"])
def test_a_bomb_is_held_to_the_cap(tmp_path: Path, pack: str) -> None:
    packer = bz2.BZ2Compressor() if pack == ".bz2" else lzma.LZMACompressor()
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    file = put(tmp_path / f"a.jsonl{pack}", packed)
    tracemalloc.start()
    items = read(file, max_record_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(items) == ["over_size_cap"]
    assert f"{64 << 20} bytes" in items[0].detail  # type: ignore[union-attr]
    assert peak < 40 << 20


# ------------------------------------------------------------------------------ under another name


def arrow_file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.feather.write_feather(table, sink)
    return sink.getvalue()


TABLE = pa.table({"text": TEXTS})
IS = {
    "plain": jsonl(ROWS),
    "array": json.dumps(ROWS).encode(),
    **{pack: pack_it(jsonl(ROWS)) for pack, pack_it in PACK.items()},
    "parquet": parquet(TABLE),
    "arrow": arrow_file(TABLE),
    "utf-16": jsonl(ROWS).decode().encode("utf-16"),
    "utf-32": jsonl(ROWS).decode().encode("utf-32"),
    **{
        name: json.dumps(ROWS).encode(name)
        for name in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
    },
    "utf-16 in gzip": gzip.compress(jsonl(ROWS).decode().encode("utf-16")),
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.zst", "a.ndjson.xz"])
@pytest.mark.parametrize("content", IS)
def test_a_file_is_what_its_bytes_say(tmp_path: Path, name: str, content: str) -> None:
    file = put(tmp_path / name, IS[content])
    for split_bytes in (1 << 28, 500):
        assert texts(read(file, split_bytes=split_bytes)) == TEXTS
    with patch.object(records, "CHUNK", 16):
        assert texts(read(file)) == TEXTS


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("content", ["parquet", "arrow", ".gz", ".zst"])
def test_a_table_is_what_its_bytes_say(tmp_path: Path, name: str, content: str) -> None:
    assert texts(read(put(tmp_path / name, IS[content]))) == TEXTS


def test_other_kinds_are_named(tmp_path: Path) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.jsonl", jsonl(ROWS))
    kinds = {
        "a zip archive": zipped.getvalue(),
        "a PDF": b"%PDF-1.7\n" + bytes(100),
        "a Git LFS pointer: the file itself is not here": b"version https://git-lfs.github.com/spec/v1\n",
        "parquet within gzip": gzip.compress(parquet(TABLE)),
        "gzip within gzip": gzip.compress(gzip.compress(jsonl(ROWS))),
    }
    for why, data in kinds.items():
        (bad,) = read(put(tmp_path / "a.jsonl", data))
        assert isinstance(bad, BadRecord)
        assert (bad.reason, bad.detail, bad.lost_bytes) == ("unreadable", why, len(data))
    (bad,) = read(
        put(tmp_path / "a.parquet", kinds["a Git LFS pointer: the file itself is not here"])
    )
    assert isinstance(bad, BadRecord) and bad.detail.startswith("a Git LFS pointer")


def test_half_a_utf16_character_costs_its_record(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', '{"text": "\ud800"}', '{"text": "b"}']
    data = b"\xff\xfe" + "\n".join(lines).encode("utf-16-le", "surrogatepass")
    items = read(put(tmp_path / "a.jsonl", data))
    assert (texts(items), reasons(items)) == (["a", "b"], ["bad_utf8"])
    items = read(put(tmp_path / "a.jsonl", data[:-1]))
    assert texts(items) == ["a"]
    assert reasons(items)[-1] == "truncated_archive"
