"""Reads one split of a corpus: every line or row becomes a Record or a BadRecord, none is lost.

What the bytes hold is never trusted: bad content is reported and reading goes on, in memory bounded
by `max_record_bytes`. What the storage fails to give is an OSError, for the caller to try again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from longattn.corpus.archives import Pieces, decompressed, peeked
from longattn.corpus.arrow import arrow_rows
from longattn.corpus.arrow_columns import Unreadable
from longattn.corpus.content import HEAD, Content, as_utf8, content_of
from longattn.corpus.delimited import table_rows
from longattn.corpus.json_values import LAYOUT_BYTES, json_layout, json_values
from longattn.corpus.jsonl import jsonl_lines, parsed_line
from longattn.corpus.parquet import parquet_rows
from longattn.corpus.plain_text import text_document
from longattn.corpus.records import (
    BadRecord,
    Reason,
    Record,
    Split,
    bad_record,
    open_listed,
    read_listed,
    stored_bytes,
)

READERS = {"parquet": parquet_rows, "arrow": arrow_rows}  # of files that are not text


def read_split(split: Split, *, max_record_bytes: int = 512 << 20) -> Iterator[Record | BadRecord]:
    """Every record of a split, in the order of the file.

    A file that is not what its name says is read as what its first bytes say: an archive, Parquet,
    Arrow, UTF-16, a JSON array. An empty file has no records, and blank lines are none. Lines end
    with "\\n" only. A line that orjson refuses is tried once more with Python's json, which takes
    what its own writer writes: NaN, Infinity, and lone surrogates in columns that are not asked for.
    Nested deeper than that can follow is not_json. A row group or record batch without a text column
    of strings, or broken in the middle, gives one BadRecord that tells the number of rows; a broken
    archive, or a Parquet or Arrow file that does not open, one that tells the stored bytes.

    Args:
        split: from `list_splits`.
        max_record_bytes: cap on a line, or on a value. A longer one is skipped and reported.

    Raises:
        OSError: the storage failed; reading the split again may work.
        ValueError: the file is not the one that was listed.
    """
    with open_listed(split) as file:
        if not split.file_size:
            return
        if split.format in READERS:
            yield from _table(file, split, max_record_bytes)
        elif split.is_part:
            stop = split.file_size if split.stop is None else split.stop
            pieces = stored_bytes(file, split, max(split.start - 1, 0), stop)
            yield from _lines(pieces, split, stop, max_record_bytes)
        else:
            yield from _whole(file, split, max_record_bytes)


def _table(file: Any, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    """Parquet or Arrow, by the name; what its first bytes are is asked when it does not open."""
    try:
        yield from READERS[split.format](file, split, cap)
    except Unreadable as error:
        seen = content_of(read_listed(file, split, 0, min(HEAD, split.file_size)))
        if seen.format not in (None, split.format) or seen.compression:
            other = seen.format or "jsonl"
            yield from _whole(file, replace(split, format=other, start=0, stop=None), cap)
            return
        why = f"{seen.other}: {error}" if seen.other else str(error)
        yield bad_record(0, Reason.UNREADABLE, why, lost_bytes=split.size)


def _whole(file: Any, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    """A file of text from its start, in whatever it is packed, encoded and laid out."""
    pieces: Pieces = stored_bytes(file, split, 0, split.file_size)
    head, pieces = peeked(pieces, HEAD)
    seen = content_of(head)
    packed = seen.compression or (None if _is_plain(head, seen) else split.compression)
    if packed and not seen.format:
        head, pieces = peeked(decompressed(pieces, packed, split.file_size, cap), HEAD)
        seen = content_of(head)
        if seen.format or seen.compression:
            seen = Content(other=f"{seen.format or seen.compression} within {packed}")
    try:
        if seen.format:
            yield from READERS[seen.format](file, split, cap)
            return
        if seen.other:
            raise Unreadable(seen.other)
    except Unreadable as error:
        yield bad_record(0, Reason.UNREADABLE, str(error), lost_bytes=split.size)
        return
    if seen.encoding:
        pieces = as_utf8(pieces, seen.encoding)
    yield from _text(pieces, split, cap)


def _is_plain(head: bytes, seen: Content) -> bool:
    """Whether a file with the name of an archive is none: servers and tools unpack some."""
    return bool(seen.encoding) or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _text(pieces: Pieces, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    if split.format == "txt":
        yield from text_document(pieces, cap)
    elif split.format in ("csv", "tsv"):
        yield from table_rows(pieces, split, cap)
    else:
        head, pieces = peeked(pieces, LAYOUT_BYTES)
        if json_layout(head) == "lines":
            yield from _lines(pieces, split, None, cap)
        else:
            yield from _parsed(json_values(pieces, cap), split)


def _lines(
    pieces: Pieces, split: Split, stop: int | None, cap: int
) -> Iterator[Record | BadRecord]:
    yield from _parsed(jsonl_lines(pieces, split.start, stop, cap), split)


def _parsed(
    items: Iterator[tuple[bytes, int] | BadRecord], split: Split
) -> Iterator[Record | BadRecord]:
    for item in items:
        if isinstance(item, BadRecord):
            yield item
            continue
        record = parsed_line(*item, split)
        del item  # a 50 MB line would live on beside its text
        if record is not None:
            yield record


def is_lines(split: Split) -> bool:
    """Whether a plain JSON file is one of lines, which can be cut anywhere."""
    with open_listed(split) as file:
        if type(file).__name__ == "HTTPStreamFile":  # of a server that gives files only as a whole
            return False
        head = read_listed(file, split, 0, min(LAYOUT_BYTES, split.file_size))
    return content_of(head[:HEAD]) == Content() and json_layout(head) == "lines"
