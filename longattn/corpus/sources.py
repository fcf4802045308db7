"""Sources to splits: one listing up front, checked before any work starts, cut into even tasks.

A source is a file, a folder or a glob, local or on any fsspec file system. What a split yields is
read by `longattn.corpus.reading`.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import accumulate, islice, pairwise
from typing import Any, Protocol

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from longattn.corpus.parquet import Unreadable, opened_parquet
from longattn.corpus.reading import read_split
from longattn.corpus.records import (
    Compression,
    Format,
    Reason,
    Record,
    Split,
    identity,
    local_identity,
)
from longattn.storage.files import filesystem, is_local, storage_errors
from longattn.text import without_secrets

SUFFIXES: dict[str, tuple[Format, Compression | None]] = {
    ".jsonl": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".json.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".json.zst": ("jsonl", "zstd"),
    ".parquet": ("parquet", None),
}
ALLOWED = ", ".join(SUFFIXES)
THREADS = 16  # requests under way at once, for footers and checks
FOLDERS_CHECKED = 16  # of each category, column and format
LINES_CHECKED = 100


class Source(Protocol):
    """Raw documents of one category."""

    @property
    def category(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def text_column(self) -> str: ...


def list_splits(sources: Iterable[Source], *, split_bytes: int = 256 << 20) -> list[Split]:
    """What there is to read, sorted by category and path.

    A path that exists is taken as it is written; else `{a,b}` are alternatives, each of which must
    match, and `*`, `?`, `[ab]` and `**` (any number of folders) match names. Folders, matched ones
    too, are read recursively: files of a known suffix. Names that start with "." or "_" are left
    out, unless the path says so. A file listed twice for one category and column counts once.

    Args:
        sources: where to look.
        split_bytes: a larger plain JSONL file is cut into even byte ranges of at most this size, a
            larger Parquet file into runs of row groups. Compressed JSONL cannot be cut.

    Raises:
        ValueError: a path or pattern matches nothing, a suffix is unknown, a name is not UTF-8.
        OSError: the storage failed.
    """
    files: dict[tuple[str, str, str], Split] = {}
    for source in sources:
        for split in _files(source):
            files.setdefault((split.category, split.path, split.text_column), split)
    ordered = [files[key] for key in sorted(files)]
    large = [f for f in ordered if f.format == "parquet" and f.file_size > split_bytes]
    with ThreadPoolExecutor(THREADS) as pool:
        row_groups = dict(zip(large, pool.map(row_group_sizes, large), strict=True))
    return [part for file in ordered for part in _cut(file, split_bytes, row_groups.get(file, []))]


def check_sources(splits: Iterable[Split]) -> None:
    """Refuses a text column that is not there, or holds no strings, before any work starts.

    Reads one file of each folder, of up to 16 folders for each category, column and format: the
    Parquet schema, or JSONL up to the first good record among the first 100. A file with no readable
    content passes: its records will be reported as bad.

    Raises:
        ValueError: names the file, the column and the columns that are there.
        OSError: the storage failed.
    """
    firsts: dict[tuple[str, str, str, str], Split] = {}
    folders: Counter[tuple[str, str, str]] = Counter()
    for split in splits:
        kind = (split.category, split.text_column, split.format)
        place = (*kind, split.path.rpartition("/")[0])
        if place not in firsts and folders[kind] < FOLDERS_CHECKED:
            firsts[place] = split
            folders[kind] += 1
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(_check, firsts.values()))


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


def _files(source: Source) -> Iterator[Split]:
    """Each file of a source as one split, not yet cut."""
    if "::" in source.path:
        raise ValueError(f"{without_secrets(source.path)!r}: chained URLs are not supported")
    fs, path = filesystem(source.path)
    matches = _existing(fs, path)
    for pattern in [path] if matches else _alternatives(path):
        found = matches or _existing(fs, pattern) or _glob(fs, pattern)
        count = 0
        for name, info, is_folder in found:
            members = _tree(fs, name) if is_folder else [(name, info)]
            for member, member_info in members:
                kind = _kind(member)
                if kind is None and is_folder:
                    continue
                if kind is None:
                    raise ValueError(
                        f"{without_secrets(member)}: suffix not known, allowed are {ALLOWED}"
                    )
                count += 1
                yield _whole(fs, source, member, member_info, *kind)
        if not count:
            what = f"holds no file of a known suffix ({ALLOWED})" if found else "matches nothing"
            of = "" if pattern == path else f" (an alternative of {without_secrets(source.path)!r})"
            raise ValueError(f"{without_secrets(pattern if of else source.path)!r} {what}{of}")


Entry = tuple[str, Any, bool]  # path, fsspec info (None: local, not asked for yet), is a folder


def _existing(fs: AbstractFileSystem, path: str) -> list[Entry]:
    try:
        if is_local(fs):
            return [(path, None, stat.S_ISDIR(os.stat(path).st_mode))]  # noqa: PTH116
        with storage_errors(path):
            info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(path, info, info["type"] == "directory")]


def _alternatives(pattern: str) -> list[str]:
    """`x{a,b}y` -> `xay`, `xby`; from the innermost braces outwards."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not match:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [p for part in match[1].split(",") for p in _alternatives(before + part + after)]


