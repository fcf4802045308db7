"""Listing, cutting, reading and quarantine of corpora, against plain Python as the truth."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longattn.corpus import parquet as parquet_reader
from longattn.corpus import reading, records
from longattn.corpus.content import Content, content_of
from longattn.corpus.first_look import check_sources
from longattn.corpus.json_values import json_layout
from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Reason, Record, Split
from longattn.corpus.sources import group_splits, list_splits
from tests.corpus.files import (
    ROWS,
    TEXTS,
    Source,
    jsonl,
    names,
    parquet,
    put,
    read,
    reasons,
    splits_of,
    texts,
    zstd,
)
from tests.examples import examples
from tests.s3 import moto_server

# ---------------------------------------------------------------------------------------- listing


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders with good names, hard names, and names that are not data."""
    good = ["a.jsonl", "b.jsonl.gz", "en/c.jsonl.zst", "en/deep/d.parquet", "fr/e.JSON.GZ"]
    other = ["README.md", "_SUCCESS", "_temporary/x.jsonl", ".hidden.jsonl", "en/notes.txt"]
    for name in good + other:
        put(tmp_path / "data" / name, b"")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", "a.jsonl b.jsonl.gz c.jsonl.zst d.parquet e.JSON.GZ"),
        ("/", "a.jsonl b.jsonl.gz c.jsonl.zst d.parquet e.JSON.GZ"),
        ("/**", "a.jsonl b.jsonl.gz c.jsonl.zst d.parquet e.JSON.GZ"),
        ("/a.jsonl", "a.jsonl"),
        ("/*.jsonl*", "a.jsonl b.jsonl.gz"),
        ("/*/*.jsonl.zst", "c.jsonl.zst"),
        ("/**/*.parquet", "d.parquet"),
        ("/**/deep", "d.parquet"),
        ("/**/[a-c].jsonl*", "a.jsonl b.jsonl.gz c.jsonl.zst"),
        ("/{en,fr}", "c.jsonl.zst d.parquet e.JSON.GZ"),
        ("/{a,{b,x}}.jsonl{,.gz}", None),
        ("/?r/*", "e.JSON.GZ"),
        ("/e*", "c.jsonl.zst d.parquet"),
        ("/_temporary/*", "x.jsonl"),
        ("/_temporary", "x.jsonl"),
        ("/_*/**/*.jsonl", "x.jsonl"),
        ("/.hid*", ".hidden.jsonl"),
    ],
)
def test_patterns(tree: Path, pattern: str, found: str | None) -> None:
    if found is None:
        with pytest.raises(ValueError, match="matches nothing"):
            splits_of(f"{tree}{pattern}")
        return
    assert sorted(names(splits_of(f"{tree}{pattern}"))) == found.split()


@pytest.mark.parametrize(
    "name", ["two words é 日本.jsonl", "x[1]*?.jsonl", "{a,b}.jsonl", "100%#.jsonl"]
)
def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    put(tmp_path / "odd [dir]" / name, jsonl(ROWS))
    put(tmp_path / "odd [dir]" / "x1abc.jsonl", b"")
    (split,) = splits_of(tmp_path / "odd [dir]" / name)
    assert split.path == str(tmp_path / "odd [dir]" / name)
    assert texts(list(read_split(split))) == TEXTS
    assert len(splits_of(tmp_path / "odd [dir]")) == 2


