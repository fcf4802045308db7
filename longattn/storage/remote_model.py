"""A model in an object store or on a web server: fetched into the cache folder, whole or in part.

Of a large model a scorer needs a few tensors. Then only byte ranges of the safetensors files are read:
the header, and the bytes of those tensors, which become one safetensors file in the cache folder. What is
there is named after what the store says of the version of its files (checksum, ETag or time of change),
so that changed files are fetched again. One process fetches, others wait for it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TypedDict

from fsspec import AbstractFileSystem

from longattn.errors import ConfigError
from longattn.storage.files import filesystem, join, parallel, storage_errors, warn_if_slow
from longattn.storage.identity import identity
from longattn.text import size as shown_size
from longattn.text import without_secrets

log = logging.getLogger("longattn")
CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
SMALL_FILES = (CONFIG, "tokenizer.json", INDEX)
CACHE = "LONGATTN_CACHE"
PIECE = 16 << 20  # bytes of one request; `parallel` has 16 of them at once
MAX_HEADER = 100_000_000  # bytes, as safetensors itself has it


def cache_folder() -> Path:
    """Where what was fetched is kept: LONGATTN_CACHE, or `longattn` in the user's cache folder."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "longattn"


def fetch_small_files(url: str) -> Path:
    """A local folder with the config, the tokenizer and the index of a model, as far as it has them.

    Raises:
        ValueError: in one line; there is no config.json, or no mark that tells versions apart.
        OSError: the store failed.
    """
    model = _Remote(url)
    return model.kept(model.small_files())


def fetch_whole_model(url: str) -> Path:
    """A local folder with the config, the tokenizer and all weights of a model, its safetensors files.

    Raises:
        ValueError: in one line; no config.json or weights there, no mark that tells versions apart,
            or no room for them in the cache folder.
        OSError: the store failed.
    """
    model = _Remote(url)
    small = model.small_files()
    index = next((file for file in small if file.name == INDEX), None)
    weights = model.indexed_files(index) if index else model.weight_files()
    return model.kept([*small, *weights])


def tensor_files(url: str) -> dict[str, str]:
    """Tensor name -> name of the safetensors file that holds it, of a model without an index.

    Raises:
        ValueError: in one line; no such file, or not a readable one.
        OSError: the store failed.
    """
    model = _Remote(url)
    return {
        tensor: file.name for file in model.weight_files() for tensor in model.header(file).tensors
    }


def fetch_tensors(url: str, tensors: Mapping[str, str]) -> Path:
    """A local safetensors file with these tensors alone.

    Args:
        url: of the model's folder.
        tensors: name of a tensor -> name of the file that is to hold it.

    Raises:
        ValueError: in one line; a file or a tensor that is not there, or not a readable file.
        OSError: the store failed, or the cache folder is full.
    """
    model = _Remote(url)
    files = {file.name: file for file in model.files(sorted(set(tensors.values())))}
    for tensor, name in sorted(tensors.items()):
        if name not in files:
            raise ValueError(
                f"model {model.shown}: no file {name}, which is to hold the tensor {tensor}"
            )

    def fetch(folder: Path) -> None:
        model.copy(tensors, files, folder / WEIGHTS)
        model.require_unchanged(files.values())

    return _kept(_key(files.values(), sorted(tensors)), fetch, model.shown) / WEIGHTS


@dataclass(frozen=True)
class _File:
    """A file of the model in its store."""

    name: str
    size: int
    version: str
    """Another string for another version of the file."""


