"""Sources to splits: one listing up front, cut into parts that are read alone.

A source is a file, a folder or a glob, local or on any fsspec file system. What a split yields is
read by `longattn.corpus.reading`; `longattn.corpus.first_look` looks into some before a run.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from longattn.corpus.parts import cut_files
from longattn.corpus.records import Compression, Format, Split, local_identity
from longattn.corpus.suffixes import ALLOWED, hint, kind_of
from longattn.errors import ConfigError
from longattn.storage.files import (
    UrlOf,
    filesystem,
    is_local,
    parallel,
    require_answer,
    storage_errors,
    warn_if_slow,
)
from longattn.storage.identity import identity
from longattn.storage.tables import SELECTED, is_own
from longattn.text import without_secrets

log = logging.getLogger("longattn")
SPLIT_BYTES = 256 << 20  # of a part of a file that can be cut
# What `datasets` writes beside its files.
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


class Source(Protocol):
    """Raw documents of one category. `columns`, where it has them, go with each document."""

    @property
    def category(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def text_column(self) -> str: ...


@dataclass(frozen=True)
class Listing:
    """What the sources hold."""

    splits: list[Split]
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """Files of folders that are not read, counted by suffix, for each source that has some."""

    def left_out_lines(self) -> list[str]:
        """A line for people for each such source."""
        return [
            f"left out below {source}: "
            + ", ".join(f"{n:,} {suffix}" for suffix, n in counts.most_common())
            + (
                " (text beside other formats is read by a glob, as *.txt)"
                if ".txt" in counts
                else ""
            )
            + next(filter(None, map(hint, counts)), "")
            for source, counts in self.left_out.items()
        ]


def list_sources(
    sources: Iterable[Source],
    *,
    split_bytes: int = SPLIT_BYTES,
    settings: Sequence[str] = (),
) -> Listing:
    """What there is to read, sorted by category and path, and what is left out.

    A path that exists is taken as it is written; else `{a,b}` are alternatives, each of which must
    match, and `*`, `?`, `[ab]` and `**` (any number of folders) match names. Folders, matched ones
    too, are read recursively: files of a known suffix. Names that start with "." or "_" are left
    out, unless the path says so; text files (.txt) are, beside files of another format: there they
    are notes. A file listed twice for one category and column counts once.

    Args:
        sources: where to look.
        split_bytes: a larger plain JSON Lines file is cut into even byte ranges of at most this
            size, a larger Parquet or Arrow file into runs of row groups or record batches. Others
            cannot be cut.
        settings: what each source's path is called where it is refused; by default `sources.<i>.path`.

    Raises:
        ValueError: a path or pattern matches nothing, a suffix is unknown, a name is not UTF-8.
        OSError: the storage failed, or does not answer.
    """
    files: dict[tuple[str, str, str], Split] = {}
    left_out: dict[str, Counter[str]] = {}
    for i, source in enumerate(sources):
        try:
            found, skipped = list_files(source)
        except ConfigError:
            raise
        except ValueError as error:
            setting = settings[i] if settings else f"sources.{i}.path"
            raise ConfigError(f"{setting}: {error}") from None
        for split in found:
            files.setdefault(file_key(split), split)
        if skipped:
            left_out[without_secrets(source.path)] = skipped
    ordered = [files[key] for key in sorted(files)]
    with warn_if_slow("looking where large files can be cut"):
        return Listing(cut_files(ordered, split_bytes), left_out)


def list_files(source: Source, *, may_be_missing: bool = False) -> tuple[list[Split], Counter[str]]:
    """Each file of a source as one split, not yet cut, and what is left out by suffix.

    Raises as `list_sources` does; `may_be_missing`: a path that matches nothing gives nothing.
    """
    _check_columns(getattr(source, "columns", ()))
    skipped: Counter[str] = Counter()
    with warn_if_slow(f"listing {without_secrets(source.path)}"):
        return list(_files(source, skipped, may_be_missing=may_be_missing)), skipped


def file_key(split: Split) -> tuple[str, str, str]:
    """What a file is listed once for: category, path and column."""
    return split.category, split.path, split.text_column


def list_splits(
    sources: Iterable[Source],
    *,
    split_bytes: int = SPLIT_BYTES,
    settings: Sequence[str] = (),
) -> list[Split]:
    """The splits of `list_sources`; what is left out is logged."""
    listing = list_sources(sources, split_bytes=split_bytes, settings=settings)
    for line in listing.left_out_lines():
        log.warning("%s", line)
    return listing.splits


def group_splits(
    splits: Iterable[Split], *, target_bytes: int = 64 << 20, max_files: int = 1000
) -> list[list[Split]]:
    """Neighbouring splits of one category as tasks, so that many tiny files make few tasks.

    Args:
        splits: in the order that the tasks keep.
        target_bytes: stored bytes that a task of several splits does not exceed. A split of this
            size or more is a task alone.
        max_files: the most splits of a task.
    """
    tasks: list[list[Split]] = []
    held = 0  # stored bytes of the last task
    for split in splits:
        full = held >= target_bytes or held + split.size > target_bytes
        last = tasks[-1] if tasks else []
        if not last or full or len(last) == max_files or last[0].category != split.category:
            tasks.append([])
            held = 0
        tasks[-1].append(split)
        held += split.size
    return tasks


# ---------------------------------------------------------------------------------------- listing


def _check_columns(names: Sequence[str]) -> None:
    """Raises ConfigError for a name that a column of ours has, or two that some readers cannot tell apart."""
    lower = [name.lower() for name in names]
    for name in names:
        if is_own(name.lower()):
            raise ConfigError(
                f"sources.columns: {name!r} is a column of longattn's own: rename it in the corpus, or "
                f"leave it out; taken are {', '.join(SELECTED.names)}"
            )
        if lower.count(name.lower()) > 1:
            raise ConfigError(
                f"sources.columns: {name!r} is there more than once, whatever its case"
            )


class _Store(NamedTuple):
    """Where the files of a source are."""

    fs: AbstractFileSystem
    url_of: UrlOf

    def shown(self, path: str) -> str:
        """A path as the URL that people gave, without its secrets."""
        return without_secrets(self.url_of(path))

    def errors(self, path: str) -> AbstractContextManager[None]:
        return storage_errors(self.url_of(path))


def _files(
    source: Source, skipped: Counter[str], *, may_be_missing: bool = False
) -> Iterator[Split]:
    """Each file of a source as one split, not yet cut; what is not read of a folder is counted."""
    shown = without_secrets(source.path)
    if re.match(r"[a-z0-9]+::|.*::[a-z0-9]+://", source.path):
        raise ValueError(f"{shown!r}: chained URLs are not supported")
    require_answer(source.path)
    fs, path = filesystem(source.path)
    store = _Store(fs, UrlOf(source.path, fs, path))
    matches = _existing(store, path)
    for pattern in [path] if matches else _alternatives(path):
        found = matches or _existing(store, pattern) or _glob(store, pattern, skipped)
        count = 0
        for name, info, is_folder in found:
            members = _data(_tree(store, name), skipped) if is_folder else [(name, info)]
            for member, member_info in _with_sizes(store, members):
                kind = kind_of(member)
                if kind is None:
                    raise ValueError(
                        f"{store.shown(member)}: suffix not known{hint(member)}; allowed are {ALLOWED}"
                    )
                count += 1
                yield _split(store, source, member, member_info, kind)
        if not (count or may_be_missing):
            what = f"holds no file of a known suffix ({ALLOWED})" if found else "matches nothing"
            what += next(filter(None, map(hint, skipped)), "") if found else ""
            of = "" if pattern == path else f" (an alternative of {shown!r})"
            raise ValueError(f"{store.shown(pattern) if of else shown!r} {what}{of}")


def _data(files: list[tuple[str, Any]], skipped: Counter[str]) -> list[tuple[str, Any]]:
    """The files of a folder that are read; the others are counted by suffix."""
    kinds = [None if _name(name) in NOT_DATA else kind_of(name) for name, _ in files]
    formats = {kind[0] for kind in kinds if kind}
    notes = formats != {"txt"}
    taken = []
    for file, kind in zip(files, kinds, strict=True):
        if kind and not (notes and kind[0] == "txt"):
            taken.append(file)
        elif not _name(file[0]).endswith("_$folder$"):  # Hadoop's mark of a folder on S3
            skipped[_suffix(file[0])] += 1
    return taken


def _with_sizes(store: _Store, files: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Files with their listing, asked for one by one where it tells no size: a page of links."""

    def sized(file: tuple[str, Any]) -> tuple[str, Any]:
        if file[1] is None or file[1].get("size") is not None:
            return file
        with store.errors(file[0]):
            return file[0], store.fs.info(file[0])

    web = not is_local(store.fs) and any(info.get("size") is None for _, info in files)
    return parallel(sized, files) if web else files