def test_urls_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = put(tmp_path / "data" / "a.jsonl", jsonl(ROWS))
    monkeypatch.chdir(tmp_path)
    spellings = ["data/a.jsonl", "data", "./data/*", f"file://{file}", f"file://{tmp_path}/*/a.*"]
    assert {splits_of(path)[0] for path in spellings} == {splits_of(file)[0]}
    fsspec.filesystem("memory").pipe("/corpus/x y/a.jsonl", jsonl(ROWS))
    for pattern in ("memory://corpus", "memory://corpus/*/a.jsonl", "memory://corpus/**/*.jsonl"):
        (split,) = splits_of(pattern)
        assert split.path.startswith("memory://")
        assert texts(list(read_split(split))) == TEXTS


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing/*.jsonl", "matches nothing"),
        ("nothing.jsonl", "matches nothing"),
        ("{a,zz}.jsonl", r"zz\.jsonl.*matches nothing"),
        (
            "README.md",
            r"README\.md: suffix not known; did you mean \.txt\? .*; allowed are \.jsonl, ",
        ),
        ("*", r"README\.md: suffix not known"),
        ("text", "holds no file of a known suffix"),
        ("pipe.jsonl", "not a regular file"),
    ],
)
def test_refusals_name_the_pattern(tmp_path: Path, path: str, message: str) -> None:
    for name in ("a.jsonl", "README.md", "text/a.md"):
        put(tmp_path / name, b"")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=message):
        splits_of(tmp_path / path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jsonl")).write_bytes(b"")
    with pytest.raises(ValueError, match="not UTF-8"):
        splits_of(tmp_path)


def test_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "real" / "a.jsonl", b"")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "folder").symlink_to(tmp_path / "real")
    (corpus / "loop").symlink_to(corpus)
    (corpus / "file.jsonl").symlink_to(tmp_path / "real" / "a.jsonl")
    assert names(splits_of(corpus)) == ["file.jsonl", "a.jsonl"]


def test_order_and_duplicates(tree: Path) -> None:
    sources = [Source(str(tree)), Source(f"{tree}/en"), Source(f"{tree}/en", category="again")]
    splits = list_splits(sources)
    assert splits == list_splits(reversed(sources))
    assert [s.category for s in splits] == ["again"] * 2 + ["book"] * 5
    assert len({s.id for s in splits}) == 7


def test_the_id_follows_all_that_decides_what_is_read(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", jsonl(ROWS))
    split = splits_of(file)[0]
    changes = [{"category": "x"}, {"path": "x"}, {"text_column": "x"}, {"start": 1}, {"stop": 1}]
    others = {replace(split, **change).id for change in changes}  # type: ignore[arg-type]
    os.utime(file, ns=(1, 1))
    others.add(splits_of(file)[0].id)
    assert len(others | {split.id}) == 7
    assert split.id == replace(split).id


# -------------------------------------------------------------------------------------- JSON Lines

LINES = [
    (b'{"text": "plain", "n": 1}', "plain"),
    (b'{"n": 1, "text": "' + "u\u2028v\u0085w".encode() + b'"}', "u\u2028v\u0085w"),
    (b'{"text": "crlf"}\r', "crlf"),
    (b'  {"text": "spaces"}\t ', "spaces"),
    (b'{"text": ""}', ""),
    (b'{"text": "\\u0000<|begin_of_text|>\\ud83d\\ude00"}', "\0<|begin_of_text|>\U0001f600"),
    (b'{"text": "first", "text": "last"}', "last"),
    (b'{"text": "nan", "score": NaN, "x": [Infinity, 1e999]}', "nan"),
    (b'{"text": "lone elsewhere", "x": "\\udc00"}', "lone elsewhere"),
    (b'{"text": "lone \\ud800"}', Reason.BAD_UTF8),
    (b'{"text": "\xff"}', Reason.BAD_UTF8),
    (b'{"text": "\xed\xa0\x80"}', Reason.BAD_UTF8),
    (b'{"text": "nul \x00"}', Reason.NOT_JSON),
    (b"\x00\x00\x00", Reason.NOT_JSON),
    (b'{"text": "cut', Reason.NOT_JSON),
    (b'{"text": "two"} {"text": "objects"}', Reason.NOT_JSON),
    (b'\xef\xbb\xbf{"text": "mark not at the start"}', Reason.NOT_JSON),
    (b"[" * 100_000, Reason.NOT_JSON),
    (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", Reason.NOT_JSON),
    (b"x\ty", Reason.NOT_JSON),
    (b'["text"]', Reason.NOT_OBJECT),
    (b'"text"', Reason.NOT_OBJECT),
    (b"null", Reason.NOT_OBJECT),
    (b'{"Text": "a"}', Reason.NO_TEXT_COLUMN),
    (b"{}", Reason.NO_TEXT_COLUMN),
    (b'{"text": null}', Reason.NOT_A_STRING),
    (b'{"text": 1}', Reason.NOT_A_STRING),
    (b'{"text": ["a"]}', Reason.NOT_A_STRING),
    (b'{"text": "' + b"z" * 200_000 + b'"}', Reason.OVER_SIZE_CAP),
]


def test_each_kind_of_line(tmp_path: Path) -> None:
    blanks = [b"", b"\r", b"  \t"]
    lines = [line for line, _ in LINES]
    data = b"\xef\xbb\xbf" + b"\n".join(blanks + lines + blanks + lines[:1])
    expected = [outcome for _, outcome in LINES] + ["plain"]
    plain = read(put(tmp_path / "a.jsonl", data), max_record_bytes=150_000)
    assert [x.text if isinstance(x, Record) else x.reason for x in plain] == expected
    for item, line in zip(plain, [*lines, lines[0]], strict=True):
        assert data[item.position :].startswith(line)
    for name, packed in (("a.jsonl.gz", gzip.compress(data)), ("a.jsonl.zst", zstd(data))):
        assert read(put(tmp_path / name, packed), max_record_bytes=150_000) == plain


def test_a_byte_order_mark_is_dropped_at_the_start(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + jsonl(ROWS)
    assert texts(read(put(tmp_path / "a.jsonl", data))) == TEXTS
    assert read(put(tmp_path / "b.jsonl", b"\xef\xbb\xbf")) == []


def test_details_are_short_and_printable(tmp_path: Path) -> None:
    rows = [{"\u202e\n" + "k" * 10_000 + str(i): i for i in range(1000)}]
    (bad,) = read(put(tmp_path / "a.jsonl", jsonl(rows)))
    assert isinstance(bad, BadRecord)
    assert len(bad.detail) <= 200
    assert bad.detail.isprintable()


ANY_LINE = st.one_of(
    st.sampled_from([line for line, _ in LINES if len(line) < 100]),
    st.binary(max_size=12),
    st.sampled_from([b"", b"\r", b" "]),
    st.text(max_size=30).map(lambda t: json.dumps({"text": t}).encode()),
)


@settings(max_examples=examples(100), deadline=None)
@given(
    lines=st.lists(ANY_LINE, max_size=12),
    cuts=st.sets(st.integers(0, 400), max_size=6),
    chunk=st.integers(1, 64),
    cap=st.integers(8, 60),
)
def test_every_line_is_read_once_wherever_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    cuts: set[int],
    chunk: int,
    cap: int,
) -> None:
    data = b"\n".join(lines)
    # Else it is read as what its bytes say: an archive, one JSON value.
    assume(content_of(data[:16]) == Content() and json_layout(data) == "lines")
    file = put(tmp_path_factory.getbasetemp() / "cut.jsonl", data)
    whole = splits_of(file)[0]
    expected_positions, position = [], 0
    for line in data.split(b"\n"):
        long = len(line) > cap
        if line.removeprefix(b"\xef\xbb\xbf" if position == 0 else b"").strip() or long:
            expected_positions.append(position)
        position += len(line) + 1
    at_once = list(read_split(whole, max_record_bytes=cap))
    assert [item.position for item in at_once] == expected_positions
    bounds = [0, *sorted(c for c in cuts if 0 < c < len(data)), len(data)]
    with patch.object(records, "CHUNK", chunk), patch.object(records, "TAIL", max(1, chunk // 2)):
        parts = [
            item
            for start, stop in pairwise(bounds)
            for item in read_split(replace(whole, start=start, stop=stop), max_record_bytes=cap)
        ]
    assert parts == at_once


@pytest.mark.parametrize("split_bytes", [1, 7, 100, 1000, 1 << 20])
def test_large_jsonl_is_cut_evenly(tmp_path: Path, split_bytes: int) -> None:
    file = put(tmp_path / "a.jsonl", jsonl(ROWS))
    splits = splits_of(file, split_bytes=split_bytes)
    assert sum(s.size for s in splits) == file.stat().st_size
    assert max(s.size for s in splits) <= split_bytes
    assert texts([item for split in splits for item in read_split(split)]) == TEXTS


def test_a_line_over_the_cap_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    line = b'{"text": "' + b"x" * (1 << 20) * 100 + b'"}\n'
    for name, data in (("a.jsonl", line), ("a.jsonl.gz", gzip.compress(line, 1))):
        file = put(tmp_path / name, data + (jsonl(ROWS) if name == "a.jsonl" else b""))
        tracemalloc.start()
        items = read(file, max_record_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reasons(items) == ["over_size_cap"]
        assert f"{len(line) - 1} bytes" in items[0].detail  # type: ignore[union-attr]
        assert texts(items) == (TEXTS if name == "a.jsonl" else [])
        assert peak < 40 << 20


# ------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstd)])
def test_archives_of_many_members(tmp_path: Path, suffix: str, pack) -> None:
    data = jsonl(ROWS)
    members = [data[i : i + 101] for i in range(0, len(data), 101)]
    packed = b"".join(pack(member) for member in [b"", *members, b""])
    if suffix == "gz":
        packed += b"\0" * 600
    else:
        packed = b"\x50\x2a\x4d\x18\x04\0\0\0skip" + packed
    file = put(tmp_path / f"a.jsonl.{suffix}", packed)
    assert texts(read(file)) == TEXTS
    for chunk in (1, 13):
        with patch.object(records, "CHUNK", chunk):
            assert texts(read(file)) == TEXTS


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_truncated_archive_keeps_the_rows_before(tmp_path: Path, suffix: str, pack) -> None:
    whole = pack(jsonl(ROWS[:20])) + pack(jsonl(ROWS[20:]))
    first = len(pack(jsonl(ROWS[:20])))
    for length in range(0, len(whole), 3):
        items = read(put(tmp_path / f"a.jsonl.{suffix}", whole[:length]))
        kept = texts(items)
        assert kept == TEXTS[: len(kept)]
        assert len(kept) >= (20 if length >= first else 0)
        if length not in (0, first):
            assert reasons(items) == ["truncated_archive"]
            assert isinstance(items[-1], BadRecord)
            assert items[-1].position <= len(jsonl(ROWS))
    assert kept == TEXTS


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("zst", zstd)])
def test_a_corrupt_archive_keeps_the_rows_before(tmp_path: Path, suffix: str, pack) -> None:
    whole = pack(jsonl(ROWS))
    broken_end = whole[:-1] + bytes([whole[-1] ^ 1])
    trailing = whole + b"garbage"
    for data in (broken_end, trailing):
        items = read(put(tmp_path / f"a.jsonl.{suffix}", data))
        assert (texts(items), reasons(items)) == (TEXTS, ["truncated_archive"])
    items = read(put(tmp_path / f"a.jsonl.{suffix}", b"no archive at all"))
    assert reasons(items) == ["truncated_archive"]


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_bomb_is_held_to_the_cap(tmp_path: Path, suffix: str) -> None:
    size = 256 << 20
    packer = (
        zlib.compressobj(1, wbits=31)
        if suffix == "gz"
        else zstandard.ZstdCompressor().compressobj()
    )
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    file = put(tmp_path / f"a.jsonl.{suffix}", packed)
    tracemalloc.start()
    items = read(file, max_record_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(items) == ["over_size_cap"]
    assert peak < 160 << 20


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(jsonl(ROWS)) + packer.flush()
    with pytest.raises(zstandard.ZstdError):  # beyond what is taken by default
        zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj().decompress(packed)
    assert texts(read(put(tmp_path / "a.jsonl.zst", packed))) == TEXTS


# ---------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_parquet_column_types(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([*TEXTS, None, ""], pa.string())
    if kind == pa.string_view():
        column = pa.array(values.to_pylist(), kind)
    else:
        column = values.dictionary_encode().cast(kind) if "dict" in str(kind) else values.cast(kind)
    file = put(
        tmp_path / "a.parquet",
        parquet(pa.table({"n": range(42), "text": column}), row_group_size=16),
    )
    items = read(file)
    assert texts(items) == [*TEXTS, ""]
    assert [item.position for item in items] == list(range(42))
    assert items[40] == BadRecord(40, Reason.NOT_A_STRING, "null")


def test_parquet_values_that_cannot_be_used(tmp_path: Path) -> None:
    values = [b"good", b"\xff", "é".encode(), b"\xed\xa0\x80", b"x" * 1001, b"end\0"]
    file = put(tmp_path / "a.parquet", parquet(pa.table({"text": pa.array(values, pa.binary())})))
    items = read(file, max_record_bytes=1000)
    assert [x.text if isinstance(x, Record) else x.reason for x in items] == [
        "good",
        Reason.BAD_UTF8,
        "é",
        Reason.BAD_UTF8,
        Reason.OVER_SIZE_CAP,
        "end\0",
    ]


def test_parquet_columns_with_dots_and_structs(tmp_path: Path) -> None:
    table = pa.table({"a": [{"b": "inner"}], "a.b": ["dotted"], "c": [{"d": "nested"}]})
    file = str(put(tmp_path / "a.parquet", parquet(table)))
    for column, outcome in (("a.b", ["dotted"]), ("c.d", ["nested"]), ("c", []), ("c.x", [])):
        splits = list_splits([Source(file, text_column=column)])
        assert texts([x for s in splits for x in read_split(s)]) == outcome


def test_large_parquet_is_cut_into_runs_of_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS, "n": range(40)})
    file = put(tmp_path / "a.parquet", parquet(table, row_group_size=3))
    size = file.stat().st_size
    counts = {}
    for split_bytes in (1, size // 4, size // 2, size):
        splits = splits_of(file, split_bytes=split_bytes)
        counts[split_bytes] = len(splits)
        items = [item for split in splits for item in read_split(split)]
        assert texts(items) == TEXTS
        assert [item.position for item in items] == list(range(40))
    assert counts[1] == 14
    assert 2 <= counts[size // 4] <= 5
    assert counts[size] == 1


@pytest.mark.parametrize("compression", ["none", "snappy"])  # none: only the checksum can tell
def test_a_corrupt_page_costs_the_rest_of_its_row_group(tmp_path: Path, compression: str) -> None:
    long = [f"{i} " * 2000 for i in range(40)]
    data = bytearray(
        parquet(
            pa.table({"text": long}),
            row_group_size=10,
            use_dictionary=False,
            write_page_checksum=True,
            data_page_size=4000,
            write_batch_size=1,
            compression=compression,
        )
    )
    if compression == "none":  # a letter becomes another one
        place = data.index(b"15 15 15 ") + 21
    else:
        group = pq.read_metadata(io.BytesIO(data)).row_group(1).column(0)
        place = group.data_page_offset + group.total_compressed_size // 2 + 20
    data[place] ^= 1
    with patch.object(parquet_reader, "BATCH_ROWS", 1):
        items = read(put(tmp_path / "a.parquet", bytes(data)))
    (bad,) = [item for item in items if isinstance(item, BadRecord)]
    assert bad.reason == Reason.UNREADABLE
    assert 10 < bad.position < 20
    assert texts(items) == long[: bad.position] + long[20:]
    assert f"{20 - bad.position} rows" in bad.detail


def test_a_column_shorter_than_its_row_group_is_reported(tmp_path: Path) -> None:
    file = put(tmp_path / "a.parquet", parquet(pa.table({"text": TEXTS}), row_group_size=20))
    short = pa.record_batch({"text": TEXTS[:5]})
    with patch.object(parquet_reader, "_batches", lambda *_: iter([short])):
        items = read(file)
    assert [item.position for item in items if isinstance(item, BadRecord)] == [5, 25]
    assert reasons(items) == ["unreadable"] * 2


FOOTERS = """
import sys
from types import SimpleNamespace
from pathlib import Path
from longattn.corpus.sources import list_splits
from longattn.corpus.reading import read_split

good, file = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
source = SimpleNamespace(category="c", path=str(file), text_column="text")
for place in range(int(sys.argv[3]), len(good)):
    for bit in (2, 4, 5):
        data = bytearray(good)
        data[place] ^= 1 << bit
        file.write_bytes(data)
        for split in list_splits([source], split_bytes=1):
            list(read_split(split))
"""


def test_no_wrong_bit_in_a_footer_ends_the_process(tmp_path: Path) -> None:
    good = put(tmp_path / "good.parquet", parquet(pa.table({"text": ["a"], "n": [1.0]})))
    data = good.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # Where pyarrow's size statistics lie; the Arrow schema at the footer's end is left out.
    command = [sys.executable, "-c", FOOTERS, good, tmp_path / "a.parquet", footer]
    subprocess.run([str(part) for part in command], check=True, timeout=120)


def test_a_footer_that_contradicts_itself_loses_no_row_unsaid(tmp_path: Path) -> None:
    data = bytearray(FILES["a.parquet"])
    footer = pq.read_metadata(io.BytesIO(data))
    start = len(data) - 8 - footer.serialized_size
    wrong = []
    for at in range(start, len(data) - 8):  # a row group that counts none: thrift's varint of 10
        if data[at] == 20:
            changed = data[:at] + b"\0" + data[at + 1 :]
            with contextlib.suppress(OSError, ValueError):
                found = pq.read_metadata(io.BytesIO(changed))
                counts = [found.row_group(i).num_rows for i in range(found.num_row_groups)]
                if (found.num_rows, sum(counts)) == (40, 30):
                    wrong.append(changed)
    assert len(wrong) == 4
    for changed in wrong:
        for split_bytes in (1, 1 << 30):
            items = read(put(tmp_path / "a.parquet", bytes(changed)), split_bytes=split_bytes)
            assert reasons(items) == ["unreadable"]
            assert items[0].detail == "its footer counts 40 rows, its row groups 30"


@pytest.mark.parametrize("data", [b"PAR1", b"x" * 100, b"PAR1" + b"\0" * 50 + b"\xff\0\0\0PAR1"])
def test_a_parquet_file_without_a_footer(tmp_path: Path, data: bytes) -> None:
    file = put(tmp_path / "a.parquet", data)
    assert reasons(read(file)) == ["unreadable"]
    assert reasons(read(file, split_bytes=1)) == ["unreadable"]
    check_sources(splits_of(file))


def test_parquet_without_the_column_is_reported_by_row_group(tmp_path: Path) -> None:
    file = str(put(tmp_path / "a.parquet", parquet(pa.table({"n": range(40)}), row_group_size=16)))
    for column, reason in (("text", "no_text_column"), ("n", "not_a_string")):
        items = [x for s in list_splits([Source(file, text_column=column)]) for x in read_split(s)]
        assert reasons(items) == [reason] * 3
        assert [item.position for item in items] == [0, 16, 32]
        assert items[2].detail.startswith("8 rows: ")  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------- storage errors


class Flaky(io.BytesIO):
    """Fails after so many reads, as the network does; counts and measures what is read."""

    def __init__(self, data: bytes, reads: int, error: Exception | None) -> None:
        super().__init__(data)
        self.reads, self.error, self.count, self.largest = reads, error, 0, 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads -= 1
        if self.reads < 0 and self.error:
            raise self.error
        if self.reads < 0:
            return b""
        data = super().read(size)
        self.count += len(data)
        self.largest = max(self.largest, len(data))
        return data


class ClientError(Exception):
    """What an object store's client may raise."""


FILES = {
    "a.jsonl": jsonl(ROWS),
    "a.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "a.jsonl.zst": zstd(jsonl(ROWS)),
    "a.parquet": parquet(pa.table({"text": TEXTS, "pad": ["p" * 5000] * 40}), row_group_size=10),
}


@pytest.mark.parametrize(
    "error", [OSError("reset"), TimeoutError("slow"), ClientError("odd"), None]
)
@pytest.mark.parametrize("name", FILES)
def test_a_storage_error_is_not_a_bad_record(
    tmp_path: Path, name: str, error: Exception | None
) -> None:
    (split,) = splits_of(put(tmp_path / name, FILES[name]))
    flaky = Flaky(FILES[name], 3, error)
    with (
        patch.object(records, "CHUNK", 64),
        patch("fsspec.implementations.local.LocalFileSystem.open", return_value=flaky),
        pytest.raises(OSError, match=f"{error}" if error else "bytes|ends at"),
    ):
        list(read_split(split))


def test_only_the_text_column_is_fetched(tmp_path: Path) -> None:
    pad = [os.urandom(20_000).hex() for _ in range(40)]
    data = parquet(pa.table({"pad": pad, "text": TEXTS, "more": pad}), row_group_size=10)
    (split,) = splits_of(put(tmp_path / "a.parquet", data))
    file = Flaky(data, 1 << 30, None)
    with patch("fsspec.implementations.local.LocalFileSystem.open", return_value=file):
        assert texts(list(read_split(split))) == TEXTS
    assert len(data) > 1_500_000
    assert file.count < 100_000


def test_a_large_parquet_column_comes_in_small_reads(tmp_path: Path) -> None:
    long = [os.urandom(10_000).hex() for _ in range(100)]
    options = {"use_dictionary": False, "data_page_size": 20_000, "write_batch_size": 1}
    data = parquet(pa.table({"text": long}), **options)
    (split,) = splits_of(put(tmp_path / "a.parquet", data))
    file = Flaky(data, 1 << 30, None)
    with (
        patch.object(parquet_reader, "CHUNK", 50_000),
        patch("fsspec.implementations.local.LocalFileSystem.open", return_value=file),
    ):
        assert texts(list(read_split(split))) == long
    assert file.largest < 150_000 < len(data) // 6


def test_a_split_within_a_line_does_not_read_the_line(tmp_path: Path) -> None:
    data = jsonl([{"text": "x" * 1_000_000}])
    whole = splits_of(put(tmp_path / "a.jsonl", data))[0]
    file = Flaky(data, 1 << 30, None)
    with (
        patch.object(records, "TAIL", 1000),
        patch("fsspec.implementations.local.LocalFileSystem.open", return_value=file),
    ):
        assert list(read_split(replace(whole, start=100, stop=5000))) == []
    assert file.count < 10_000


def test_a_file_that_changed_or_vanished(tmp_path: Path) -> None:
    for name, data in FILES.items():
        file = put(tmp_path / name, data)
        (split,) = splits_of(file)
        file.write_bytes(data + b"\n")
        with pytest.raises(
            ValueError, match=f"{name}: changed since it was listed: {len(data)} bytes"
        ):
            list(read_split(split))
        file.unlink()
        with pytest.raises(FileNotFoundError, match=name):
            list(read_split(split))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_local_file_written_over_while_it_is_read_gives_no_mixture(tmp_path: Path, name) -> None:
    def content(word: str) -> bytes:
        rows = [{"text": f"{word} {i:04}" * 50} for i in range(1000)]
        if name == "a.jsonl":
            return jsonl(rows)
        return parquet(pa.Table.from_pylist(rows), row_group_size=50, compression="none")

    file = put(tmp_path / name, content("old"))
    (split,) = splits_of(file)
    given = []
    with patch.object(records, "CHUNK", 20_000):
        reader = read_split(split)
        given.append(next(reader))
        with file.open("r+b") as again:
            again.write(content("new"))
        with pytest.raises(ValueError, match=f"{name}: changed since it was listed"):
            given.extend(reader)
    assert all(text.startswith("old") and "new" not in text for text in texts(given))
    assert len(texts(given)) == len(given) < 1000
    with file.open("r+b") as again:
        again.truncate(100_000)
    with pytest.raises(ValueError, match="then, 100000"):
        list(read_split(split))


def test_what_is_lost_is_told_in_records_or_in_bytes(tmp_path: Path) -> None:
    def lost(path: Path) -> tuple[int, int]:
        (bad,) = [item for item in read(path) if isinstance(item, BadRecord)]
        return bad.records, bad.lost_bytes

    table = pa.table({"other": TEXTS})
    assert lost(put(tmp_path / "a.parquet", parquet(table))) == (len(TEXTS), 0)
    assert lost(put(tmp_path / "b.parquet", b"PAR1" * 100)) == (1, 400)
    for suffix, pack in (("gz", gzip.compress), ("zst", zstd)):
        packed = pack(os.urandom(1000).hex().encode() * 50) + b"\xff" * 5000
        records_of, stored = lost(put(tmp_path / f"a.jsonl.{suffix}", packed))
        assert records_of == 1 and 4900 <= stored <= 5000
        assert lost(put(tmp_path / f"b.jsonl.{suffix}", pack(jsonl(ROWS))[:-20])) == (1, 0)


# ------------------------------------------------------------------------------------------ checks


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "j" / "a.jsonl", b"oops\n" + jsonl([{"content": "x", "id": 1}]))
    put(tmp_path / "p" / "a.parquet", parquet(pa.table({"content": ["x"], "id": [1]})))
    put(tmp_path / "z" / "a.jsonl.gz", gzip.compress(jsonl([{"content": None}, {"content": "x"}])))
    for folder in ("j", "p"):
        splits = splits_of(tmp_path / folder)
        with pytest.raises(ValueError, match=r"/a\.\w+: .*'text': its columns are 'content', 'id'"):
            check_sources(splits)
        with pytest.raises(ValueError, match="'id': int"):
            check_sources([replace(split, text_column="id") for split in splits])
    check_sources([replace(split, text_column="content") for split in splits_of(tmp_path)])


def test_every_folder_is_checked(tmp_path: Path) -> None:
    put(tmp_path / "a" / "x.jsonl", jsonl(ROWS))
    put(tmp_path / "b" / "x.jsonl", jsonl([{"body": "x"}]))
    with pytest.raises(ValueError, match=r"b/x\.jsonl: no text in column 'text'.*'body'"):
        check_sources(splits_of(tmp_path))


# ------------------------------------------------------------------------------------------- tasks


def split_of(category: str, size: int) -> Split:
    return Split(category, "x", "text", "jsonl", None, 0, size, size, "v")


@given(
    sizes=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=60),
    target=st.integers(1, 40),
    most=st.integers(1, 8),
)
def test_tasks(sizes: list[tuple[str, int]], target: int, most: int) -> None:
    splits = [split_of(category, size) for category, size in sorted(sizes)]
    tasks = group_splits(splits, target_bytes=target, max_files=most)
    assert [split for task in tasks for split in task] == splits
    for task in tasks:
        assert len({split.category for split in task}) == 1
        assert 1 <= len(task) <= most
        assert len(task) == 1 or sum(split.size for split in task) <= target
    for left, right in pairwise(tasks):  # none could have been fuller
        joined = [*left, right[0]]
        assert (
            left[0].category != right[0].category
            or len(joined) > most
            or sum(split.size for split in left) >= target
            or sum(split.size for split in joined) > target
        )


def test_many_tiny_files_make_few_tasks() -> None:
    assert len(group_splits([split_of("a", 4000)] * 100_000)) == 100


# --------------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def bucket():
    with moto_server("corpora"):
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        for name, data in FILES.items():
            client.put_object(Bucket="corpora", Key=f"book é/deep/{name}", Body=data)
        client.put_object(Bucket="corpora", Key="book é/", Body=b"")
        client.put_object(Bucket="corpora", Key="book é/README.md", Body=b"x")
        client.put_object(Bucket="corpora", Key="book é/_SUCCESS", Body=b"")
        yield client
        s3fs.S3FileSystem.clear_instance_cache()


def test_s3_listing(bucket) -> None:
    patterns = [
        "book é",
        "book é/",
        "*/deep",
        "book é/*/a.*",
        "**/a.*",
        "book é/deep/{a.*,a.jsonl}",
    ]
    for pattern in patterns:
        splits = splits_of(f"s3://corpora/{pattern}")
        assert [s.path for s in splits] == [f"s3://corpora/book é/deep/{n}" for n in sorted(FILES)]
        assert [s.file_size for s in splits] == [len(FILES[n]) for n in sorted(FILES)]
    with pytest.raises(ValueError, match="matches nothing"):
        splits_of("s3://corpora/none/*.jsonl")
    with pytest.raises(ValueError, match="matches nothing"):
        splits_of("s3://no-such-bucket/x.jsonl")
    with pytest.raises(ValueError, match=r"README\.md: suffix not known"):
        splits_of("s3://corpora/book é/*")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("split_bytes", [1 << 28, 200])
