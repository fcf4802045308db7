"""Files on any store: file systems by URL, and files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from fsspec import AbstractFileSystem, get_filesystem_class
from fsspec.implementations.local import LocalFileSystem

from longattn.errors import ConfigError
from longattn.samples import SAMPLES
from longattn.text import without_secrets

log = logging.getLogger("longattn")
READERS = 16  # threads for small reads; an object store answers many at once
STAGING = "longattn-staged-"  # in the temporary folder, on its way to an object store
ASIDE = ".longattn-"  # begins the name of a local file while it is written
ENCODED = re.compile(
    r"(?:%[0-9A-Fa-f]{2}|[\w.~:/@!$&'()*+,;=-])*\?(?:%[0-9A-Fa-f]{2}|[\w.~:/?@!$&'()*+,;=-])*$",
    re.A,
)
"""A URL with a query that needs no encoding."""
A = TypeVar("A")
B = TypeVar("B")
TRIES = 12  # of a request to a store: they bridge a minute without it
ANSWER_TIMEOUT = 4.0  # seconds in which a store's address must take a connection; of three tries
CREDENTIAL_ERRORS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # botocore
READ_TIMEOUT = 30.0  # seconds without a byte, after which a request to a store is tried again


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL or local path, and the path inside it.

    `samples:NAME` is a sample document file of this package. Credentials and endpoint of `s3://`
    come from the environment or the AWS profile. A `::` is part of a name: URLs are not chained.

    Raises ConfigError for a URL with S3 credentials in it, an unknown scheme, or one whose package
    is not installed.
    """
    if url.startswith("samples:"):
        url = str(SAMPLES / url.removeprefix("samples:"))
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    scheme = match[1] if match else "file"
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        _refuse_secrets(url)
        options = {
            "default_cache_type": "none",
            "use_listings_cache": False,
            "config_kwargs": {
                "retries": {"max_attempts": TRIES, "mode": "standard"},
                "connect_timeout": 10,
                "read_timeout": READ_TIMEOUT,
            },
        }
    try:
        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            limits = ClientTimeout(total=None, sock_connect=10, sock_read=READ_TIMEOUT)
            # A signature is of a query as it is written: aiohttp would send `%2F` in it as `/`.
            options = {"client_kwargs": {"timeout": limits}, "encoded": bool(ENCODED.match(url))}
        cls = get_filesystem_class(scheme)
        options |= cls._get_kwargs_from_urls(url)
        fs = cls(**options)
        return fs, cls._strip_protocol(url)
    except ImportError as error:
        why = str(error).partition(chr(10))[0]
        raise ConfigError(f"{without_secrets(url)}: {scheme}:// lacks a package: {why}") from None
    except ValueError as error:
        raise ConfigError(f"{without_secrets(url)}: {without_secrets(str(error))}") from None
    except Exception as error:  # noqa: BLE001 - some connect here
        raise OSError(without_secrets(f"{url}: {_described(error)}")) from None


