"""Arrow IPC files (.arrow, .feather; file and stream format): the text column, a batch at a time.

A record batch is held whole, of the wanted columns alone: writers make batches of 1,000 to 65,536 rows.
Arrow trusts what it reads, so each batch is checked before a value of it is looked at; one whose
compressed body unpacks to too much, as a file of kilobytes can to gigabytes, is not unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from longattn.corpus.arrow_bodies import RECORDS, blocks, bodies_from, body_at
from longattn.corpus.arrow_columns import (
    Paths,
    TrackedFile,
    Unreadable,
    batch_records,
    check_values,
    checked_schema,
    content_errors,
    require_plausible,
    text_problem,
)
from longattn.corpus.records import BadRecord, Reason, Record, Split, bad_record, open_listed

MAGIC = b"ARROW1"


class _Arrow:
    """An opened file in either format, its record batches by number."""

    def __init__(self, file: Any, split: Split) -> None:
        self.tracked, self.split = TrackedFile(file, split), split
        with content_errors(self.tracked):
            head = self.tracked.read(8)
            if head.startswith(b"FEA1"):
                raise ValueError("Feather version 1: only version 2, which is Arrow IPC, is read")
            self.is_file = head.startswith(MAGIC)
            self.schema = checked_schema(self._open(None).schema)

    def _open(self, fields: list[int] | None) -> Any:
        self.tracked.seek(0)
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)
        file = pa.PythonFile(self.tracked, mode="r")
        opened = pa.ipc.open_file if self.is_file else pa.ipc.open_stream
        return opened(file, options=options)

    def batches(self, paths: Paths, cap: int) -> Iterator[pa.RecordBatch | Unreadable]:
        """The record batches of the split, or why one cannot be read; after that a stream ends.

        Of a batch, and all dictionaries before it, `cap` bytes may be unpacked, or RATIO times those
        that are stored.
        """
        wanted = sorted({self.schema.names.index(path[0]) for path in paths.all()})
        with content_errors(self.tracked):
            reader = self._open(wanted or [0])
            number = reader.num_record_batches if self.is_file else 0
            places = blocks(self.tracked, self.split.file_size) if self.is_file else ([], [])
            if len(places[1]) != number:
                raise Unreadable("its footer is broken")
        self.tracked.cap = cap
        stop = number if self.split.stop is None else min(self.split.stop, number)
        at = self.split.start
        while at < stop or not self.is_file:
            try:
                with content_errors(self.tracked), self._bounded(at, places):
                    batch = reader.get_batch(at) if self.is_file else next(reader, None)
                    if batch is None:
                        if left := self.split.file_size - self.tracked.position:
                            raise Unreadable(f"the stream ends {left} bytes before its file")
                        return
                    require_plausible(len(batch), self.split)
                    for column in batch.columns:
                        check_values(column)
            except Unreadable as error:
                yield Unreadable(f"record batch {at}: {error}")
                if not self.is_file:
                    return
            else:
                yield batch
            at += 1

    @contextmanager
    def _bounded(self, number: int, places: tuple[list[int], list[int]]) -> Iterator[None]:
        """Bounds what the next record batch unpacks to, with the dictionaries that come with it."""
        tracked = self.tracked
        here = tracked.position
        if self.is_file:
            first = self.split.start == number
            starts = [*(places[0] if first else ()), places[1][number]]
            bodies = [body for start in starts if (body := body_at(tracked, start))]
        else:
            bodies = list(bodies_from(tracked, here))
        tracked.seek(here)
        tracked.buffers = sorted(place for body in bodies for place in body.buffers)
        before = tracked.unpacked, tracked.stored
        tracked.stored += sum(body.size for body in bodies)
        try:
            yield
        finally:
            tracked.buffers = ()
            if all(body.kind == RECORDS for body in bodies):  # a dictionary stays in memory
                tracked.unpacked, tracked.stored = before


@contextmanager
def opened_arrow(split: Split) -> Iterator[_Arrow]:
    """A split's Arrow file. Raises Unreadable where it does not begin, or end, as one."""
    with open_listed(split) as file:
        yield _Arrow(file, split)


def number_of_batches(split: Split) -> int:
    """Record batches of a file in the file format; 0 of a stream, or a broken file."""
    try:
        with opened_arrow(split) as arrow, content_errors(arrow.tracked):
            return int(arrow._open(None).num_record_batches) if arrow.is_file else 0
    except Unreadable:
        return 0


def arrow_rows(file: Any, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    """The rows of a split's record batches. Raises Unreadable where the file does not open as one."""
    arrow = _Arrow(file, split)
    problem = text_problem(arrow.schema, split.text_column)
    paths = Paths.of(arrow.schema, split)
    position = 0
    for batch in arrow.batches(paths, cap):
        if isinstance(batch, Unreadable):
            left = 0 if arrow.is_file else split.file_size - arrow.tracked.position
            yield bad_record(position, Reason.UNREADABLE, str(batch), lost_bytes=left)
            continue
        if problem and len(batch):
            detail = f"{len(batch)} rows: {problem[1]}"
            yield bad_record(position, problem[0], detail, records=len(batch))
        elif not problem:
            yield from batch_records(batch, paths, split, position, cap)
        position += len(batch)
