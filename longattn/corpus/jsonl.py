"""JSON Lines, plain or compressed: bytes -> lines -> records.

A line, and what an archive unpacks to, is held in memory only up to the cap on a record.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
import zstandard

from longattn.corpus.records import (
    BadRecord,
    Compression,
    Reason,
    Record,
    bad_record,
    shown_columns,
    too_long,
)

# Compressed bytes fed at a time. They bound what a bomb can give at once: zstd unpacks 4 bytes to
# 128 KiB at most, deflate 1 byte to 1032.
FEED = {"gzip": 16 << 10, "zstd": 2 << 10}
BOM = b"\xef\xbb\xbf"


class Broken(NamedTuple):
    """How an archive is broken, and how many of its bytes are of no use after that."""

    why: str
    lost_bytes: int


def decompressed(
    pieces: Iterator[Any], compression: Compression, size: int
) -> Iterator[bytes | Broken]:
    """What an archive of one or more members and so many bytes holds; Broken ends a broken one.

    What a broken zstd frame gave in its last 2 KiB is lost, unless the frame starts there.
    """
    decoder: Any = None  # of the member at hand
    empty = True
    for piece in _fed(pieces, FEED[compression]):
        size -= len(piece)
        rest: bytes | memoryview = piece
        while rest:
            fresh = decoder is None
            if fresh:
                if not empty and compression == "gzip":
                    rest = bytes(rest).lstrip(b"\0")  # gzip files may be padded
                    if not rest:
                        break
                decoder = _decoder(compression)
                empty = False
            before = decoder.copy() if compression == "gzip" else None
            try:
                out = decoder.decompress(rest)
            except (zlib.error, zstandard.ZstdError) as error:
                yield from _salvaged(_decoder(compression) if fresh else before, rest)
                yield Broken(str(error), size + len(rest))
                return
            if out:
                yield out
            rest = b""
            if decoder.eof:
                rest, decoder = decoder.unused_data, None
    if empty or decoder is not None:
        yield Broken("the archive ends in the middle", 0)


def _fed(pieces: Iterator[bytes], size: int) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), size):
            yield view[start : start + size]


def _decoder(compression: Compression) -> Any:
    if compression == "gzip":
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _salvaged(decoder: Any, piece: bytes | memoryview) -> Iterator[bytes]:
    """What a decoder gives before the byte at which it fails."""
    if decoder is None:
        return
    for start in range(len(piece)):
        try:
            out = decoder.decompress(piece[start : start + 1])
        except (zlib.error, zstandard.ZstdError):
            return
        if out:
            yield out


def jsonl_lines(
    pieces: Iterator[bytes | Broken], start: int, stop: int | None, cap: int
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
            yield bad_record(
                position, Reason.TRUNCATED_ARCHIVE, piece.why, lost_bytes=piece.lost_bytes
            )
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


def parsed_line(line: bytes, position: int, column: str) -> Record | BadRecord | None:
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
    if column not in value:
        return bad_record(position, Reason.NO_TEXT_COLUMN, shown_columns(value))
    text = value[column]
    if not isinstance(text, str):
        return bad_record(position, Reason.NOT_A_STRING, type(text).__name__)
    if not checked:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return bad_record(position, Reason.BAD_UTF8, str(error))
    return Record(text, position)