class _Tensor(TypedDict):
    """What a safetensors file says of a tensor."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class _Header:
    tensors: dict[str, _Tensor]
    start: int
    """Where the data begin, to which the offsets count."""


class _Range(NamedTuple):
    """Bytes [start, stop) of a file, and where they go among the data of the new one."""

    file: _File
    start: int
    stop: int
    target: int


class _Remote:
    """The folder of a model on a store."""

    def __init__(self, url: str) -> None:
        self.url, self.shown = url.rstrip("/"), without_secrets(url)
        if "://***@" in url:
            raise ValueError(
                f"model {url}: its password was not stored with the settings; give the config itself"
            )
        self.fs, self.path = filesystem(self.url)

    def files(self, names: Iterable[str]) -> list[_File]:
        """Those of some files that are there."""
        with warn_if_slow(f"looking for the model {self.shown}"):
            found = parallel(self._file, names)
        return [file for file in found if file is not None]

    def _file(self, name: str) -> _File | None:
        try:
            with storage_errors(self.url):
                info = self.fs.info(join(self.path, name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        size, _, marks = identity(info)
        if not marks:
            raise ValueError(
                f"model {self.shown}: its server tells neither an ETag nor a time of change of {name}, "
                "so that a kept copy could be of another version: give a local folder"
            )
        kind, mark = marks[0]
        # A checksum of the content says all; of other marks, only one place is known to be of one kind.
        of_content = kind == "hash" or (kind == "etag" and "s3" in _protocols(self.fs))
        where = name if of_content else join(self.url, name)
        return _File(name, size, f"{where} {size} {kind} {mark}")

    def weight_files(self) -> list[_File]:
        """`model.safetensors`, or else all `*.safetensors`."""
        if found := self.files([WEIGHTS]):
            return found
        try:
            with storage_errors(self.url):
                names = sorted(p.rpartition("/")[2] for p in self.fs.ls(self.path, detail=False))
        except FileNotFoundError:
            names = []
        if found := self.files([name for name in names if name.endswith(".safetensors")]):
            return found
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        held = f"only {pickles[0]}, a pickle, which can run code when read" if pickles else "none"
        raise ValueError(f"model {self.shown}: no weights in *.safetensors; holds {held}")

    def small_files(self) -> list[_File]:
        """The config, and the tokenizer and the index where it has them."""
        found = self.files(SMALL_FILES)
        if CONFIG not in (file.name for file in found):
            raise ValueError(f"model {self.shown}: no {CONFIG} there, so no checkpoint")
        return found

    def indexed_files(self, index: _File) -> list[_File]:
        """The weight files that the index names."""
        try:
            names = sorted(set(json.loads(self.read(index, 0, index.size))["weight_map"].values()))
            bad = [name for name in names if "/" in name or not name.endswith(".safetensors")]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"{self.shown}/{INDEX}: not an index of tensors") from None
        if bad:
            raise ValueError(f"{self.shown}/{INDEX}: {bad[0]!r} is no safetensors file beside it")
        found = self.files(names)
        if missing := sorted(set(names) - {file.name for file in found}):
            raise ValueError(f"model {self.shown}: no file {missing[0]}, which its index names")
        return found

    def kept(self, files: Sequence[_File]) -> Path:
        """A local folder with these files whole."""

        def fetch(folder: Path) -> None:
            if any(file.name.endswith(".safetensors") for file in files):
                total = sum(file.size for file in files)
                shown = shown_size(total)
                self._require_room(folder, total)
                log.info("fetching the model %s (%s) into %s", self.shown, shown, cache_folder())
            for file in files:
                with _written(folder / file.name) as write:
                    self._copy_file(file, write)
            self.require_unchanged(files)

        return _kept(_key(files), fetch, self.shown)

    def _copy_file(self, file: _File, write: Callable[[bytes, int], None]) -> None:
        def fetch(start: int) -> None:
            write(self.read(file, start, min(start + PIECE, file.size)), start)

        parallel(fetch, range(0, file.size, PIECE))

    def _require_room(self, folder: Path, wanted: int) -> None:
        free = shutil.disk_usage(folder).free
        if wanted > free:
            raise ConfigError(
                f"model {self.shown}: {shown_size(wanted)} of it, and {shown_size(free)} free in "
                f"{cache_folder()}: set {CACHE} to a folder that has room for it"
            )

    def read(self, file: _File, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file."""
        url, path = join(self.url, file.name), join(self.path, file.name)
        with storage_errors(url), self.fs.open(path, "rb", cache_type="none") as opened:
            opened.seek(start)
            data: bytes = opened.read(stop - start)
        if len(data) != stop - start:
            raise OSError(f"{self.shown}/{file.name}: {len(data)} of {stop - start} bytes came")
        return data

    def header(self, file: _File) -> _Header:
        """What a safetensors file says of its tensors."""
        try:
            length = int.from_bytes(self.read(file, 0, 8), "little") if file.size >= 8 else -1
            if not 0 < length <= min(file.size - 8, MAX_HEADER):
                raise ValueError("its header has no length")
            tensors: dict[str, _Tensor] = json.loads(self.read(file, 8, 8 + length))
            tensors.pop("__metadata__", None)
            for of in tensors.values():
                first, last = of["data_offsets"]
                if not 0 <= first <= last <= file.size - 8 - length:
                    raise ValueError("its header points past its end")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"{self.shown}/{file.name}: not a readable safetensors file: {why}"
            ) from None
        return _Header(tensors, 8 + length)

    def copy(self, tensors: Mapping[str, str], files: Mapping[str, _File], target: Path) -> None:
        """Write some tensors into a safetensors file of their own."""
        headers = {name: self.header(file) for name, file in files.items()}
        told: dict[str, _Tensor] = {}
        ranges: list[_Range] = []
        at = 0
        for tensor, name in sorted(tensors.items()):
            of = headers[name].tensors.get(tensor)
            if of is None:
                raise ValueError(
                    f"{self.shown}/{name}: the index promises {tensor}, which is not there"
                )
            first, last = (headers[name].start + offset for offset in of["data_offsets"])
            told[tensor] = {**of, "data_offsets": [at, at + last - first]}
            for start in range(first, last, PIECE):
                stop = min(start + PIECE, last)
                ranges.append(_Range(files[name], start, stop, at + start - first))
            at += last - first
        text = json.dumps(told).encode()
        text += b" " * (-len(text) % 8)
        log.info(
            "fetching %d tensors (%s) of the model %s into %s",
            len(told),
            shown_size(at),
            self.shown,
            cache_folder(),
        )
        head = len(text).to_bytes(8, "little") + text

        with _written(target) as write:
            write(head, 0)

            def fetch(of: _Range) -> None:
                write(self.read(of.file, of.start, of.stop), len(head) + of.target)

            parallel(fetch, ranges)

    def require_unchanged(self, files: Iterable[_File]) -> None:
        """Raises OSError where a file is no longer the version that was listed before it was read."""
        before = list(files)
        if self.files([file.name for file in before]) != before:
            raise OSError(f"model {self.shown}: it changed while it was read; run again")


