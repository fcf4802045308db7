"""Archives of one stream (gzip, bz2, xz, zstd): stored bytes -> the bytes they unpack to.

What an archive gives at once is bounded, so a bomb costs time and no memory.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import zstandard

from longattn.corpus.records import Compression

# Compressed bytes fed at a time. They bound what a bomb can give at once: zstd unpacks 4 bytes to
# 128 KiB at most, deflate 1 byte to 1032; bz2 and xz are asked for PIECE bytes at most.
FEED: dict[Compression, int] = {
    "gzip": 16 << 10,
    "bz2": 16 << 10,
    "xz": 16 << 10,
    "zstd": 2 << 10,
}
PIECE = 1 << 20
WINDOW = (
    128 << 20
)  # bytes that any archive may look back; `zstd --ultra -22` and `xz -9` want no more
OVER_WINDOW = ("requires too much memory", "usage limit exceeded")  # as zstd and xz tell of more
ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)  # bz2: OSError
PADDED = ("gzip", "xz")  # members of these may be followed by zeros
MAGIC: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)


class Broken(NamedTuple):
    """How an archive is broken, and how many of its bytes are of no use after that."""

    why: str
    lost_bytes: int


Pieces = Iterator[bytes | Broken]


def compression_of(head: bytes) -> Compression | None:
    """What the first bytes of a file say."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:  # a skippable zstd frame
        return "zstd"
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bz2"
    return next((kind for magic, kind in MAGIC if head.startswith(magic)), None)


def peeked(pieces: Pieces, size: int) -> tuple[bytes, Pieces]:
    """The first `size` bytes, or what there is, and all the pieces."""
    first: list[bytes | Broken] = []
    held = 0
    for piece in pieces:
        first.append(piece)
        if isinstance(piece, Broken):
            break
        held += len(piece)
        if held >= size:
            break
    head = b"".join(piece[:size] for piece in first if not isinstance(piece, Broken))
    return head[:size], chain(_released(first), pieces)


def _released(pieces: list[bytes | Broken]) -> Pieces:
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def decompressed(
    pieces: Iterator[Any], compression: Compression, size: int, cap: int = 0
) -> Pieces:
    """What an archive of one or more members and so many bytes holds; Broken ends a broken one.

    zstd and xz may have to look back, and hold, as many bytes as the file says: one that asks for
    more than WINDOW, and than the cap on a record, is broken.

    What a broken zstd frame gave in its last 2 KiB, and a broken bz2 or xz stream in its last 16, is
    lost, unless it starts there.
    """
    window = max(WINDOW, cap)
    decoder: Any = None  # of the member at hand
    empty = True
    for piece in _fed(pieces, FEED[compression]):
        size -= len(piece)
        rest: bytes | memoryview = piece
        while rest:
            fresh = decoder is None
            if fresh:
                if not empty and compression in PADDED:
                    rest = bytes(rest).lstrip(b"\0")
                    if not rest:
                        break
                decoder = _decoder(compression, window)
                empty = False
            before = decoder.copy() if compression == "gzip" else None
            gave = False
            try:
                for out in _given(decoder, rest, compression):
                    gave = True
                    yield out
            except ERRORS as error:
                if not gave:
                    again = _decoder(compression, window) if fresh else before
                    yield from _salvaged(again, rest, compression)
                yield Broken(_reason(error, window), size + len(rest))
                return
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


def _reason(error: BaseException, window: int) -> str:
    if any(words in str(error) for words in OVER_WINDOW):
        return f"it looks back more than {window} bytes, which max_record_bytes allows: raise that"
    return str(error)


def _decoder(compression: Compression, window: int) -> Any:
    match compression:
        case "gzip":
            return zlib.decompressobj(wbits=31)
        case "bz2":
            return bz2.BZ2Decompressor()
        case "xz":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=window + (1 << 20))
        case "zstd":
            return zstandard.ZstdDecompressor(max_window_size=min(window, 2**31)).decompressobj()


def _given(decoder: Any, piece: bytes | memoryview, compression: Compression) -> Iterator[bytes]:
    """What a decoder makes of a piece."""
    bounded = compression in ("bz2", "xz")
    out = decoder.decompress(piece, PIECE) if bounded else decoder.decompress(piece)
    while out:
        yield out
        more = bounded and not decoder.eof and not decoder.needs_input
        out = decoder.decompress(b"", PIECE) if more else b""


def _salvaged(decoder: Any, piece: bytes | memoryview, compression: Compression) -> Iterator[bytes]:
    """What a decoder gives before the byte at which it fails."""
    if decoder is None:
        return
    for start in range(len(piece)):
        try:
            yield from _given(decoder, piece[start : start + 1], compression)
        except ERRORS:
            return
