"""Plain text: a file is a document."""

from __future__ import annotations

from collections.abc import Iterator

from longattn.corpus.archives import Broken, Pieces
from longattn.corpus.jsonl import BOM
from longattn.corpus.records import (
    BadRecord,
    Reason,
    Record,
    bad_record,
    broken_archive,
    too_long,
)


def text_document(pieces: Pieces, cap: int) -> Iterator[Record | BadRecord]:
    """The file as one record; of one over the cap in bytes, nothing is held. An empty one has none."""
    parts: list[bytes] = []
    length = 0
    for piece in pieces:
        if isinstance(piece, Broken):
            yield broken_archive(0, *piece)
            return
        length += len(piece)
        if length > cap:
            parts.clear()
        else:
            parts.append(piece)
    if length > cap:
        yield too_long(0, length, cap)
        return
    data = b"".join(parts).removeprefix(BOM)
    parts.clear()
    if not data.strip():
        return
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield bad_record(0, Reason.BAD_UTF8, str(error))
        return
    yield Record(text, 0)
