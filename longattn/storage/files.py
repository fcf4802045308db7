"""Files on any store: file systems by URL, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from longattn.samples import SAMPLES
from longattn.text import without_secrets

log = logging.getLogger("longattn")
READERS = 16  # threads for small reads; an object store answers many at once
STAGING = "longattn-staged-"  # in the temporary folder, on its way to an object store
A = TypeVar("A")
B = TypeVar("B")
TRIES = 12  # of a request to a store: they bridge a minute without it
READ_TIMEOUT = 30.0  # seconds without a byte, after which a request to a store is tried again


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
        told, where = without_secrets(str(error)), without_secrets(url)
        if told == str(error) and where in told:
            raise
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        raise kind(told if where in told else f"{where}: {told}") from None
    except Exception as error:  # noqa: BLE001
        raise OSError(without_secrets(f"{url}: {type(error).__name__}: {error}")) from None


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


@contextmanager
def warn_if_slow(doing: str, seconds: float = 10.0) -> Iterator[None]:
    """Logs what is being done once it takes long: a store that does not answer looks like that."""
    told = f"still {doing}; a store that does not answer is asked again and again for some time"
    timer = threading.Timer(seconds, log.warning, (told,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of each item, in order, in threads."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(function, items))
