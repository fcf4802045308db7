"""How many bytes a compressed Arrow message unpacks to, known before pyarrow unpacks it.

An Arrow file is a row of messages, each with metadata and a body. Each buffer of a compressed body begins
with its unpacked length, which pyarrow allocates whatever it says. Where those buffers are stands in the
metadata, a flatbuffer, whose fields are numbered as Message.fbs and File.fbs of Apache Arrow list them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

CONTINUATION = b"\xff\xff\xff\xff"
DICTIONARY, RECORDS = 2, 3  # kinds of messages; 1 is a schema
HEADER_TYPE, HEADER, BODY_LENGTH = 1, 2, 3  # fields of a message
BATCH_OF_DICTIONARY = 1  # field of a dictionary: its values, as a record batch
BUFFERS, COMPRESSION = 2, 3  # fields of a record batch
DICTIONARIES, RECORD_BATCHES = 2, 3  # fields of the footer of a file
EXPERIMENTAL = b"ARROW:experimental_compression"  # where files of 2020 say that they are compressed
END = struct.Struct("<i6s")  # of a file: length of its footer, and its magic


class Body(NamedTuple):
    """Where the body of a message is in a file, and its compressed buffers in it."""

    kind: int
    """`DICTIONARY`, `RECORDS` or another."""
    stop: int
    """The byte after it, where the next message begins."""
    size: int
    buffers: list[int]
    """The places of their first bytes in the file; none where the body is not compressed."""


class _Table(NamedTuple):
    """A table of a flatbuffer: `data` is all of it, the table begins at byte `at`."""

    data: bytes
    at: int

    def place(self, field: int) -> int | None:
        """Where the value of a field is, by the field's number; None where it has none."""
        vtable = self.at - _int(self.data, self.at, "i")
        slot = 4 + 2 * field
        if slot >= _int(self.data, vtable, "H"):
            return None
        offset = _int(self.data, vtable + slot, "H")
        return self.at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        """A number, of a type as `struct` names it; 0 where it is not there."""
        place = self.place(field)
        return 0 if place is None else _int(self.data, place, kind)

    def table(self, field: int) -> _Table | None:
        place = self.place(field)
        return None if place is None else _Table(self.data, place + _int(self.data, place, "I"))

    def structs(self, field: int, form: str) -> Iterator[tuple[Any, ...]]:
        """The items of a vector of structs, each of a form as `struct` has it."""
        place = self.place(field)
        if place is not None:
            place += _int(self.data, place, "I")
            count, size = _int(self.data, place, "I"), struct.calcsize(form)
            yield from struct.iter_unpack(form, _part(self.data, place + 4, count * size))


def _part(data: bytes, start: int, size: int) -> bytes:
    if start < 0 or start + size > len(data):
        raise ValueError("its metadata is broken")
    return data[start : start + size]


def _int(data: bytes, at: int, kind: str) -> int:
    form = f"<{kind}"
    value: int = struct.unpack(form, _part(data, at, struct.calcsize(form)))[0]
    return value


def _root(data: bytes) -> _Table:
    return _Table(data, _int(data, 0, "I"))


def body_at(file: Any, start: int) -> Body | None:
    """The body of the message that begins at a byte; None where none does.

    Raises ValueError where its metadata is broken, OSError as storage does.
    """
    if start < 0:
        raise ValueError("its footer is broken")
    file.seek(start)
    head = file.read(8)
    begin = 8 if head.startswith(CONTINUATION) else 4  # before 2019: the length alone
    if len(head) < 8 or not (size := _int(head, begin - 4, "i")):
        return None
    if size < 0:
        raise ValueError("its metadata is broken")
    file.seek(start + begin)
    data = file.read(size)
    message, body = _root(data), start + begin + size
    kind, length = message.number(HEADER_TYPE, "B"), message.number(BODY_LENGTH, "q")
    if length < 0:
        raise ValueError("its metadata is broken")
    batch = message.table(HEADER)
    if batch is not None and kind == DICTIONARY:
        batch = batch.table(BATCH_OF_DICTIONARY)
    buffers: list[int] = []
    if batch is not None and kind in (DICTIONARY, RECORDS):
        packed = batch.place(COMPRESSION) is not None or EXPERIMENTAL in data
        spans = batch.structs(BUFFERS, "<qq") if packed else ()
        buffers = [body + offset for offset, size in spans if size]
    return Body(kind, body + length, length, buffers)


def bodies_from(file: Any, start: int) -> Iterator[Body]:
    """The bodies of the messages of a stream from a byte to the end of its next record batch."""
    while body := body_at(file, start):
        yield body
        if body.kind == RECORDS:
            return
        start = body.stop


def blocks(file: Any, size: int) -> tuple[list[int], list[int]]:
    """Where the messages of dictionaries and of record batches begin, by the footer of a file.

    Raises ValueError where that is broken.
    """
    file.seek(max(size - END.size, 0))
    length, _ = END.unpack(_part(file.read(END.size), 0, END.size))
    if not 0 < length <= size - END.size:
        raise ValueError("its footer is broken")
    file.seek(size - END.size - length)
    footer = _root(file.read(length))
    dictionaries, records = (
        [at for at, *_ in footer.structs(of, "<qi4xq")] for of in (DICTIONARIES, RECORD_BATCHES)
    )
    return dictionaries, records
