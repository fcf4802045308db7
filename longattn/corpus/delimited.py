"""Tables as text (CSV, TSV): bytes -> rows, by Python's csv, with the names in the first row.

A field in quotes may hold line ends, so such a file cannot be cut into splits.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from longattn.corpus.archives import Pieces
from longattn.corpus.columns import fitted
from longattn.corpus.jsonl import BOM, jsonl_lines
from longattn.corpus.records import (
    BadRecord,
    Reason,
    Record,
    Split,
    bad_record,
    shown_columns,
    too_long,
)

DELIMITERS = {"csv": ",", "tsv": "\t"}
FIELD_LIMIT = 1 << 40  # ours is the cap on a record; Python's own, for the process, is 128 KiB


class _TooLong(Exception):  # noqa: N818
    """A row that is over the cap, or whose file is broken, before its end."""


class _Rows:
    """Rows of a file, each with the offset of its first byte."""

    def __init__(self, pieces: Pieces, delimiter: str, cap: int) -> None:
        self.lines = jsonl_lines(pieces, 0, None, cap)
        self.cap, self.delimiter = cap, delimiter
        self.start = self.length = 0
        self.bad: BadRecord | None = None
        self.open = False
        csv.field_size_limit(FIELD_LIMIT)

    def __iter__(self) -> Iterator[tuple[list[str], int] | BadRecord]:
        reader = csv.reader(self._text(), delimiter=self.delimiter, strict=True)
        while True:
            self.start, self.length = -1, 0
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield bad_record(max(self.start, 0), Reason.BAD_ROW, str(error))
                continue
            except _TooLong:
                yield self._skipped()
                reader = csv.reader(self._text(), delimiter=self.delimiter, strict=True)
                continue
            if row is None:
                if self.bad is not None:
                    yield self.bad
                return
            if row:
                yield row, max(self.start, 0)

    def _text(self) -> Iterator[str]:
        """The lines of one row after another, for csv to take as many of as a row has."""
        for item in self.lines:
            if isinstance(item, BadRecord):
                self.bad = item
                raise _TooLong
            line, position = item
            if position == 0:
                line = line.removeprefix(BOM)
            if self.start < 0:
                self.start = position
            self.length += len(line) + 1
            if self.length > self.cap + 1:
                self.open = line.count(b'"') % 2 == 0  # its quote is not closed here
                raise _TooLong
            yield line.decode("utf-8", "surrogateescape") + "\n"

    def _skipped(self) -> BadRecord:
        """What is bad; where a row is over the cap, after its other lines have been passed."""
        if self.bad is not None:
            bad, self.bad = self.bad, None
            return bad
        for item in self.lines if self.open else ():
            if isinstance(item, BadRecord):
                self.bad = item
                break
            self.length += len(item[0]) + 1
            if item[0].count(b'"') % 2:
                break
        return too_long(self.start, self.length, self.cap)


def table_rows(pieces: Pieces, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    """The rows of a file as records. One of another length than the first row is bad."""
    names: dict[str, int] | None = None
    for item in _Rows(pieces, DELIMITERS[split.format], cap):
        if isinstance(item, BadRecord):
            yield item
            continue
        row, position = item
        if names is None:
            names, width = {}, len(row)
            for i, name in enumerate(row):
                names.setdefault(name, i)
            continue
        if len(row) != width:
            yield bad_record(
                position, Reason.BAD_ROW, f"{len(row)} fields, the first row has {width}"
            )
            continue
        if split.text_column not in names:
            yield bad_record(position, Reason.NO_TEXT_COLUMN, shown_columns(names))
            continue
        text = row[names[split.text_column]]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            yield bad_record(position, Reason.BAD_UTF8, str(error))
            continue
        extra = {
            name: fitted(row[names[name]], kind) for name, kind in split.columns if name in names
        }
        yield Record(text, position, extra)
