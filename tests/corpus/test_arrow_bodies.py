"""Where messages and compressed buffers lie in Arrow files, against what pyarrow itself reads there."""

from __future__ import annotations

import io
import struct

import pyarrow as pa
import pyarrow.ipc
import pytest

from longattn.corpus.arrow_bodies import DICTIONARY, RECORDS, blocks, bodies_from, body_at
from tests.corpus.files import TEXTS

WORDS = pa.array(["one", "two", None, "one"] * 10).dictionary_encode()
TABLE = pa.table({"n": range(40), "text": TEXTS, "word": WORDS, "none": pa.nulls(40)})


def written(stream: bool, compression: str | None, **options: object) -> bytes:
    sink = io.BytesIO()
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    how = pa.ipc.IpcWriteOptions(compression=compression, **options)
    with new(sink, TABLE.schema, options=how) as writer:
        writer.write_table(TABLE, max_chunksize=15)
    return sink.getvalue()


def unpacked(body: pa.Buffer, place: int) -> int:
    return int(struct.unpack_from("<q", body, place)[0])


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("legacy", [False, True])
def test_bodies_of_a_stream_are_those_that_pyarrow_reads(
    compression: str | None, legacy: bool
) -> None:
    data = written(True, compression, use_legacy_format=legacy)
    reader, start, kinds = io.BytesIO(data), 0, []
    opened = pa.ipc.MessageReader.open_stream(pa.BufferReader(data))
    while body := body_at(reader, start):
        message = opened.read_next_message()
        assert {1: "schema", 2: "dictionary", 3: "record batch"}[body.kind] == message.type
        held = message.body
        assert body.size == (held.size if held is not None else 0)
        assert data[body.stop - body.size : body.stop] == (bytes(held) if held is not None else b"")
        assert bool(body.buffers) == (compression is not None and body.kind != 1)
        for place in body.buffers:  # each begins with its length, -1 where it is stored as it is
            length = unpacked(held, place - (body.stop - body.size))
            assert length == -1 or 0 < length < 4000
        kinds.append(body.kind)
        start = body.stop
    with pytest.raises(StopIteration):
        opened.read_next_message()
    assert kinds == [1, DICTIONARY, RECORDS, RECORDS, RECORDS]
    to_the_first = [body.kind for body in bodies_from(reader, 0)]
    assert to_the_first == kinds[:3]
    second = list(bodies_from(io.BytesIO(data), body_stop(data, 3)))
    assert [body.kind for body in second] == [RECORDS]


def body_stop(data: bytes, messages: int) -> int:
    stop = 0
    for _ in range(messages):
        body = body_at(io.BytesIO(data), stop)
        assert body is not None
        stop = body.stop
    return stop


def test_unpacked_lengths_are_those_of_the_buffers() -> None:
    data = written(True, "zstd")
    *_, body = bodies_from(io.BytesIO(data), 0)
    lengths = [int.from_bytes(data[at : at + 8], "little", signed=True) for at in body.buffers]
    text = sum(len(value.encode()) for value in TEXTS[:15])
    assert any(text <= length < text + 64 for length in lengths)  # padded to 64 bytes
    assert 4 * 16 in lengths and 8 * 15 in lengths  # offsets of 15 texts, and the numbers


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_blocks_of_a_file_are_its_messages(compression: str | None) -> None:
    data = written(False, compression)
    dictionaries, records = blocks(io.BytesIO(data), len(data))
    assert (len(dictionaries), len(records)) == (1, 3)
    for kind, starts in ((DICTIONARY, dictionaries), (RECORDS, records)):
        for start in starts:
            body = body_at(io.BytesIO(data), start)
            assert body is not None and body.kind == kind
    opened = pa.ipc.open_file(data)
    message = pa.ipc.read_message(pa.BufferReader(data[records[1] :]))
    assert len(opened.get_batch(1)) == 15 and message.type == "record batch"


@pytest.mark.parametrize("size", [0, 4, 9, 10, 11, 100])
def test_a_file_without_a_footer_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"its (footer|metadata) is broken"):
        blocks(io.BytesIO(bytes(size)), size)
    data = written(False, None)
    for length in (-1, 0, len(data) - 9, 1 << 30):
        changed = data[:-10] + struct.pack("<i", length) + data[-6:]
        with pytest.raises(ValueError, match="its footer is broken"):
            blocks(io.BytesIO(changed), len(changed))


def test_what_is_no_message_is_none_or_refused() -> None:
    for data in (b"", b"\xff" * 7, b"\xff" * 4 + bytes(4), bytes(8)):
        assert body_at(io.BytesIO(data), 0) is None  # the end, or the mark of one
    with pytest.raises(ValueError, match="its footer is broken"):
        body_at(io.BytesIO(bytes(8)), -1)
    negative = b"\xff" * 4 + struct.pack("<i", -8)
    cut = written(True, None)[:20]
    for data in (negative, cut, b"\xff" * 4 + struct.pack("<i", 8) + b"\xff" * 8):
        with pytest.raises(ValueError, match="its metadata is broken"):
            body_at(io.BytesIO(data), 0)
