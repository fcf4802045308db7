"""What Parquet and Arrow files share: a listed file as pyarrow reads it, columns, rows as records."""

from __future__ import annotations

import io
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from longattn.corpus.columns import fitted
from longattn.corpus.records import (
    BadRecord,
    Reason,
    Record,
    Split,
    bad_record,
    read_listed,
    shown_columns,
    too_long,
)

STRINGS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")

RATIO = 100  # of unpacked bytes to stored ones; text that repeats itself comes to 20
MANY_ROWS, ROWS_PER_BYTE = 1 << 20, 64  # of which nothing is asked; of more, for each stored byte


class Unreadable(Exception):  # noqa: N818
    """A file, or a part of it, whose content is broken."""


class TrackedFile(io.RawIOBase):
    """A file that keeps the error it met: pyarrow calls broken content OSError as well."""

    def __init__(self, file: Any, split: Split) -> None:
        self.file, self.split, self.position = file, split, 0
        self.error: Exception | None = None
        self.buffers: Sequence[int] = ()
        """Sorted places of compressed buffers of Arrow, each of which begins with its unpacked length."""
        self.unpacked, self.stored, self.cap = 0, 0, 0
        """Bytes that those come to as far as they are read, and as stored; what is always allowed."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.split.file_size}
        self.position = base[whence] + offset
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.split.file_size - self.position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:  # a broken file may lead to places that no file has
            return b""
        try:
            data = read_listed(self.file, self.split, self.position, wanted)
            if len(data) < wanted:
                raise OSError(
                    f"{self.split.source}: {len(data)} of {wanted} bytes at byte {self.position}"
                )
        except (OSError, ValueError) as error:
            self.error = error
            raise
        self._count(data)
        self.position += len(data)
        return data

    def _count(self, data: bytes) -> None:
        """Raises Unreadable where the compressed buffers that begin in some bytes unpack to too much."""
        last = self.position + len(data) - 8
        for place in self.buffers[bisect_left(self.buffers, self.position) :]:
            if place > last:
                break
            at = place - self.position
            self.unpacked += max(int.from_bytes(data[at : at + 8], "little", signed=True), 0)
        try:
            require_bounded(self.unpacked, self.stored, self.cap)
        except Unreadable as error:
            self.error = error
            raise


@contextmanager
def content_errors(tracked: TrackedFile) -> Iterator[None]:
    """Errors of pyarrow as Unreadable, but for those of the storage below it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, Unreadable) as error:
        if isinstance(tracked.error, Unreadable):  # of a batch; the next one may be read
            unreadable, tracked.error = tracked.error, None
            raise unreadable from error
        if tracked.error is not None:
            raise tracked.error from error
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(str(error)) from error


# ------------------------------------------------------------------------------- columns of a schema


def checked_schema(schema: pa.Schema) -> pa.Schema:
    """The schema; raises ValueError where a name in it is no UTF-8."""
    fields = list(schema)
    while fields:
        field = fields.pop()
        field.name  # noqa: B018 - decoded here
        fields += [field.type.field(i) for i in range(field.type.num_fields)]
    return schema


def column_path(schema: pa.Schema | pa.StructType, name: str) -> list[str] | None:
    """The field of a name, or fields, where its dots lead into structs; None where there is none.

    A column whose own name has a dot wins.
    """
    names = [field.name for field in schema]
    if name in names:
        return [name]
    for i, letter in enumerate(name):
        if letter == "." and name[:i] in names:
            kind = schema.field(names.index(name[:i])).type
            below = column_path(kind, name[i + 1 :]) if pa.types.is_struct(kind) else None
            if below:
                return [name[:i], *below]
    return None


def column_type(schema: pa.Schema, path: list[str]) -> pa.DataType:
    kind = schema.field(schema.names.index(path[0])).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def text_problem(schema: pa.Schema, column: str) -> tuple[Reason, str] | None:
    """Why a file has no text in a column, if so; `null` where pandas saw nothing but nulls."""
    path = column_path(schema, column)
    if path is None:
        return Reason.NO_TEXT_COLUMN, shown_columns(schema.names)
    kind = column_type(schema, path)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if any(getattr(pa.types, f"is_{test}")(kind) for test in STRINGS):
        return None
    return Reason.NOT_A_STRING, str(kind)


