"""Where bytes live: file systems by URL, files that appear whole or not at all, Parquet schemas.

Parquet is read and written through fsspec with read-ahead off. With s3fs's default cache, one
narrow column of a 524 MB file fetched 1489 MB; without it, 0.08 MB.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from longattn.config import redact
from longattn.samples import SAMPLES

log = logging.getLogger("longattn")

# `category` is dictionary encoded: pandas and pyarrow then agree with the type that they derive
# from the folder name `category=...`; with a plain string both refuse to open the folder.
CATEGORY = pa.dictionary(pa.int32(), pa.string())
WINDOWS = pa.schema(
    [
        ("data_id", pa.string()),
        ("content", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("category", CATEGORY),
        ("source", pa.string()),
        ("document_id", pa.string()),
        ("window_index", pa.int32()),
        ("token_start", pa.int64()),
        ("token_stop", pa.int64()),
        ("recurrence", pa.float64()),
        ("recurrence_rarity", pa.float64()),
        ("recurrence_pairs", pa.float64()),
    ]
)
LABELLED = pa.schema(
    [
        *WINDOWS,
        ("ds", pa.float64()),
        ("variance", pa.float64()),
        ("ds_heads", pa.list_(pa.float32())),
        ("variance_heads", pa.list_(pa.float32())),
    ]
)
# Labelled files may have more: scores at further distances; exact ones where `ds` and `variance` are
# of a stride of rows, null until a second pass gives them.
FURTHER = re.compile(r"(ds|variance)_(k\d+|exact)")
EXACT = ("ds_exact", "variance_exact")
SELECTED = LABELLED.append(pa.field("lds", pa.float64()))
QUARANTINE = pa.schema(
    [
        ("category", CATEGORY),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

METADATA_KEY = b"longattn"
STAGING = "longattn-staged-"  # in the temporary folder, on its way to an object store
TRIES = 12  # of a request to a store: they bridge a minute without it
READ_TIMEOUT = 30.0  # seconds without a byte, after which a request to a store is tried again
ROWS_PER_GROUP = 64  # about 16 MB of 32K-token windows: what a reader of whole rows holds


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL or local path, and the path inside it.

    `samples:NAME` is a sample document file of this package. Credentials and endpoint of `s3://`
    come from the environment or the AWS profile.
    """
    if url.startswith("samples:"):
        url = str(SAMPLES / url.removeprefix("samples:"))
    if url.startswith(("s3://", "s3a://")):
        return url_to_fs(
            url,
            default_cache_type="none",
            use_listings_cache=False,
            config_kwargs={
                "retries": {"max_attempts": TRIES, "mode": "standard"},
                "connect_timeout": 10,
                "read_timeout": READ_TIMEOUT,
            },
        )
    return url_to_fs(url)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Clients of stores raise errors of their own: all become OSError, tell where, and no secret."""
    try:
        yield
    except OSError as error:
        told, where = redact(str(error)), redact(url)
        if told == str(error) and where in told:
            raise
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        raise kind(told if where in told else f"{where}: {told}") from None
    except Exception as error:  # noqa: BLE001
        raise OSError(redact(f"{url}: {type(error).__name__}: {error}")) from None


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def absolute(url: str) -> str:
    """A local path as `list_files` tells paths, from the root; other URLs unchanged."""
    fs, path = filesystem(url)
    return path if is_local(fs) else url


def is_local(fs: AbstractFileSystem) -> bool:
    return isinstance(fs, LocalFileSystem)


@contextmanager
def staged(url: str) -> Iterator[Path]:
    """A local path to write; on leaving the block its bytes appear at `url`, whole, in one step.

    Locally: written aside, fsync, rename, fsync of the folder. Elsewhere: one completed upload.
    An exception inside the block, or a failed upload, leaves nothing at `url`.
    """
    fs, path = filesystem(url)
    if is_local(fs):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    else:
        handle, name = tempfile.mkstemp(prefix=STAGING)
        fcntl.flock(handle, fcntl.LOCK_EX)  # falls with this process: see `sweep`
        aside = Path(name)
    try:
        yield aside
        if is_local(fs):
            _fsync(aside)
            aside.replace(target)
            _fsync(target.parent)
        else:
            with storage_errors(url):
                fs.put_file(str(aside), path)
    finally:
        aside.unlink(missing_ok=True)
        if not is_local(fs):
            os.close(handle)


def sweep(output: str) -> None:
    """Remove what crashed writers left: half-written files beside local output, staged ones here,
    uploads begun on S3.

    Only for the run that has the folder for itself.
    """
    fs, path = filesystem(output)
    if is_local(fs):
        for file in Path(path).glob("**/.*.tmp"):
            file.unlink(missing_ok=True)
    elif "s3" in fs.protocol:
        _abort_uploads(fs, path)
    for file in Path(tempfile.gettempdir()).glob(f"{STAGING}*"):
        if file.is_file() and file.stat().st_uid == os.getuid():
            with file.open() as staging:
                try:
                    fcntl.flock(staging, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # its writer lives
                    continue
                file.unlink(missing_ok=True)


def _abort_uploads(fs: Any, path: str) -> None:
    """Free what the parts of unfinished uploads take, where we are allowed to."""
    bucket, _, folder = path.partition("/")
    where = {"Bucket": bucket, "Prefix": f"{folder.rstrip('/')}/"}
    try:
        with storage_errors(path):
            for upload in fs.call_s3("list_multipart_uploads", **where).get("Uploads", []):
                key, upload_id = upload["Key"], upload["UploadId"]
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)
    except OSError as error:
        log.warning("unfinished uploads below %s may remain: %s", path, error)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(url: str, data: bytes) -> None:
    """Make a small file appear whole."""
    with staged(url) as path:
        path.write_bytes(data)


def write_json(url: str, value: Any) -> None:
    write_bytes(url, json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")


def read_bytes(url: str) -> bytes | None:
    """The whole of a small file; None where there is none."""
    fs, path = filesystem(url)
    try:
        with storage_errors(url):
            return fs.cat_file(path)
    except FileNotFoundError:
        return None


def read_json(url: str) -> Any:
    """The value of a JSON file; None where there is no file. Raises ValueError naming a broken one."""
    data = read_bytes(url)
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{url}: not JSON: {error}") from None


def list_files(url: str, suffix: str) -> dict[str, int]:
    """Files below a folder by URL, sorted, with their sizes in bytes; hidden and half-written left out."""
    fs, path = filesystem(url)
    try:
        with storage_errors(url):
            found = fs.find(path, detail=True)
    except FileNotFoundError:
        return {}
    return {
        fs.unstrip_protocol(name) if not is_local(fs) else name: info["size"]
        for name, info in sorted(found.items())
        if name.endswith(suffix) and not name.rpartition("/")[2].startswith(".")
    }


def remove(url: str) -> None:
    fs, path = filesystem(url)
    with storage_errors(url):
        fs.rm_file(path)


def parquet_writer(path: Path, schema: pa.Schema, metadata: Mapping[str, Any]) -> pq.ParquetWriter:
    """A writer of files that pyarrow, pandas, fastparquet, DuckDB and `datasets` all open.

    zstd level 3; ids plain (on real text smaller and faster than dictionary or delta encoding);
    data page v1 and no byte-stream split, which fastparquet cannot read.
    """
    schema = schema.with_metadata({METADATA_KEY: json.dumps(dict(metadata), sort_keys=True)})
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["category", "source", "document_id", "reason"],
        data_page_version="1.0",
        write_statistics=["data_id", "ds", "variance", "window_index", "lds", "recurrence"],
    )


def write_table(url: str, table: pa.Table, metadata: Mapping[str, Any]) -> int:
    """Make one Parquet file appear whole; `metadata` goes under the key `longattn` of its footer.

    Returns its size in bytes.
    """
    with staged(url) as path:
        with parquet_writer(path, table.schema, metadata) as writer:
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        return path.stat().st_size


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """Raises OSError where the storage fails, ValueError for what is no Parquet file."""
    fs, path = filesystem(url)
    with storage_errors(url):
        file = fs.open(path, "rb")
    with file:
        with readable(url):
            parquet = pq.ParquetFile(file)
        with parquet:
            yield parquet


@contextmanager
def readable(url: str) -> Iterator[None]:
    """Around reading a Parquet file: an OSError or, of what is broken in it, a ValueError names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(redact(f"{url}: cannot be read: {error}")) from error


@contextmanager
def told_when_slow(doing: str, seconds: float = 10.0) -> Iterator[None]:
    """Logs what is being done once it takes long: a store that does not answer looks like that."""
    told = f"still {doing}; a store that does not answer is asked again and again for some time"
    timer = threading.Timer(seconds, log.warning, (told,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def file_metadata(parquet: pq.ParquetFile) -> dict[str, Any]:
    """What `write_table` put into the footer; empty for a file of another writer."""
    return json.loads((parquet.schema_arrow.metadata or {}).get(METADATA_KEY, b"{}"))


def content_name(*columns: pa.ChunkedArray | pa.Array) -> str:
    """A file name that is a hash of the values inside the file, so that a retry overwrites itself."""
    digest = blake2b(digest_size=16)
    for column in columns:
        digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest() + ".parquet"