def _protocols(fs: AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


# --- the cache folder ----------------------------------------------------------------------------


def _key(files: Iterable[_File], tensors: Iterable[str] = ()) -> str:
    text = "\n".join([*(file.version for file in files), *tensors])
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _kept(key: str, fetch: Callable[[Path], None], shown: str) -> Path:
    """The folder of a key in the cache; where it is not there, `fetch` fills it, once for all processes."""
    folder = cache_folder()
    entry = folder / key
    if entry.is_dir():
        return entry
    with _local_errors():
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{key}.lock").open("w")
    with lock:
        with suppress(OSError), warn_if_slow(f"waiting for another process to fetch {shown}"):
            fcntl.flock(lock, fcntl.LOCK_EX)  # falls with its process; where there is none, go on
        if entry.is_dir():
            return entry
        aside = folder / f"{key}.{uuid.uuid4().hex}"
        try:
            with _local_errors():
                aside.mkdir()
            fetch(aside)
            with suppress(OSError):  # another node was faster, with the same
                aside.rename(entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    if not entry.is_dir():
        raise ConfigError(f"{CACHE} {folder}: what was fetched cannot be kept there")
    return entry


@contextmanager
def _written(path: Path) -> Iterator[Callable[[bytes, int], None]]:
    """A function that writes bytes at a place of a new file; several threads may call it."""

    def write(data: bytes, at: int) -> None:
        with _local_errors():
            os.pwrite(out, data, at)

    with _local_errors():
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        yield write
        with _local_errors():
            os.fsync(out)
    finally:
        os.close(out)


@contextmanager
def _local_errors() -> Iterator[None]:
    """Around what touches the cache folder alone: an error says what to set."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{CACHE} {cache_folder()}: cannot be written ({error.strerror}): set {CACHE} to a folder "
            "that can be written and has room for the model"
        ) from None
