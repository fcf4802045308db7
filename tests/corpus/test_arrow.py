"""Arrow IPC files in both formats, against the table that was written."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pytest

from longattn.corpus.first_look import check_sources
from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Reason, Record
from longattn.corpus.sources import list_splits
from tests.corpus.files import TEXTS, Source, put, read, reasons, splits_of, texts
from tests.examples import examples

TABLE = pa.table({"n": range(40), "text": TEXTS, "data": [{"content": t, "x": 1} for t in TEXTS]})


def arrow(
    table: pa.Table, rows: int = 7, *, stream: bool = False, compression: str | None = None
) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
def test_both_formats(tmp_path: Path, name: str, stream: bool, compression: str | None) -> None:
    file = put(tmp_path / name, arrow(TABLE, stream=stream, compression=compression))
    items = read(file)
    assert texts(items) == TEXTS
    assert [item.position for item in items] == list(range(40))
    splits = splits_of(file, split_bytes=file.stat().st_size // 3)
    assert len(splits) == (1 if stream else 3) or (not stream and len(splits) in (2, 4))
    assert texts([item for split in splits for item in read_split(split)]) == TEXTS


def test_files_of_pyarrow_feather(tmp_path: Path) -> None:
    pa.feather.write_feather(TABLE, str(tmp_path / "a.feather"))
    assert texts(read(tmp_path / "a.feather")) == TEXTS


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_column_types(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([*TEXTS, None, ""])
    if kind == pa.string_view():
        column = pa.array(values.to_pylist(), kind)
    else:
        column = values.dictionary_encode() if "dict" in str(kind) else values.cast(kind)
    items = read(put(tmp_path / "a.arrow", arrow(pa.table({"text": column}), rows=100)))
    assert texts(items) == [*TEXTS, ""]
    assert items[40] == BadRecord(40, Reason.NOT_A_STRING, "null")


def test_nested_text(tmp_path: Path) -> None:
    file = str(put(tmp_path / "a.arrow", arrow(TABLE)))
    (split,) = list_splits([Source(file, text_column="data.content")])
    check_sources([split])
    assert texts(list(read_split(split))) == TEXTS
    (split,) = list_splits([Source(file, text_column="data.none")])
    with pytest.raises(ValueError, match="its columns are 'n', 'text', 'data'"):
        check_sources([split])
    items = list(read_split(split))
    assert sum(item.records for item in items if isinstance(item, BadRecord)) == 40


def test_values_that_cannot_be_used(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff", b"x" * 1001, b"end"], pa.binary())
    text = pa.StringArray.from_buffers(4, bad.buffers()[1], bad.buffers()[2])
    for column in (bad, text):
        items = read(
            put(tmp_path / "a.arrow", arrow(pa.table({"text": column}))), max_record_bytes=1000
        )
        assert [x.text if isinstance(x, Record) else x.reason for x in items] == [
            "good",
            Reason.BAD_UTF8,
            Reason.OVER_SIZE_CAP,
            "end",
        ]


def test_a_truncated_file_or_stream(tmp_path: Path) -> None:
    whole = arrow(TABLE)
    items = read(put(tmp_path / "a.arrow", whole[:-20]))
    assert reasons(items) == ["unreadable"]
    assert items[0].lost_bytes == len(whole) - 20  # type: ignore[union-attr]
    whole = arrow(TABLE, stream=True)
    items = read(put(tmp_path / "a.arrow", whole[: len(whole) * 2 // 3]))
    assert 7 <= len(texts(items)) < 40
    assert texts(items) == TEXTS[: len(texts(items))]
    assert reasons(items) == ["unreadable"]
    assert reasons(read(put(tmp_path / "a.feather", b"FEA1" + bytes(100)))) == ["unreadable"]


def test_only_the_wanted_columns_are_held(tmp_path: Path) -> None:
    wide = pa.table({"text": TEXTS, "pad": [os.urandom(1 << 20) for _ in TEXTS]})
    file = put(tmp_path / "a.arrow", arrow(wide, rows=100))
    del wide
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    assert texts(read(file)) == TEXTS
    assert pa.total_allocated_bytes() - before < 10 << 20
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


FLIPS = """
import random, sys
from pathlib import Path
from types import SimpleNamespace
from longattn.corpus.reading import read_split
from longattn.corpus.sources import list_splits

good, file = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
draw = random.Random(7)
for _ in range(int(sys.argv[3])):
    data = bytearray(good)
    for _ in range(draw.choice([1, 1, 3])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)
    for column in ("text", "word"):
        source = SimpleNamespace(category="c", path=str(file), text_column=column)
        for split in list_splits([source], split_bytes=400):
            list(read_split(split))
"""


@pytest.mark.parametrize("stream", [False, True])
def test_no_wrong_bit_ends_the_process(tmp_path: Path, stream: bool) -> None:
    words = pa.array(["a", "b", "a", None] * 10).dictionary_encode()
    table = pa.table({"text": TEXTS, "word": words})
    good = put(tmp_path / "good.arrow", arrow(table, stream=stream))
    command = [sys.executable, "-c", FLIPS, good, tmp_path / "a.arrow", examples(100)]
    subprocess.run([str(part) for part in command], check=True, timeout=200)