def _suffix(path: str) -> str:
    """Of a file that is left out, for people; its name where that is why."""
    name = without_secrets(_name(path))
    if name in NOT_DATA:
        return name
    before, dot, last = name.rpartition(".")
    return f".{last.lower()[:20]}" if dot and before and last else "without suffix"


Entry = tuple[str, Any, bool]  # path, fsspec info (None: local, not asked for yet), is a folder


def _existing(store: _Store, path: str) -> list[Entry]:
    try:
        if is_local(store.fs):
            return [(path, None, stat.S_ISDIR(os.stat(path).st_mode))]  # noqa: PTH116
        with store.errors(path):
            info = store.fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    web_index = path.startswith("http") and path.endswith("/")  # which HTTP tells to be a file
    return [(path, info, info["type"] == "directory" or web_index)]


def _alternatives(pattern: str) -> list[str]:
    """`x{a,b}y` -> `xay`, `xby`; from the innermost braces outwards."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [p for part in match[1].split(",") for p in _alternatives(before + part + after)]


def _glob(store: _Store, pattern: str, skipped: Counter[str]) -> list[Entry]:
    """Matches of a pattern, sorted.

    fsspec's own glob drops folders that it fails to list, and with them their files.
    """
    parts = pattern.split("/")
    magic = next((i for i, part in enumerate(parts) if re.search(r"[*?[]", part)), None)
    if magic is None:
        return []
    level: list[Entry] = [("/".join(parts[:magic]) or ("/" if magic else ""), None, True)]
    if "**" in parts:
        direct = re.compile(glob_translate(pattern)).match
        below = re.compile(glob_translate(pattern + "/**")).match  # in a folder that matches
        files = _tree(store, level[0][0], tuple(filter(_hidden, parts)))
        named = [file for file in files if direct(file[0]) and parts[-1] != "**"]
        taken = {name for name, _ in named}
        inside = [file for file in files if file[0] not in taken and below(file[0])]
        return [(name, info, False) for name, info in sorted(named + _data(inside, skipped))]
    for part in parts[magic:]:
        names_of = {
            name: (name, info, is_folder)
            for folder, _, parent_is_folder in level
            if parent_is_folder
            for name, info, is_folder in _entries(store, folder)
            if fnmatchcase(_name(name), part) and (_hidden(part) or not _hidden(_name(name)))
        }
        level = [names_of[name] for name in sorted(names_of)]
    return level


def _entries(store: _Store, folder: str) -> list[Entry]:
    """What lies directly in a folder. Symbolic links count as what they lead to."""
    try:
        if is_local(store.fs):
            with os.scandir(folder) as found:
                return [(entry.path, None, entry.is_dir()) for entry in found]
        with store.errors(folder):
            listing = store.fs.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = [(info["name"].rstrip("/"), info, info["type"] == "directory") for info in listing]
    return [entry for entry in named if entry[0] != folder.rstrip("/")]  # S3: a folder's own key


def _tree(store: _Store, folder: str, hidden: Iterable[str] = ()) -> list[tuple[str, Any]]:
    """Every file below a folder, with its listing; of hidden names, only what matches `hidden`."""

    def shown(name: str) -> bool:
        return not _hidden(name) or any(fnmatchcase(name, pattern) for pattern in hidden)

    if not is_local(store.fs):
        with store.errors(folder):
            found = store.fs.find(folder, detail=True)  # on object stores: one bulk listing
        below = len(folder.rstrip("/")) + 1
        return [
            (name, info)
            for name, info in sorted(found.items())
            if info.get("type") != "directory" and all(map(shown, name[below:].split("/")))
        ]
    files: list[tuple[str, Any]] = []
    seen: set[str] = set()  # a link may lead to a folder above it
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        entries = sorted(entry for entry in _entries(store, place) if shown(_name(entry[0])))
        files += [(name, None) for name, _, is_folder in entries if not is_folder]
        waiting += [name for name, _, is_folder in reversed(entries) if is_folder]
    return files


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _hidden(name: str) -> bool:
    """As Spark and pyarrow have it: what starts so is not data, or not yet."""
    return name.startswith((".", "_"))


def _split(
    store: _Store, source: Source, path: str, info: Any, kind: tuple[Format, Compression | None]
) -> Split:
    """A file of a source as one split."""
    size, version, marks = local_identity(path) if is_local(store.fs) else identity(info)
    url = store.url_of(path)
    try:
        url.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{without_secrets(url)!r}: the file's name is not UTF-8") from None
    form, compression = kind
    columns: Sequence[str] = getattr(source, "columns", ())
    return Split(
        source.category,
        url,
        source.text_column,
        form,
        compression,
        0,
        size if form == "jsonl" and not compression else None,
        size,
        version,
        marks,
        tuple((name, "") for name in columns),
    )
