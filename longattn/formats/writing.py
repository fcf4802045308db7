"""Ids from Parquet files into parts: each run of ids straight to its place in the part that holds it.

Where all pieces go is known before the first is read (`layout.py`), so a file is read once for some
parts together, whatever the order of the sequences, in memory of some row groups. Parts appear one by
one, each whole; those that are there are not written again.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.formats.layout import Layout
from longattn.formats.part import Format, Part
from longattn.formats.pieces import IdFile
from longattn.selection.threads import CORES, in_threads
from longattn.storage.files import filesystem, is_local, join, staged
from longattn.storage.tables import DamagedFileError, open_parquet, readable
from longattn.text import size, without_secrets

log = logging.getLogger("longattn")

ORDERED_BYTES = 64 << 20  # of ids of the parts written together, where few rows are read twice
ORDERED_AT_ONCE = 3  # of them: while one waits for the disk, another reads
SHUFFLED_BYTES = 256 << 30  # the same where each time all files are read, if the disk has room
GROUPS = 4  # row groups that a thread reads at a time: some 32 MB of ids


@dataclass(frozen=True)
class IdSettings:
    """What ids there may be."""

    dtype: np.dtype
    vocab_size: int
    pad_token: int


@dataclass(frozen=True)
class _Target:
    """Where the ids of a part go: into memory, or into a file."""

    memory: NDArray[np.integer] | None = None
    """(tokens,)"""
    file: IO[bytes] | None = None
    begin: int = 0
    """Byte of the file at which the part begins."""
    appear: ExitStack = field(default_factory=ExitStack)
    """Closed: the file appears, if it is one of its own."""

    def ids(self, tokens: int, dtype: np.dtype) -> NDArray[np.integer]:
        """All of the part; a file's are mapped for as long as they are held."""
        if self.memory is not None:
            return self.memory
        assert self.file is not None
        return np.asarray(np.memmap(self.file, dtype, "r", self.begin, (tokens,)))


@dataclass(frozen=True)
class _Read:
    """Rows of one file, in order, to be put into their places."""

    of: IdFile
    rows: pa.Table


def write_parts(
    layout: Layout, missing: Sequence[int], format: Format, folder: str, ids: IdSettings
) -> None:
    """Make parts appear below a folder, each whole.

    Raises:
        ValueError: an id outside the vocabulary, or a row that is not as long as it was.
        OSError: the storage failed.
    """
    padded = layout.table.padding() > 0
    memory = (
        threading.local()
    )  # kept by each thread: fresh pages cost more than what is copied there

    def write(parts: list[int]) -> None:
        with ExitStack() as stack:
            if format.ids_suffix:
                targets = _own_files(layout, parts, format, folder, stack, ids.dtype)
            elif layout.shuffled:
                targets = _stretches(layout, parts, stack, ids.dtype)
            else:
                tokens = sum(layout.parts[part].tokens for part in parts)
                if len(getattr(memory, "ids", ())) < tokens:
                    memory.ids = np.empty(tokens, ids.dtype)
                targets = _in_memory(layout, parts, memory.ids)
            for _ in in_threads(
                lambda read: _put(read, targets, ids), _reads(layout, parts), CORES
            ):
                pass

            def finish(part: int) -> None:
                target = targets[part]
                whole = layout.part(
                    part, target.ids(layout.parts[part].tokens, ids.dtype), padded=padded
                )
                if padded:
                    _pad(target, whole, ids)
                target.appear.close()
                format.write_part(whole, prefix_of(layout, part, format, folder))

            for _ in in_threads(finish, parts, CORES):
                pass
        tokens = sum(layout.parts[part].tokens for part in parts)
        told = size(tokens * ids.dtype.itemsize)
        log.info("%s: parts %d to %d, %s of ids", format.name, parts[0], parts[-1], told)

    together = _together(layout, missing, format, folder, ids.dtype.itemsize)
    for _ in in_threads(write, together, 1 if layout.shuffled else ORDERED_AT_ONCE):
        pass


