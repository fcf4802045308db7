"""What a file is, by its first bytes, where its name says something else.

Archives under another name, Parquet and Arrow, UTF-16 and UTF-32 are all read as what they are.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import NamedTuple

from longattn.corpus.archives import Broken, Pieces, compression_of
from longattn.corpus.records import Compression, Format

HEAD = 16  # bytes that are enough
BOMS = (  # the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
OTHERS = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"Obj\x01", "an Avro file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"Rar!\x1a", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"version https://", "a Git LFS pointer: the file itself is not here"),
)


class Content(NamedTuple):
    """What bytes look like, as far as they tell."""

    format: Format | None = None
    """Parquet or Arrow; None: text, or what the name says."""
    compression: Compression | None = None
    encoding: str = ""
    """Of text that is not UTF-8."""
    other: str = ""
    """A kind of file that is not read."""


def content_of(head: bytes) -> Content:
    """Of the first `HEAD` bytes, or of a whole file that is shorter."""
    if head.startswith(b"PAR1"):
        return Content("parquet")
    if head.startswith((b"ARROW1", b"FEA1")):
        return Content("arrow")
    if compression := compression_of(head):
        return Content(compression=compression)
    for magic, name in OTHERS:
        if head.startswith(magic):
            return Content(other=name)
    return Content(encoding=encoding_of(head))


def encoding_of(head: bytes) -> str:
    """UTF-16 or UTF-32 by its mark or, of JSON without one, by its zero bytes; "" for UTF-8."""
    for mark, name in BOMS:
        if head.startswith(mark):
            return name
    for name in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        width = 4 if "32" in name else 2
        if head.startswith(("{".encode(name), "[".encode(name))) and len(head) >= 2 * width:
            low = 0 if name.endswith("le") else width - 1
            if all(bool(byte) == (i % width == low) for i, byte in enumerate(head[: 2 * width])):
                return name
    return ""


def as_utf8(pieces: Pieces, encoding: str) -> Iterator[bytes | Broken]:
    """Text of another encoding; a half surrogate in it stays what no UTF-8 is."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for piece in pieces:
            if isinstance(piece, Broken):
                yield piece
                return
            if text := decoder.decode(piece):
                yield text.encode("utf-8", "surrogatepass")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        yield Broken(f"its {encoding} ends or is broken: {error.reason}", 0)
