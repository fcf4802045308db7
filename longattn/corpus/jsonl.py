"""JSON Lines: bytes -> lines -> records. A line is held in memory only up to the cap on a record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import orjson

from longattn.corpus.archives import Broken, Pieces
from longattn.corpus.columns import fitted
from longattn.corpus.records import (
    BadRecord,
    Reason,
    Record,
    Split,
    bad_record,
    broken_archive,
    member,
    shown_columns,
    too_long,
)

BOM = b"\xef\xbb\xbf"


def jsonl_lines(
    pieces: Pieces, start: int, stop: int | None, cap: int
) -> Iterator[tuple[bytes, int] | BadRecord]:
    """Lines whose first byte lies in [start, stop), each with its offset, without the line end.

    Args:
        pieces: the bytes from `start - 1` on (that byte says whether a line starts at `start`).
        stop: None: no end.
        cap: longest line in bytes. Of a longer one, nothing is held.
    """
    offset = position = max(start - 1, 0)  # of the piece, of the line
    parts: list[bytes] = []
    held = 0  # length of the line in the pieces before this one
    for piece in pieces:
        if isinstance(piece, Broken):
            yield broken_archive(position, *piece)
            return
        if position < start and stop is not None and offset >= stop:
            return  # in the middle of a line that started before the split
        cursor = 0
        while (end := piece.find(b"\n", cursor)) >= 0:
            if position >= start:
                length = held + end - cursor
                if length > cap:
                    yield too_long(position, length, cap)
                elif parts:
                    parts.append(piece[cursor:end])
                    yield _joined(parts), position
                else:
                    yield piece[cursor:end], position
            parts.clear()
            held, cursor = 0, end + 1
            position = offset + cursor
            if stop is not None and position >= stop:
                return
        held += len(piece) - cursor
        if held > cap or position < start:
            parts.clear()
        elif cursor < len(piece):
            parts.append(piece[cursor:])
        offset += len(piece)
    if held > cap and position >= start:
        yield too_long(position, held, cap)
    elif parts:
        yield _joined(parts), position


def _joined(parts: list[bytes]) -> bytes:
    """The parts as one, released before the line goes out."""
    line = b"".join(parts)
    parts.clear()
    return line


def parsed_line(line: bytes, position: int, split: Split) -> Record | BadRecord | None:
    """A line, or one value of an array, as a record; None for a blank one."""
    if position == 0 and line.startswith(BOM):
        line = line[len(BOM) :]
    if not line or line.isspace():
        return None
    checked = True  # orjson lets no lone surrogate pass
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as refusal:
        checked = False
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return bad_record(position, Reason.BAD_UTF8, str(error))
        except (ValueError, RecursionError):
            return bad_record(position, Reason.NOT_JSON, str(refusal))
    if not isinstance(value, dict):
        return bad_record(position, Reason.NOT_OBJECT, type(value).__name__)
    try:
        text = member(value, split.text_column)
    except KeyError:
        return bad_record(position, Reason.NO_TEXT_COLUMN, shown_columns(value))
    if not isinstance(text, str):
        return bad_record(
            position, Reason.NOT_A_STRING, "null" if text is None else type(text).__name__
        )
    if not checked:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return bad_record(position, Reason.BAD_UTF8, str(error))
    if not split.columns:
        return Record(text, position)
    return Record(text, position, _extra(value, split))


def _extra(value: Mapping[str, Any], split: Split) -> dict[str, Any]:
    extra = {}
    for name, kind in split.columns:
        with suppress(KeyError):
            extra[name] = fitted(member(value, name), kind)
    return extra
