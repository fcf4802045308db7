"""The records of a corpus: the split they are read in, good and bad ones, and the bytes of a listed file.

A `Split` is one unit of reading and of resume: a file, or a part of it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from itertools import islice
from typing import Any, Literal

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener
from fsspec.spec import AbstractBufferedFile

from longattn.storage.files import filesystem, is_local, storage_errors
from longattn.text import without_secrets

CHUNK = 8 << 20  # bytes asked of the storage at a time
TAIL = 1 << 20  # the same, past the end of a split, where only the rest of one line is wanted

Format = Literal["jsonl", "parquet"]
Compression = Literal["gzip", "zstd"]


@dataclass(frozen=True)
class Split:
    """One unit of reading and of resume: a part of a file, or all of it."""

    category: str
    path: str
    """Full URL, or absolute local path."""
    text_column: str
    format: Format
    compression: Compression | None
    start: int
    """First byte of plain JSONL (a record belongs to the split that holds its first byte), first
    row group of Parquet, 0 for a compressed file."""
    stop: int | None
    """The end of that range, excluded; None: the end of the file."""
    file_size: int
    """Bytes as stored."""
    version: str
    """Says that the file is still the same: size, and ETag or time of change."""

    @property
    def id(self) -> str:
        """32 hex digits over all that decides what the split yields."""
        path = re.sub("(?<=://)[^/?#]*@", "", self.path)  # who asks does not matter
        what = [self.category, path, self.text_column, self.start, self.stop, self.version]
        return sha256(json.dumps(what).encode()).hexdigest()[:32]

    @property
    def source(self) -> str:
        """The path as it is told and stored: without passwords and signatures."""
        return without_secrets(self.path)

    @property
    def size(self) -> int:
        """Bytes to read, as stored; of a part of a Parquet file: the file's."""
        if self.format == "jsonl" and self.stop is not None:
            return self.stop - self.start
        return self.file_size


@dataclass(frozen=True, slots=True)
class Record:
    text: str
    position: int
    """Byte offset of the line in the (decompressed) file, or row number in the Parquet file."""


class Reason(StrEnum):
    """Why a record is not used."""

    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    NO_TEXT_COLUMN = "no_text_column"
    NOT_A_STRING = "not_a_string"
    BAD_UTF8 = "bad_utf8"
    OVER_SIZE_CAP = "over_size_cap"
    TRUNCATED_ARCHIVE = "truncated_archive"
    UNREADABLE = "unreadable"
    NOT_TOKENIZED = "not_tokenized"
    KILLED_PROCESS = "killed_process"
    OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True, slots=True)
class BadRecord:
    """What could not be used, and why: a line, a row, the rest of an archive or of a row group."""

    position: int
    reason: Reason
    detail: str
    """At most 200 printable characters."""
    records: int = 1
    """How many it stands for, as far as that is known."""
    lost_bytes: int = 0
    """Stored bytes of the file that it stands for, where the number of records is not known."""


# ---------------------------------------------------------------------------------------- storage


def identity(info: Mapping[str, Any]) -> tuple[int, str]:
    """Size and version of a file, from an fsspec listing. Raises ValueError where no size is told."""
    size = info.get("size")
    if size is None:
        raise ValueError(
            f"{without_secrets(str(info.get('name')))}: the server does not tell its size"
        )
    keys = (
        "ETag",
        "etag",
        "md5Hash",
        "blob_id",
        "mtime",
        "LastModified",
        "last_modified",
        "created",
    )
    mark = next((info[key] for key in keys if info.get(key)), "")
    if isinstance(mark, datetime):  # memory:// tells it so for one file, as seconds in a listing
        mark = mark.timestamp()
    return size, f"{size}:{str(mark).strip(chr(34))}"


def local_identity(path: str | int) -> tuple[int, str]:
    """The same for a local file, open or not. Raises ValueError for what is no regular file."""
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: not a regular file")
    return status.st_size, f"{status.st_size}:{status.st_mtime_ns}"


@contextmanager
def open_listed(split: Split) -> Iterator[Any]:
    """The file of a split, unless it changed since it was listed."""
    fs, path = filesystem(split.path)
    with storage_errors(split.path):
        file = fs.open(path, "rb", cache_type="none")
    with file:
        check_unchanged(split, *_identity_of_open(fs, path, file))
        yield file


def check_unchanged(split: Split, size: int, version: str) -> None:
    if version != split.version:
        raise ValueError(
            f"{split.source}: changed since it was listed: "
            f"{split.file_size} bytes ({split.version}) then, {size} ({version}) now"
        )


def read_listed(file: Any, split: Split, start: int, wanted: int) -> bytes:
    """Bytes of the version of the file that was listed; raises ValueError where it is another.

    A local file may be written over while it is read; objects are read by their ETag.
    """
    with storage_errors(split.path):
        file.seek(start)
        data = file.read(wanted)
    if isinstance(file, LocalFileOpener):
        check_unchanged(split, *local_identity(file.fileno()))
    return data


def _identity_of_open(fs: AbstractFileSystem, path: str, file: Any) -> tuple[int, str]:
    if is_local(fs):
        return local_identity(path)
    if isinstance(file, AbstractBufferedFile):  # asked for on opening; s3fs holds reads to its ETag
        return identity(file.details)
    with storage_errors(path):
        return identity(fs.info(path))


def stored_bytes(file: Any, split: Split, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to the end of the file. A piece ends at `stop`; those after are small."""
    while start < split.file_size:
        wanted = min(CHUNK, stop - start) if start < stop else min(TAIL, split.file_size - start)
        piece = read_listed(file, split, start, wanted)
        if not piece:
            raise OSError(f"{split.source}: ends at byte {start} of {split.file_size}")
        start += len(piece)
        yield piece


# -------------------------------------------------------------------------------------- bad records


def bad_record(position: int, reason: Reason, detail: str, **stands_for: int) -> BadRecord:
    return BadRecord(position, reason, _printable(detail), **stands_for)


def too_long(position: int, length: int, cap: int) -> BadRecord:
    return bad_record(position, Reason.OVER_SIZE_CAP, f"{length} bytes, the cap is {cap}")


def shown_columns(names: Any) -> str:
    shown = ", ".join(repr(name[:60]) for name in islice(names, 12))
    return f"its columns are {shown or 'none'}{', ...' if len(names) > 12 else ''}"


def _printable(text: str) -> str:
    kept = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:200])
    return kept if len(kept) <= 200 else kept[:199] + "…"


def pack_task(splits: Sequence[Split]) -> str:
    """Splits to read, as one string."""
    return json.dumps([asdict(split) for split in splits])


def unpack_task(task: str) -> list[Split]:
    return [Split(**split) for split in json.loads(task)]