class Paths(NamedTuple):
    """Where the text column and the further columns of a split are in a schema, if they are."""

    text: list[str]
    extra: dict[str, list[str]]

    @classmethod
    def of(cls, schema: pa.Schema, split: Split) -> Paths:
        text = column_path(schema, split.text_column) or []
        extra = {name: column_path(schema, name) for name, _ in split.columns}
        return cls(text, {name: path for name, path in extra.items() if path})

    def all(self) -> list[list[str]]:
        return [path for path in [self.text, *self.extra.values()] if path]


# ------------------------------------------------------------------------------------------- checks


def require_plausible(rows: int, split: Split) -> None:
    """Raises Unreadable for a number of rows that no file of such a size holds for real.

    Of nothing but nulls, or of one value, a file of 755 bytes can have a hundred million.
    """
    if not 0 <= rows <= max(MANY_ROWS, ROWS_PER_BYTE * split.file_size):
        raise Unreadable(f"{rows} rows in a file of {split.file_size} bytes")


def require_bounded(unpacked: int, stored: int, cap: int) -> None:
    """Raises Unreadable for bytes that unpack to more than memory is meant to hold at once."""
    if unpacked > max(cap, RATIO * stored):
        raise Unreadable(
            f"{unpacked} bytes unpacked of {stored}: over max_record_bytes {cap}, and over {RATIO} "
            "times what is stored"
        )


def check_values(values: pa.Array) -> None:
    """Raises ValueError for offsets and indices that lead out of their buffer.

    UTF-8 is looked at value by value.
    """
    kind = values.type
    if pa.types.is_struct(kind):
        values.validate()
        for i in range(kind.num_fields):
            check_values(values.field(i))
        return
    if pa.types.is_dictionary(kind):
        values = pa.DictionaryArray.from_arrays(
            values.indices, _as_bytes(values.dictionary), safe=False
        )
    _as_bytes(values).validate(full=True)


def _as_bytes(values: pa.Array) -> pa.Array:
    """Strings as bytes, of which only the offsets are checked."""
    if pa.types.is_string(values.type):
        return values.view(pa.binary())
    if pa.types.is_large_string(values.type):
        return values.view(pa.large_binary())
    return values


# ------------------------------------------------------------------------------------------ records


def batch_records(
    batch: pa.RecordBatch, paths: Paths, split: Split, first: int, cap: int
) -> Iterator[Record | BadRecord]:
    """The rows of a batch, which are numbered from `first`."""
    values = _leaf(batch, paths.text)
    extra = {name: _leaf(batch, path) for name, path in paths.extra.items()}
    kinds = dict(split.columns)
    for i, value in enumerate(_scalars(values)):
        further = {name: fitted(column[i], kinds[name]) for name, column in extra.items()}
        yield _record(value, first + i, cap, further)


def _leaf(batch: pa.RecordBatch, path: list[str]) -> pa.Array:
    values = batch.column(batch.schema.names.index(path[0]))
    for name in path[1:]:
        values = pc.struct_field(values, [values.type.get_field_index(name)])
    return values


def _scalars(values: pa.Array) -> Iterator[pa.Scalar]:
    """The values; those of a dictionary one by one, since many rows may share a large one."""
    if not pa.types.is_dictionary(values.type):
        yield from values
        return
    shared = values.dictionary
    null = pa.scalar(None, shared.type)
    for index in values.indices.to_pylist():
        yield null if index is None else shared[index]


def _record(value: Any, position: int, cap: int, extra: Mapping[str, Any]) -> Record | BadRecord:
    """Of a pyarrow scalar of strings or bytes."""
    buffer = value.as_buffer()
    if buffer is None:
        return bad_record(position, Reason.NOT_A_STRING, "null")
    if buffer.size > cap:
        return too_long(position, buffer.size, cap)
    try:
        return Record(str(buffer, "utf-8"), position, extra)
    except UnicodeDecodeError as error:
        return bad_record(position, Reason.BAD_UTF8, str(error))