def test_s3_reading(bucket, name: str, split_bytes: int) -> None:
    url = f"s3://corpora/book é/deep/{name}"
    assert texts(read(url, split_bytes=split_bytes)) == TEXTS
    splits = splits_of(url, split_bytes=split_bytes)
    check_sources(splits)
    assert len(splits) == 1 or name in ("a.jsonl", "a.parquet")
    if name == "a.jsonl" and split_bytes == 200:
        assert len(splits) > 5


def test_s3_object_that_changed(bucket) -> None:
    bucket.put_object(Bucket="corpora", Key="change/a.jsonl", Body=jsonl(ROWS))
    (split,) = splits_of("s3://corpora/change/")
    with patch.object(records, "CHUNK", 100), patch.object(reading, "LAYOUT_BYTES", 100):
        reader = read_split(split)
        next(reader)
        bucket.put_object(Bucket="corpora", Key="change/a.jsonl", Body=jsonl(ROWS[::-1]))
        with pytest.raises(OSError, match="change"):
            list(reader)
    with pytest.raises(ValueError, match="changed since it was listed"):
        list(read_split(split))


# -------------------------------------------------------------------------------------------- fuzz


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", FILES)
def test_no_bytes_raise_or_vanish(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    good = FILES[name]
    places = st.integers(0, len(good))
    edits = st.tuples(places, st.binary(max_size=4))
    content = data.draw(
        st.binary(max_size=200)
        | st.lists(ANY_LINE, max_size=8).map(b"\n".join)
        | edits.map(lambda e: good[: e[0]] + e[1] + good[e[0] + len(e[1]) :])
        | places.map(lambda n: good[:n])
    )
    items = read(put(tmp_path_factory.getbasetemp() / f"fuzz-{name}", content))
    if not content:
        assert items == []
        return
    for text in texts(items):
        text.encode()
    other = content_of(content[:16]) != Content()  # it is read as what its bytes say
    first = content.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].strip()
    if name == "a.jsonl" and (other or (first[:1] in (b"{", b"[") and not is_json(first))):
        return
    if name == "a.jsonl":
        lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert len(items) == sum(bool(line.strip()) for line in lines)
    elif name == "a.parquet":
        try:
            rows = pq.read_metadata(io.BytesIO(content)).num_rows
        except (OSError, ValueError):  # also of a column name that is not UTF-8
            assert len(items) == 1
            assert other or reasons(items) == ["unreadable"]
            return
        lost = [
            re.search(r"(\d+) rows", item.detail) for item in items if isinstance(item, BadRecord)
        ]
        assert sum(int(match[1]) if match else 1 for match in lost) + len(texts(items)) == rows
    else:
        assert "truncated_archive" not in reasons(items)[:-1]
    if name == "a.jsonl.gz":
        try:
            plain = gzip.decompress(content) if content else None
        except (OSError, EOFError, zlib.error):
            plain = None
        if plain is None and content.lstrip()[:1] not in (b"{", b"[", b"\xef"):
            assert reasons(items)[-1] in ("truncated_archive", *(["unreadable"] if other else []))
        elif plain is not None:
            assert items == read(put(tmp_path_factory.getbasetemp() / "plain.jsonl", plain))