def _together(
    layout: Layout, missing: Sequence[int], format: Format, folder: str, item: int
) -> Iterator[list[int]]:
    """Missing parts, in runs without a gap whose ids have room on the disk."""
    most = ORDERED_BYTES
    if layout.shuffled:
        most = min(SHUFFLED_BYTES, _free_bytes(folder if format.ids_suffix else None) // 2)
    run: list[int] = []
    taken = 0
    for part in missing:
        bytes_ = layout.parts[part].tokens * item
        if run and (part != run[-1] + 1 or taken + bytes_ > most):
            yield run
            run, taken = [], 0
        run.append(part)
        taken += bytes_
    if run:
        yield run


def _free_bytes(folder: str | None) -> int:
    """Of the disk on which the files of a folder are written; of the temporary folder for None."""
    fs, path = filesystem(folder or tempfile.gettempdir())
    if not is_local(fs):
        path = tempfile.gettempdir()
    place = next(p for p in (Path(path), *Path(path).parents) if p.exists())
    return shutil.disk_usage(place).free


def _own_files(
    layout: Layout,
    parts: Sequence[int],
    format: Format,
    folder: str,
    stack: ExitStack,
    dtype: np.dtype,
) -> dict[int, _Target]:
    """Of each part the file that its ids are."""
    targets = {}
    for part in parts:
        own = stack.enter_context(ExitStack())
        url = prefix_of(layout, part, format, folder) + format.ids_suffix
        file = own.enter_context(own.enter_context(staged(url)).open("w+b"))
        file.truncate(layout.parts[part].tokens * dtype.itemsize)
        targets[part] = _Target(file=file, appear=own)
    return targets


def _stretches(
    layout: Layout, parts: Sequence[int], stack: ExitStack, dtype: np.dtype
) -> dict[int, _Target]:
    """Of each part a stretch of one temporary file, nameless: a killed process leaves none."""
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    file.truncate(sum(layout.parts[part].tokens for part in parts) * dtype.itemsize)
    targets, begin = {}, 0
    for part in parts:
        targets[part] = _Target(file=file, begin=begin)
        begin += layout.parts[part].tokens * dtype.itemsize
    return targets


def _in_memory(
    layout: Layout, parts: Sequence[int], memory: NDArray[np.integer]
) -> dict[int, _Target]:
    """Of each part a stretch of memory."""
    targets, begin = {}, 0
    for part in parts:
        tokens = layout.parts[part].tokens
        targets[part] = _Target(memory[begin : begin + tokens])
        begin += tokens
    return targets


def prefix_of(layout: Layout, part: int, format: Format, folder: str) -> str:
    placed = layout.parts[part]
    return join(folder, format.prefix(placed.group, placed.number))


def _reads(layout: Layout, parts: Sequence[int]) -> Iterator[_Read]:
    """What is to be read for some parts, some row groups of one file at a time."""
    for rows in layout.pieces(parts[0], parts[-1]):
        file = rows["file"].to_numpy()
        row = rows["row"].to_numpy()
        for start, stop in _runs(file):
            of = layout.table.files[int(file[start])]
            group = np.searchsorted(of.first_rows, row[start:stop], side="right") - 1
            for first, last in _runs(group // GROUPS):
                yield _Read(of, rows.slice(start + first, last - first))


def _runs(values: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Where values stay the same: start and stop of each run."""
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _put(read: _Read, targets: dict[int, _Target], ids: IdSettings) -> None:
    """Read rows of a file and write their pieces into their places."""
    of = read.of
    row = read.rows["row"].to_numpy()
    group_of = np.searchsorted(of.first_rows, row, side="right") - 1
    with open_parquet(of.url) as parquet:
        for first, last in _runs(group_of):
            group = int(group_of[first])
            with readable(of.url):
                table = parquet.read_row_group(group, columns=[of.column], use_threads=False)
            rows = read.rows.slice(first, last - first)
            _put_group(of, table.column(0), int(of.first_rows[group]), rows, targets, ids)


def _put_group(
    of: IdFile,
    lists: pa.ChunkedArray,
    first_row: int,
    rows: pa.Table,
    targets: dict[int, _Target],
    ids: IdSettings,
) -> None:
    array = (
        lists.chunk(0) if lists.num_chunks == 1 else lists.combine_chunks()
    )  # which copies one, too
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy(zero_copy_only=False)
    _check_vocabulary(of.url, values, ids.vocab_size)
    same = values.itemsize == ids.dtype.itemsize  # of ids from 0 on, that are below 2**31: no copy
    values = values.view(ids.dtype) if same else values.astype(ids.dtype)
    row, start, length, part, at = (
        rows[name].to_numpy().astype(np.int64)
        for name in ("row", "start", "length", "part", "token")
    )
    here = row - first_row
    begin = offsets[here] + start
    there = offsets[here + 1] - offsets[here]
    wrong = (there != length) if of.whole else (there < start + length)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise DamagedFileError(
            of.url, f"row {row[i]} has {there[i]} ids, where {start[i] + length[i]} are expected"
        )
    # Pieces that follow one another in both places go in one.
    follows = (begin[1:] == begin[:-1] + length[:-1]) & (at[1:] == at[:-1] + length[:-1])
    follows &= part[1:] == part[:-1]
    firsts = np.flatnonzero(np.append(True, ~follows))
    lasts = np.append(firsts[1:], len(row)) - 1
    for i, j in zip(firsts.tolist(), lasts.tolist(), strict=True):
        target = targets[int(part[i])]
        piece = values[begin[i] : begin[j] + length[j]]
        _write_at(target, int(at[i]), piece)


def _check_vocabulary(url: str, values: NDArray[np.integer], vocab_size: int) -> None:
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if not 0 <= low <= high < vocab_size:
        raise ValueError(
            f"{without_secrets(url)}: ids from {low} to {high}; "
            f"the vocabulary has 0 to {vocab_size - 1}"
        )


def _write_at(target: _Target, at: int, values: NDArray[np.integer]) -> None:
    """Put ids at a token of a part."""
    if target.memory is not None:
        target.memory[at : at + len(values)] = values
        return
    assert target.file is not None
    data, place = np.ascontiguousarray(values).data.cast("B"), target.begin + at * values.itemsize
    while data:
        written = os.pwrite(target.file.fileno(), data, place)
        data, place = data[written:], place + written


def _pad(target: _Target, part: Part, ids: IdSettings) -> None:
    for start, stop in _gaps(part.documents, len(part.ids)):
        padding = np.full(stop - start, ids.pad_token, ids.dtype)
        _write_at(target, start, padding)


def _gaps(documents: NDArray[np.int64], tokens: int) -> Iterator[tuple[int, int]]:
    """Where no document is."""
    starts = np.append(documents[:, 0], tokens)
    stops = np.append(0, documents[:, 1])
    for i in np.flatnonzero(starts > stops).tolist():
        yield int(stops[i]), int(starts[i])