def _glob(fs: AbstractFileSystem, pattern: str) -> list[Entry]:
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
        return [
            (name, info, False)
            for name, info in _tree(fs, level[0][0], tuple(filter(_hidden, parts)))
            if (direct(name) and parts[-1] != "**") or (below(name) and _kind(name))
        ]
    for part in parts[magic:]:
        names_of = {
            name: (name, info, is_folder)
            for folder, _, parent_is_folder in level
            if parent_is_folder
            for name, info, is_folder in _entries(fs, folder)
            if fnmatchcase(_name(name), part) and (_hidden(part) or not _hidden(_name(name)))
        }
        level = [names_of[name] for name in sorted(names_of)]
    return level


def _entries(fs: AbstractFileSystem, folder: str) -> list[Entry]:
    """What lies directly in a folder. Symbolic links count as what they lead to."""
    try:
        if is_local(fs):
            with os.scandir(folder) as found:
                return [(entry.path, None, entry.is_dir()) for entry in found]
        with storage_errors(folder):
            listing = fs.ls(folder, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = [(info["name"].rstrip("/"), info, info["type"] == "directory") for info in listing]
    return [entry for entry in named if entry[0] != folder.rstrip("/")]  # S3: a folder's own key


def _tree(fs: AbstractFileSystem, folder: str, hidden: Iterable[str] = ()) -> list[tuple[str, Any]]:
    """Every file below a folder, with its listing; of hidden names, only what matches `hidden`."""

    def shown(name: str) -> bool:
        return not _hidden(name) or any(fnmatchcase(name, pattern) for pattern in hidden)

    if not is_local(fs):
        with storage_errors(folder):
            found = fs.find(folder, detail=True)  # on object stores: one bulk listing
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
        entries = sorted(entry for entry in _entries(fs, place) if shown(_name(entry[0])))
        files += [(name, None) for name, _, is_folder in entries if not is_folder]
        waiting += [name for name, _, is_folder in reversed(entries) if is_folder]
    return files


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _hidden(name: str) -> bool:
    """As Spark and pyarrow have it: what starts so is not data, or not yet."""
    return name.startswith((".", "_"))


def _kind(path: str) -> tuple[Format, Compression | None] | None:
    name = _name(path).lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _whole(
    fs: AbstractFileSystem,
    source: Source,
    path: str,
    info: Any,
    kind: Format,
    compression: Compression | None,
) -> Split:
    size, version = local_identity(path) if is_local(fs) else identity(info)
    url = path if is_local(fs) else fs.unstrip_protocol(path)
    try:
        url.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{without_secrets(url)!r}: the file's name is not UTF-8") from None
    stop = size if kind == "jsonl" and not compression else None
    return Split(
        source.category, url, source.text_column, kind, compression, 0, stop, size, version
    )


# ------------------------------------------------------------------------------ cutting, checking


def row_group_sizes(split: Split) -> list[int]:
    """Each row group's share of the bytes of a Parquet file; none if its footer is broken.

    In proportion to the unpacked sizes: asked for those of the columns, pyarrow can abort the
    process on a footer with one wrong bit.
    """
    try:
        with opened_parquet(split) as (parquet, _):
            groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    except Unreadable:
        return []
    sizes = [max(group.total_byte_size, 0) for group in groups]
    return [split.file_size * size // max(sum(sizes), 1) for size in sizes]


def _cut(split: Split, split_bytes: int, row_groups: list[int]) -> list[Split]:
    """The parts of a file larger than `split_bytes`, where it can be cut."""
    if split.file_size <= split_bytes or split.compression:
        return [split]
    if split.format == "jsonl":
        pieces = -(-split.file_size // split_bytes)
        cuts = [split.file_size * i // pieces for i in range(pieces + 1)]
    elif row_groups:  # each goes to the part in which its last byte lies
        parts = [end // split_bytes for end in accumulate(row_groups)]
        cuts = [0, *(i for i, (a, b) in enumerate(pairwise(parts), 1) if a != b), len(parts)]
    else:
        return [split]
    return [replace(split, start=start, stop=stop) for start, stop in pairwise(cuts)]


def _check(split: Split) -> None:
    if split.format == "parquet":
        try:
            with opened_parquet(split) as (_, problem):
                pass
        except Unreadable:
            return
    else:
        problem = None
        for item in islice(read_split(split), LINES_CHECKED):
            if isinstance(item, Record):
                return
            if problem is None and item.reason in (Reason.NO_TEXT_COLUMN, Reason.NOT_A_STRING):
                problem = item.detail
    if problem:
        raise ValueError(f"{split.source}: no text in column {split.text_column!r}: {problem}")
