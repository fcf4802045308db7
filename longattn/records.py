"""Reads one split of a corpus: every line or row becomes a Record or a BadRecord, none is lost.

What the bytes hold is never trusted: bad content is reported and reading goes on, in memory bounded
by `max_record_bytes`. What the storage fails to give is an OSError, for the caller to try again.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from itertools import islice
from typing import Any, Literal, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener
from fsspec.spec import AbstractBufferedFile

from longattn.config import redact
from longattn.storage import filesystem, is_local, storage_errors

CHUNK = 8 << 20  # bytes asked of the storage at a time
TAIL = 1 << 20  # the same, past the end of a split, where only the rest of one line is wanted
BATCH_BYTES, BATCH_ROWS = 16 << 20, 64  # of Parquet text decoded at a time
# Compressed bytes fed at a time. They bound what a bomb can give at once: zstd unpacks 4 bytes to
# 128 KiB at most, deflate 1 byte to 1032.
FEED = {"gzip": 16 << 10, "zstd": 2 << 10}
BOM = b"\xef\xbb\xbf"

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
        return redact(self.path)

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


class Unreadable(Exception):  # noqa: N818
    """A Parquet file, or a part of it, whose content is broken."""


def read_split(split: Split, *, max_record_bytes: int = 512 << 20) -> Iterator[Record | BadRecord]:
    """Every record of a split, in the order of the file.

    Blank lines are no records. Lines end with "\\n" only. A line that orjson refuses is tried once
    more with Python's json, which takes what its own writer writes: NaN, Infinity, and lone
    surrogates in columns that are not asked for. Nested deeper than that can follow is not_json.
    A Parquet row group without a text column of strings, or broken in the middle, gives one
    BadRecord that tells the number of rows; a broken archive, or a Parquet file without a good
    footer, one that tells the stored bytes.

    Args:
        split: from `list_splits`.
        max_record_bytes: cap on a line, or on a Parquet value. A longer one is skipped and reported.

    Raises:
        OSError: the storage failed; reading the split again may work.
        ValueError: the file is not the one that was listed.
    """
    with _opened(split) as file:
        if split.format == "parquet":
            yield from _parquet_rows(file, split, max_record_bytes)
            return
        stop = split.file_size if split.stop is None else split.stop
        pieces: Iterator[bytes | Broken] = _stored_bytes(file, split, max(split.start - 1, 0), stop)
        if split.compression:
            pieces = _decompressed(pieces, split.compression, split.file_size)
        end = None if split.compression else stop
        for item in _lines(pieces, split.start, end, max_record_bytes):
            if isinstance(item, BadRecord):
                yield item
                continue
            record = _parsed(*item, split.text_column)
            del item  # a 50 MB line would live on beside its text
            if record is not None:
                yield record


# ---------------------------------------------------------------------------------------- storage


def identity(info: Mapping[str, Any]) -> tuple[int, str]:
    """Size and version of a file, from an fsspec listing. Raises ValueError where no size is told."""
    size = info.get("size")
    if size is None:
        raise ValueError(f"{redact(str(info.get('name')))}: the server does not tell its size")
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
def _opened(split: Split) -> Iterator[Any]:
    """The file of a split, unless it changed since it was listed."""
    fs, path = filesystem(split.path)
    with storage_errors(split.path):
        file = fs.open(path, "rb", cache_type="none")
    with file:
        _check(split, *_identity_of_open(fs, path, file))
        yield file


def _check(split: Split, size: int, version: str) -> None:
    if version != split.version:
        raise ValueError(
            f"{split.source}: changed since it was listed: "
            f"{split.file_size} bytes ({split.version}) then, {size} ({version}) now"
        )


def _read(file: Any, split: Split, start: int, wanted: int) -> bytes:
    """Bytes of the version of the file that was listed; raises ValueError where it is another.

    A local file may be written over while it is read; objects are read by their ETag.
    """
    with storage_errors(split.path):
        file.seek(start)
        data = file.read(wanted)
    if isinstance(file, LocalFileOpener):
        _check(split, *local_identity(file.fileno()))
    return data


def _identity_of_open(fs: AbstractFileSystem, path: str, file: Any) -> tuple[int, str]:
    if is_local(fs):
        return local_identity(path)
    if isinstance(file, AbstractBufferedFile):  # asked for on opening; s3fs holds reads to its ETag
        return identity(file.details)
    with storage_errors(path):
        return identity(fs.info(path))


def _stored_bytes(file: Any, split: Split, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to the end of the file. A piece ends at `stop`; those after are small."""
    while start < split.file_size:
        wanted = min(CHUNK, stop - start) if start < stop else min(TAIL, split.file_size - start)
        piece = _read(file, split, start, wanted)
        if not piece:
            raise OSError(f"{split.source}: ends at byte {start} of {split.file_size}")
        start += len(piece)
        yield piece