def _refuse_secrets(url: str) -> None:
    """An S3 URL with credentials in it is refused before any client, and its log, sees it."""
    bucket = url.partition("://")[2].partition("/")[0]
    if ("@" in bucket or ":" in bucket) and not bucket.startswith("arn:"):
        raise ConfigError(
            f"{without_secrets(url)}: no credentials are taken from a URL: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )


class UrlOf:
    """Paths of one file system as URLs that open the same files, the host of `ftp://host/x` included.

    Raises ValueError where no URL says which file system it is.
    """

    def __init__(self, url: str, fs: AbstractFileSystem, path: str) -> None:
        """Of the file system and path that `filesystem(url)` gave."""
        self._unstrip = None if is_local(fs) else fs.unstrip_protocol
        self._before = ""
        if self._unstrip is None or self._opens(self._unstrip(path), fs, path):
            return
        whole = url.rstrip("/")
        self._unstrip, self._before = None, whole.removesuffix(path.rstrip("/"))
        if not self._opens(self(path), fs, path):
            raise ValueError(f"{without_secrets(url)}: its file system does not tell URLs of files")

    def __call__(self, path: str) -> str:
        return self._unstrip(path) if self._unstrip else self._before + path

    @staticmethod
    def _opens(url: str, fs: AbstractFileSystem, path: str) -> bool:
        try:
            return filesystem(url) == (fs, path)
        except (OSError, ValueError, KeyError, TypeError):
            return False


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Clients of stores raise errors of their own: all become OSError, tell where, and no secret.

    Raises ConfigError where the client finds no credentials.
    """
    try:
        yield
    except OSError as error:
        cause = error.__cause__  # HTTP: whatever fails is "not found"
        of_web = cause is not None and type(cause).__module__.startswith("aiohttp")
        if cause is not None and of_web and getattr(cause, "status", 0) not in (404, 410):
            raise OSError(without_secrets(f"{url}: {_described(cause)}")) from None
        told, where = without_secrets(str(error)), without_secrets(url)
        if told == str(error) and where in told:
            raise
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
        raise kind(told if where in told else f"{where}: {told}") from None
    except Exception as error:  # noqa: BLE001
        if type(error).__name__ in CREDENTIAL_ERRORS:
            raise ConfigError(
                without_secrets(
                    f"{url}: {error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                )
                + "or AWS_PROFILE"
            ) from None
        raise OSError(without_secrets(f"{url}: {_described(error)}")) from None


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def require_answer(url: str) -> None:
    """Raises OSError, within a quarter of a minute, where nothing answers at an S3 store's address.

    A client of the store itself asks again for a minute and a half, which is right in the middle of a
    run, and too long for a mistyped address. Behind a proxy, nothing is checked.
    """
    fs, _ = filesystem(url)
    if "s3" not in fs.protocol or getproxies():
        return
    with storage_errors(url):
        fs.connect()
        endpoint = fs._s3.meta.endpoint_url
    parts = urlsplit(endpoint)
    address = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    for last in (False, False, True):
        try:
            socket.create_connection(address, timeout=ANSWER_TIMEOUT).close()
            return
        except OSError as error:
            if last:
                raise OSError(
                    f"{without_secrets(url)}: no answer from {without_secrets(endpoint)} ({error}): set "
                    "AWS_ENDPOINT_URL or AWS_DEFAULT_REGION, or start the store"
                ) from None
            time.sleep(0.5)


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
        aside = target.with_name(f"{ASIDE}{uuid.uuid4().hex}.tmp")
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

    Only for the run that has the folder for itself. What is not this package's stays.
    """
    fs, path = filesystem(output)
    if is_local(fs):
        for file in Path(path).glob(f"**/{ASIDE}*.tmp"):
            if re.fullmatch(r"[0-9a-f]{32}", file.name.removeprefix(ASIDE).removesuffix(".tmp")):
                file.unlink(missing_ok=True)
    elif "s3" in fs.protocol:
        _abort_uploads(fs, output, path)
    for file in Path(tempfile.gettempdir()).glob(f"{STAGING}*"):
        if file.is_file() and file.stat().st_uid == os.getuid():
            with file.open() as staging:
                try:
                    fcntl.flock(staging, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:  # its writer lives
                    continue
                file.unlink(missing_ok=True)


def _abort_uploads(fs: Any, url: str, path: str) -> None:
    """Free what the parts of unfinished uploads take, where we are allowed to."""
    bucket, _, folder = path.partition("/")
    where = {"Bucket": bucket, "Prefix": f"{folder.rstrip('/')}/"}
    try:
        with storage_errors(url):
            for upload in fs.call_s3("list_multipart_uploads", **where).get("Uploads", []):
                key, upload_id = upload["Key"], upload["UploadId"]
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload_id)
    except OSError as error:
        log.warning("unfinished uploads may remain: %s", error)


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
            data: bytes = fs.cat_file(path)
            return data
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
    url_of = UrlOf(url, fs, path)
    return {
        url_of(name): info["size"]
        for name, info in sorted(found.items())
        if name.endswith(suffix) and not name.rpartition("/")[2].startswith(".")
    }


def move(url: str, target: str) -> None:
    """Put a file in another place of its file system, in place of what is there."""
    fs, path = filesystem(url)
    with storage_errors(url):
        if is_local(fs):
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(path).replace(target)
        else:
            fs.mv(path, filesystem(target)[1])


def exists(url: str) -> bool:
    """Whether a file is there."""
    fs, path = filesystem(url)
    with storage_errors(url):
        return bool(fs.exists(path))


def remove(url: str) -> None:
    """Remove a file. One that is not there raises FileNotFoundError, but not on every store: not on S3."""
    fs, path = filesystem(url)
    with storage_errors(url):
        fs.rm_file(path)


@contextmanager
def warn_if_slow(doing: str, seconds: float = 4.0) -> Iterator[None]:
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
