"""The records of a corpus: the split they are read in, good and bad ones, and the bytes of a listed file.

A `Split` is one unit of reading and of resume: a file, or a part of it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import Any, Literal

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener
from fsspec.spec import AbstractBufferedFile

from longattn.storage.files import filesystem, is_local, storage_errors
from longattn.storage.identity import identity
from longattn.text import without_secrets, without_signature

CHUNK = 8 << 20  # bytes asked of the storage at a time
TAIL = 1 << 20  # the same, past the end of a split, where only the rest of one line is wanted

Format = Literal["jsonl", "csv", "tsv", "txt", "parquet", "arrow"]
Compression = Literal["gzip", "bz2", "xz", "zstd"]


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
    """First byte of plain JSON Lines (a record belongs to the split that holds its first byte), first
    row group of Parquet, first record batch of Arrow, 0 for a file that cannot be cut."""
    stop: int | None
    """The end of that range, excluded; None: the end of the file."""
    file_size: int
    """Bytes as stored."""
    version: str
    """Says for a later run that the file is still the same: size, and ETag or time of change."""
    marks: tuple[tuple[str, str], ...] = ()
    """What the listing of a store said of the file: `etag`, `hash`, `time`, where it said them."""
    columns: tuple[tuple[str, str], ...] = ()
    """Names and types of the columns that go with each document; a type is "" until it is known."""

    @cached_property
    def id(self) -> str:
        """32 hex digits over all that decides what the split yields."""
        # Who asks does not matter, nor what with: signed URLs expire, and are signed anew.
        path = without_signature(re.sub("(?<=://)[^/?#]*@", "", self.path))
        what = [self.category, path, self.text_column, self.start, self.stop, self.version]
        return sha256(json.dumps(what).encode()).hexdigest()[:32]

    @cached_property
    def source(self) -> str:
        """The path as it is told and stored: without passwords and signatures."""
        return without_secrets(self.path)

    @property
    def is_part(self) -> bool:
        """Whether it is less than its file."""
        return self.start > 0 or self.stop not in (None, self.file_size)

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
    """Byte offset in the (decompressed, UTF-8) file; in Parquet the row's number in the file, in Arrow
    in the split."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Values of those of the split's `columns` that the record has."""


class Reason(StrEnum):
    """Why a record is not used."""

    NOT_JSON = "not_json"
    NOT_OBJECT = "not_object"
    NO_TEXT_COLUMN = "no_text_column"
    NOT_A_STRING = "not_a_string"
    BAD_ROW = "bad_row"
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


def local_identity(path: str | int) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """The same for a local file, open or not. Raises ValueError for what is no regular file."""
    status = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(status.st_mode):
        where = path if isinstance(path, int) else without_secrets(path)
        raise ValueError(f"{where}: not a regular file")
    return status.st_size, f"{status.st_size}:{status.st_mtime_ns}", ()


@contextmanager
def open_listed(split: Split) -> Iterator[Any]:
    """The file of a split, unless it changed since it was listed."""
    fs, path = filesystem(split.path)
    with storage_errors(split.path):
        file = fs.open(path, "rb", cache_type="none")
    with file:
        check_unchanged(split, *_identity_of_open(fs, split.path, path, file))
        etag = str(getattr(file, "read_kw", {}).get("IfMatch", ""))
        if etag.startswith("W/"):  # which no If-Match ever meets
            del file.read_kw["IfMatch"]
        yield file


def check_unchanged(
    split: Split, size: int, version: str, marks: Sequence[tuple[str, str]] = ()
) -> None:
    """Raises ValueError where the size, or a mark that listing and opening both told, differs.

    Of the marks that both told the first decides: ETag, hash, time.
    """
    now, same = dict(marks), size == split.file_size
    if not split.marks and not marks:  # local files
        same = version == split.version
    for kind, mark in split.marks if same else ():
        if kind in now:
            same = _same_time(mark, now[kind]) if kind == "time" else mark == now[kind]
            break
    if not same:
        raise ValueError(
            f"{split.source}: changed since it was listed: "
            f"{split.file_size} bytes ({split.version}) then, {size} ({version}) now"
        )


def _same_time(one: str, other: str) -> bool:
    """Whether two time stamps are the same, at the precision of the coarser one."""
    a, b = _seconds(one), _seconds(other)
    if a is None or b is None:
        return True
    whole = a == int(a) or b == int(b)
    return abs(a - b) < (1 if whole else 1e-3)


def _seconds(stamp: str) -> float | None:
    """Of a time stamp as file systems tell it; None for one that is not understood."""
    with suppress(ValueError):
        if re.fullmatch(r"\d{14}(\.\d+)?", stamp):  # FTP: 20261231235959
            stamp = f"{stamp[:8]}T{stamp[8:]}"
        elif re.fullmatch(r"[\d.]+", stamp):
            number = float(stamp)
            return number / 1000 if number > 1e11 else number  # webhdfs tells milliseconds
        told = datetime.fromisoformat(stamp)
        return (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp()
    with suppress(ValueError, TypeError):
        return parsedate_to_datetime(stamp).timestamp()
    return None


def read_listed(file: Any, split: Split, start: int, wanted: int) -> bytes:
    """Bytes of the version of the file that was listed; raises ValueError where it is another.

    A local file may be written over while it is read; objects are read by their ETag.
    """
    with storage_errors(split.path):
        file.seek(start)
        data: bytes = file.read(wanted)
    if isinstance(file, LocalFileOpener):
        check_unchanged(split, *local_identity(file.fileno()))
    return data


def _identity_of_open(
    fs: AbstractFileSystem, url: str, path: str, file: Any
) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    if is_local(fs):
        return local_identity(path)
    if isinstance(file, AbstractBufferedFile):  # asked for on opening; s3fs holds reads to its ETag
        details = file.details  # of HTTP without size or marks
        told = identity(details) if details.get("size") is not None else None
        if told and told[2]:
            return told
    with storage_errors(url):
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


def broken_archive(position: int, why: str, lost_bytes: int) -> BadRecord:
    return bad_record(position, Reason.TRUNCATED_ARCHIVE, why, lost_bytes=lost_bytes)


def shown_columns(names: Any) -> str:
    shown = ", ".join(repr(name[:60]) for name in islice(names, 12))
    return f"its columns are {shown or 'none'}{', ...' if len(names) > 12 else ''}"


def _printable(text: str) -> str:
    kept = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:200])
    return kept if len(kept) <= 200 else kept[:199] + "…"


def member(value: Any, name: str) -> Any:
    """`value[name]`, or what a name with dots leads to in nested mappings; raises KeyError.

    A column whose own name has a dot wins.
    """
    if name in value:
        return value[name]
    for i, letter in enumerate(name):
        if letter == "." and isinstance(value.get(name[:i]), Mapping):
            with suppress(KeyError):
                return member(value[name[:i]], name[i + 1 :])
    raise KeyError(name)


def pack_task(splits: Sequence[Split]) -> str:
    """Splits to read, as one string."""
    names = [of.name for of in fields(Split)]
    return json.dumps([{name: getattr(split, name) for name in names} for split in splits])


def unpack_task(task: str) -> list[Split]:
    pairs = ("marks", "columns")
    return [
        Split(**{**values, **{name: tuple(map(tuple, values[name])) for name in pairs}})
        for values in json.loads(task)
    ]