# ------------------------------------------------------------------------------------------ JSONL


class Broken(NamedTuple):
    """How an archive is broken, and how many of its bytes are of no use after that."""

    why: str
    lost_bytes: int


def _decompressed(
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


def _lines(
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
            yield _bad(position, Reason.TRUNCATED_ARCHIVE, piece.why, lost_bytes=piece.lost_bytes)
            return
        if position < start and stop is not None and offset >= stop:
            return  # in the middle of a line that started before the split
        cursor = 0
        while (end := piece.find(b"\n", cursor)) >= 0:
            if position >= start:
                length = held + end - cursor
                if length > cap:
                    yield _too_long(position, length, cap)
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
        yield _too_long(position, held, cap)
    elif parts:
        yield _joined(parts), position


def _joined(parts: list[bytes]) -> bytes:
    """The parts as one, released before the line goes out."""
    line = b"".join(parts)
    parts.clear()
    return line


def _parsed(line: bytes, position: int, column: str) -> Record | BadRecord | None:
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
            return _bad(position, Reason.BAD_UTF8, str(error))
        except (ValueError, RecursionError):
            return _bad(position, Reason.NOT_JSON, str(refusal))
    if not isinstance(value, dict):
        return _bad(position, Reason.NOT_OBJECT, type(value).__name__)
    if column not in value:
        return _bad(position, Reason.NO_TEXT_COLUMN, _columns(value))
    text = value[column]
    if not isinstance(text, str):
        return _bad(position, Reason.NOT_A_STRING, type(text).__name__)
    if not checked:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return _bad(position, Reason.BAD_UTF8, str(error))
    return Record(text, position)


# ---------------------------------------------------------------------------------------- Parquet


class _Tracked(io.RawIOBase):
    """A file that keeps the error it met: pyarrow calls broken content OSError as well."""

    def __init__(self, file: Any, split: Split) -> None:
        self.file, self.split, self.position = file, split, 0
        self.error: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.split.file_size}
        self.position = base[whence] + offset
        return self.position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self.split.file_size - self.position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        try:
            data = _read(self.file, self.split, self.position, wanted)
            if len(data) < wanted:
                raise OSError(
                    f"{self.split.source}: {len(data)} of {wanted} bytes at byte {self.position}"
                )
        except (OSError, ValueError) as error:
            self.error = error
            raise
        self.position += len(data)
        return data


@contextmanager
def _content_errors(tracked: _Tracked) -> Iterator[None]:
    """Errors of pyarrow as Unreadable, but for those of the storage below it."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if tracked.error is not None:
            raise tracked.error from error
        raise Unreadable(str(error)) from error


@contextmanager
def opened_parquet(split: Split) -> Iterator[tuple[pq.ParquetFile, str | None]]:
    """A split's Parquet file, and what is wrong with its text column, if anything.

    Raises:
        Unreadable: there is no good footer.
    """
    with _opened(split) as file:
        parquet, _, problem = _parquet(file, split)
        yield parquet, problem and problem[1]


def _parquet(file: Any, split: Split) -> tuple[pq.ParquetFile, _Tracked, tuple[Reason, str] | None]:
    tracked = _Tracked(file, split)
    with _content_errors(tracked):
        # Neither pre_buffer, which holds a row group's column whole, nor a read-ahead cache below,
        # which fetches the other columns: the text column comes in reads of CHUNK.
        parquet = pq.ParquetFile(
            pa.PythonFile(tracked, mode="r"),
            pre_buffer=False,
            buffer_size=CHUNK,
            page_checksum_verification=True,
        )
        return parquet, tracked, _column_problem(parquet.schema_arrow, split.text_column)


def _column_problem(schema: pa.Schema, column: str) -> tuple[Reason, str] | None:
    index = schema.get_field_index(column)
    if index < 0:
        return Reason.NO_TEXT_COLUMN, _columns(schema.names)
    kind = schema.field(index).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    if any(getattr(pa.types, f"is_{test}")(kind) for test in tests):
        return None
    return Reason.NOT_A_STRING, str(kind)


def _parquet_rows(file: Any, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    try:
        parquet, tracked, problem = _parquet(file, split)
    except Unreadable as error:
        yield _bad(0, Reason.UNREADABLE, str(error), lost_bytes=split.size)
        return
    counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    first = sum(counts[: split.start])
    for group, rows in islice(enumerate(counts), split.start, split.stop):
        if problem:
            yield _bad(first, problem[0], f"{rows} rows: {problem[1]}", records=rows)
        else:
            yield from _row_group(parquet, tracked, group, first, split.text_column, cap)
        first += rows


def _row_group(
    parquet: pq.ParquetFile, tracked: _Tracked, group: int, first: int, column: str, cap: int
) -> Iterator[Record | BadRecord]:
    metadata = parquet.metadata.row_group(group)
    position, end = first, first + metadata.num_rows
    try:
        for values in _batches(parquet, tracked, group, column):
            for value in values:
                yield _row(value, position, cap)
                position += 1
        if position < end:
            raise Unreadable("the column is shorter than the row group")
    except Unreadable as error:
        detail = f"row group {group}, {end - position} rows from here: {error}"
        yield _bad(position, Reason.UNREADABLE, detail, records=end - position)


def _batches(
    parquet: pq.ParquetFile, tracked: _Tracked, group: int, column: str
) -> Iterator[pa.Array]:
    """The text column of a row group, about BATCH_BYTES at a time. Raises Unreadable."""
    with _content_errors(tracked):
        # Not metadata.column(i): on a footer with one wrong bit it can abort the process (pyarrow
        # 26). The row group's own size, of all columns, bounds that of the text.
        metadata = parquet.metadata.row_group(group)
        size = max(metadata.total_byte_size, 1)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // size))
        batches = parquet.iter_batches(
            rows, row_groups=[group], columns=[column], use_threads=False
        )
    while True:
        with _content_errors(tracked):
            batch = next(batches, None)
            if batch is None:
                return
            values = batch.column(column)
            if pa.types.is_dictionary(values.type):
                values = values.dictionary_decode()
        yield values


def _row(value: Any, position: int, cap: int) -> Record | BadRecord:
    """Of a pyarrow scalar of strings or bytes."""
    buffer = value.as_buffer()
    if buffer is None:
        return _bad(position, Reason.NOT_A_STRING, "null")
    if buffer.size > cap:
        return _too_long(position, buffer.size, cap)
    try:
        return Record(str(buffer, "utf-8"), position)
    except UnicodeDecodeError as error:
        return _bad(position, Reason.BAD_UTF8, str(error))


# -------------------------------------------------------------------------------------- bad records


def _bad(position: int, reason: Reason, detail: str, **stands_for: int) -> BadRecord:
    return BadRecord(position, reason, _printable(detail), **stands_for)


def _too_long(position: int, length: int, cap: int) -> BadRecord:
    return _bad(position, Reason.OVER_SIZE_CAP, f"{length} bytes, the cap is {cap}")


def _columns(names: Any) -> str:
    shown = ", ".join(repr(name[:60]) for name in islice(names, 12))
    return f"its columns are {shown or 'none'}{', ...' if len(names) > 12 else ''}"


def _printable(text: str) -> str:
    kept = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:200])
    return kept if len(kept) <= 200 else kept[:199] + "…"
