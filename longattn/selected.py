"""The selected files: kept rows of labelled files, copied into files of about one size.

Kept rows of a category, in order of labelled file and row, are cut where their bytes, at the mean
of their labelled file, pass a multiple of the size aimed at. So the files depend on what is kept and
on the labelled files alone; each is named after the ids and LDS inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.partitions import Handle, Place
from longattn.scores import by_category
from longattn.storage.files import join, list_files, remove, staged
from longattn.storage.tables import SELECTED, content_name, open_parquet, parquet_writer, readable

GROUPS = 256  # at most, of files that are written one after another
PIECE = 2048  # kept rows aimed at in what one partition gives to a group: Ray keeps smaller in the driver
AT_WORK = 8  # groups, however few rows: that several are written at a time

Run = tuple[int, int, int]  # file, and from which to before which of its kept rows


@dataclass(frozen=True)
class _Group:
    """Files that follow each other, written by one task."""

    category: str
    parts: list[list[Run]]

    @property
    def span(self) -> tuple[str, int, int]:
        """The category, first and last labelled file."""
        return self.category, self.parts[0][0][0], self.parts[-1][-1][0]


def cut_parts(
    kept: NDArray[np.int64], row_bytes: NDArray[np.int64], file_bytes: int
) -> list[list[Run]]:
    """The runs of each file to write, from kept rows and bytes of a row by labelled file."""
    parts: list[list[Run]] = []
    before, current = 0, -1
    for file in np.flatnonzero(kept).tolist():
        rows, size, start = int(kept[file]), int(row_bytes[file]), 0
        while start < rows:
            part = (before + (start + 1) * size) // file_bytes
            if part != current:
                parts.append([])
                current = part
            stop = min(rows, ((part + 1) * file_bytes - 1 - before) // size)
            parts[-1].append((file, start, stop))
            start = stop
        before += rows * size
    return parts


def write_selected(
    place: Place,
    handles: Sequence[Handle],
    kept: Mapping[str, NDArray[np.int64]],
    sizes: tuple[Sequence[str], NDArray[np.int64], int],
    folder: str,
    metadata: Mapping[str, Any],
) -> list[str]:
    """Make `folder` hold the kept rows alone; files that are there already stay. Returns their URLs.

    Args:
        handles: partitions of kept rows: `data_id`, `category`, `file`, `row`, `lds`, by category.
        kept: how many rows of each labelled file, by category.
        sizes: URLs of the labelled files, bytes of a row in each, bytes aimed at in a selected one.
    """
    urls, row_bytes, file_bytes = sizes
    parts = {category: cut_parts(rows, row_bytes, file_bytes) for category, rows in kept.items()}
    total = sum(int(rows.sum()) for rows in kept.values())
    most = min(GROUPS, max(AT_WORK, total // (PIECE * len(handles))))
    length = max(1, math.ceil(sum(map(len, parts.values())) / most))
    groups = [
        _Group(category, of[start : start + length])
        for category, of in parts.items()
        for start in range(0, len(of), length)
    ]
    divide = partial(_by_group, spans=[group.span for group in groups])
    pieces, _ = place.exchange(((divide, handle) for handle in handles), len(groups))
    arranged, names = place.update(
        (partial(_arranged, group=group, folder=folder), piece)
        for group, piece in zip(groups, pieces, strict=True)
    )
    there = list_files(folder, ".parquet").keys()
    wanted = {name for some in names for name in some}
    for url in there - wanted:
        remove(url)
    missing = (
        (
            partial(
                _write,
                parts={u: part for u, part in zip(own, group.parts, strict=True) if u not in there},
                urls={file: urls[file] for part in group.parts for file, _, _ in part},
                metadata=metadata,
            ),
            piece,
        )
        for group, own, piece in zip(groups, names, arranged, strict=True)
        if not there >= {*own}
    )
    for _ in place.each(missing):
        pass
    return sorted(wanted)


# --- on one partition ----------------------------------------------------------------------------


def _by_group(
    table: pa.Table, spans: Sequence[tuple[str, int, int]]
) -> tuple[list[pa.Table], None]:
    """The rows of each group; a file between two groups goes to both."""
    rows = dict(by_category(table))
    tables = []
    for category, first, last in spans:
        own = rows.get(category, table.slice(0, 0)).drop_columns(["category"])
        files = own["file"].to_numpy()
        start, stop = np.searchsorted(files, first), np.searchsorted(files, last, side="right")
        tables.append(own.slice(start, stop - start))
    return tables, None


def _arranged(table: pa.Table, group: _Group, folder: str) -> tuple[pa.Table, list[str]]:
    """The rows by file and row, and the URLs of the files to write."""
    order = np.lexsort((table["row"].to_numpy(), table["file"].to_numpy()))
    table = table.combine_chunks().take(pa.array(order))
    names = []
    for part in group.parts:
        rows = pa.concat_tables(_runs(table, part))
        name = content_name(rows["data_id"], rows["lds"])
        names.append(join(folder, f"category={group.category}", name))
    return table, names


def _runs(table: pa.Table, part: Iterable[Run]) -> list[pa.Table]:
    """The kept rows of each run."""
    files = table["file"].to_numpy()
    return [
        table.slice(int(np.searchsorted(files, file)) + start, stop - start)
        for file, start, stop in part
    ]


def _write(
    table: pa.Table,
    parts: Mapping[str, list[Run]],
    urls: Mapping[int, str],
    metadata: Mapping[str, Any],
) -> None:
    for target, part in parts.items():
        with staged(target) as local, parquet_writer(local, SELECTED, metadata) as writer:
            for (file, _, _), kept in zip(part, _runs(table, part), strict=True):
                rows, lds = kept["row"].to_numpy(), kept["lds"].to_numpy()
                with open_parquet(urls[file]) as parquet:
                    start = 0
                    for group in range(parquet.num_row_groups):
                        stop = start + parquet.metadata.row_group(group).num_rows
                        inside = (rows >= start) & (rows < stop)
                        if inside.any():
                            with readable(urls[file]):
                                read = parquet.read_row_group(group)
                            read = read.take(pa.array(rows[inside] - start))
                            read = read.append_column("lds", pa.array(lds[inside]))
                            writer.write_table(read.select(SELECTED.names).cast(writer.schema))
                        start = stop
