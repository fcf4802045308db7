"""A JSON array of objects, or objects printed over several lines: bytes -> values, one at a time.

The values are found by their brackets and quotes and each is parsed on its own. So a broken one is
reported and the others are read, and of one over the cap nothing is held. Streaming parsers (ijson)
hold a long string whole, end a file at its first bad byte, and refuse the NaN that Python writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from longattn.corpus.archives import Broken, Pieces
from longattn.corpus.jsonl import BOM
from longattn.corpus.records import BadRecord, Reason, bad_record, broken_archive, too_long

Layout = Literal["lines", "values"]
LAYOUT_BYTES = 64 << 10  # from which the layout is seen

_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_BRACKET = re.compile(rb'["{}\[\]]')
_BRACKET_OR_END = re.compile(rb'["{}\[\]\n]')
_SPACE = re.compile(rb"[\s,]*+")
_SCALAR = re.compile(rb'[^,\]\[{}\n"]*+')
QUOTE = ord('"')


def json_layout(head: bytes) -> Layout:
    """Whether a file that begins so has a value a line, or an array or values over several lines."""
    text = head.removeprefix(BOM).lstrip()
    if text[:1] == b"[":
        inside = text[1:].lstrip()
        return "values" if inside[:1] == b"{" or inside.rstrip() == b"]" else "lines"
    if text[:1] != b"{":
        return "lines"
    depth, place = 0, 0
    while True:
        found = _BRACKET_OR_END.search(text, place)
        if not found:
            return "lines"
        place = found.end()
        match found[0]:
            case b'"':
                place = _end_of(_IN_STRING, text, place)
                if b"\n" in text[found.end() : place]:
                    return "lines"  # which no string of JSON holds: a broken line
                place += 1
            case b"\n":
                after = text[place:].lstrip()[:1]  # a "{" is the next line, after a broken one
                return "values" if depth and after and (depth > 1 or after != b"{") else "lines"
            case b"{" | b"[":
                depth += 1
            case _:
                depth -= 1


def json_values(pieces: Pieces, cap: int) -> Iterator[tuple[bytes, int] | BadRecord]:
    """The values of arrays, and those outside of any, each with the offset of its first byte.

    Args:
        pieces: the file from its start.
        cap: longest value in bytes. Of a longer one, nothing is held.
    """
    value = _Value(cap)
    offset, in_array = 0, False
    for piece in pieces:
        if isinstance(piece, Broken):
            yield broken_archive(value.start if value.open else offset, *piece)
            return
        place = len(BOM) if offset == 0 and piece.startswith(BOM) else 0
        while place < len(piece):
            if not value.open:
                place = _end_of(_SPACE, piece, place)
                if place == len(piece):
                    break
                if piece[place : place + 1] == (b"]" if in_array else b"["):
                    in_array = not in_array
                    place += 1
                    continue
                value.begin(offset + place)
            place = value.take(piece, place)
            if not value.open:
                yield value.end()
        offset += len(piece)
    if value.open:
        yield value.end()
    elif in_array:
        yield bad_record(offset, Reason.NOT_JSON, "the file ends within its array: it is cut off")


class _Value:
    """One value that is being gathered, over as many pieces as it has."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.open = False

    def begin(self, start: int) -> None:
        self.open, self.start, self.length = True, start, 0
        self.depth, self.in_string, self.escaped, self.scalar = 0, False, False, False
        self.parts: list[bytes] = []

    def take(self, piece: bytes, start: int) -> int:
        """Take what of a piece belongs to the value; returns where it ends."""
        place = start
        if not self.length and piece[start] not in b"{[":
            self.in_string = piece[start] == QUOTE
            self.scalar = not self.in_string
            place += 1
        place = self._end(piece, place)
        self.length += place - start
        if self.length > self.cap:
            self.parts.clear()
        else:
            self.parts.append(piece[start:place])
        return place

    def _end(self, piece: bytes, place: int) -> int:
        if self.scalar:
            place = _end_of(_SCALAR, piece, place)
            self.open = place == len(piece)
            return place
        while place < len(piece):
            if self.escaped:
                self.escaped = False
                place += 1
                continue
            if self.in_string:
                place = _end_of(_IN_STRING, piece, place)
                if place == len(piece):
                    return place
                self.escaped = piece[place] != QUOTE  # a backslash, the last byte of the piece
                self.in_string = self.escaped
                place += 1
            else:
                found = _BRACKET.search(piece, place)
                if not found:
                    return len(piece)
                place = found.end()
                if found[0] == b'"':
                    self.in_string = True
                else:
                    self.depth += 1 if found[0] in b"{[" else -1
            if not self.in_string and self.depth <= 0:
                self.open = False
                return place
        return place

    def end(self) -> tuple[bytes, int] | BadRecord:
        self.open = False
        if self.length > self.cap:
            return too_long(self.start, self.length, self.cap)
        value = b"".join(self.parts)
        self.parts.clear()
        return value, self.start


def _end_of(pattern: re.Pattern[bytes], piece: bytes, place: int) -> int:
    """Where a pattern that matches nothing, too, ends."""
    found = pattern.match(piece, place)
    return found.end() if found else place
