"""Parquet files of a corpus: the text column, a batch of rows at a time.

A file with broken content gives records that say so; pyarrow must not abort on them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longattn.corpus.records import (
    CHUNK,
    BadRecord,
    Reason,
    Record,
    Split,
    bad_record,
    open_listed,
    read_listed,
    shown_columns,
    too_long,
)

BATCH_BYTES, BATCH_ROWS = 16 << 20, 64  # of Parquet text decoded at a time


class Unreadable(Exception):  # noqa: N818
    """A Parquet file, or a part of it, whose content is broken."""


class _Tracked(io.RawIOBase):
    """A file that keeps the error it met: pyarrow calls broken content OSError as well."""

    def __init__(self, file: Any, split: Split) -> None:
        self.file, self.split, self.position = file, split, 0
        self.error: Exception | None = None

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
        try:
            data = read_listed(self.file, self.split, self.position, wanted)
            if len(data) < wanted:
                raise OSError(
                    f"{self.split.source}: {len(data)} of {wanted} bytes at byte {self.position}"
                )
        except (OSError, ValueError) as error:
            self.error = error
            raise
        self.position += len(data)
        return data


@contextmanager
def _content_errors(tracked: _Tracked) -> Iterator[None]:
    """Errors of pyarrow as Unreadable, but for those of the storage below it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if tracked.error is not None:
            raise tracked.error from error
        raise Unreadable(str(error)) from error


@contextmanager
def opened_parquet(split: Split) -> Iterator[tuple[pq.ParquetFile, str | None]]:
    """A split's Parquet file, and what is wrong with its text column, if anything.

    Raises:
        Unreadable: there is no good footer.
    """
    with open_listed(split) as file:
        parquet, _, problem = _parquet(file, split)
        yield parquet, problem and problem[1]


def _parquet(file: Any, split: Split) -> tuple[pq.ParquetFile, _Tracked, tuple[Reason, str] | None]:
    tracked = _Tracked(file, split)
    with _content_errors(tracked):
        # Neither pre_buffer, which holds a row group's column whole, nor a read-ahead cache below,
        # which fetches the other columns: the text column comes in reads of CHUNK.
        parquet = pq.ParquetFile(
            pa.PythonFile(tracked, mode="r"),
            pre_buffer=False,
            buffer_size=CHUNK,
            page_checksum_verification=True,
        )
        return parquet, tracked, _column_problem(parquet.schema_arrow, split.text_column)


def _column_problem(schema: pa.Schema, column: str) -> tuple[Reason, str] | None:
    index = schema.get_field_index(column)
    if index < 0:
        return Reason.NO_TEXT_COLUMN, shown_columns(schema.names)
    kind = schema.field(index).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    if any(getattr(pa.types, f"is_{test}")(kind) for test in tests):
        return None
    return Reason.NOT_A_STRING, str(kind)


def parquet_rows(file: Any, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    try:
        parquet, tracked, problem = _parquet(file, split)
    except Unreadable as error:
        yield bad_record(0, Reason.UNREADABLE, str(error), lost_bytes=split.size)
        return
    counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    first = sum(counts[: split.start])
    for group, rows in islice(enumerate(counts), split.start, split.stop):
        if problem:
            yield bad_record(first, problem[0], f"{rows} rows: {problem[1]}", records=rows)
        else:
            yield from _row_group(parquet, tracked, group, first, split.text_column, cap)
        first += rows


def _row_group(
    parquet: pq.ParquetFile, tracked: _Tracked, group: int, first: int, column: str, cap: int
) -> Iterator[Record | BadRecord]:
    metadata = parquet.metadata.row_group(group)
    position, end = first, first + metadata.num_rows
    try:
        for values in _batches(parquet, tracked, group, column):
            for value in values:
                yield _row(value, position, cap)
                position += 1
        if position < end:
            raise Unreadable("the column is shorter than the row group")
    except Unreadable as error:
        detail = f"row group {group}, {end - position} rows from here: {error}"
        yield bad_record(position, Reason.UNREADABLE, detail, records=end - position)


def _batches(
    parquet: pq.ParquetFile, tracked: _Tracked, group: int, column: str
) -> Iterator[pa.Array]:
    """The text column of a row group, about BATCH_BYTES at a time. Raises Unreadable."""
    with _content_errors(tracked):
        # Not metadata.column(i): on a footer with one wrong bit it can abort the process (pyarrow
        # 26). The row group's own size, of all columns, bounds that of the text.
        metadata = parquet.metadata.row_group(group)
        size = max(metadata.total_byte_size, 1)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // size))
        batches = parquet.iter_batches(
            rows, row_groups=[group], columns=[column], use_threads=False
        )
    while True:
        with _content_errors(tracked):
            batch = next(batches, None)
            if batch is None:
                return
            values = batch.column(column)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
        yield values


def _row(value: Any, position: int, cap: int) -> Record | BadRecord:
    """Of a pyarrow scalar of strings or bytes."""
    buffer = value.as_buffer()
    if buffer is None:
        return bad_record(position, Reason.NOT_A_STRING, "null")
    if buffer.size > cap:
        return too_long(position, buffer.size, cap)
    try:
        return Record(str(buffer, "utf-8"), position)
    except UnicodeDecodeError as error:
        return bad_record(position, Reason.BAD_UTF8, str(error))
