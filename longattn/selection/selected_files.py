"""The selected files: kept rows of labelled files, copied into files of about one size.

Kept rows of a category, in order of labelled file and row, are cut where their bytes, at the mean
of their labelled file, pass a multiple of the size aimed at. So the files depend on what is kept and
on the labelled files alone; each is named after the ids and LDS inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.selection.score_table import LabelledFiles, ScoreTable, batches
from longattn.selection.threads import in_threads
from longattn.storage.files import join, list_files, remove, staged
from longattn.storage.tables import (
    SELECTED,
    carried_fields,
    content_name,
    open_parquet,
    parquet_writer,
    readable,
    with_schema,
)

WRITERS = 8  # files written at a time


def cut_parts(kept: NDArray[np.int64], row_bytes: NDArray[np.int64], file_bytes: int) -> list[int]:
    """Rows of each file to write, from kept rows and bytes of a row by labelled file."""
    parts: list[int] = []
    before, current = 0, -1
    for file in np.flatnonzero(kept).tolist():
        rows, size, start = int(kept[file]), int(row_bytes[file]), 0
        while start < rows:
            part = (before + (start + 1) * size) // file_bytes
            if part != current:
                parts.append(0)
                current = part
            stop = min(rows, ((part + 1) * file_bytes - 1 - before) // size)
            parts[-1] += stop - start
            start = stop
        before += rows * size
    return parts


def write_selected(
    table: ScoreTable,
    files: LabelledFiles,
    file_bytes: int,
    folder: str,
    metadata: Mapping[str, Any],
) -> list[str]:
    """Make `folder` hold the rows of the table `kept` alone; files that are there already stay.

    New files are written before old ones go, so a failure on the way loses none. Returns the URLs.
    """
    counts = table.connection.execute(
        "SELECT category, file, count(*) FROM kept GROUP BY category, file ORDER BY category"
    ).fetchall()
    parts: list[tuple[str, int]] = []  # category and rows of each file to write
    for category, of_files in groupby(counts, key=lambda row: row[0]):
        kept = np.zeros(len(files.urls), np.int64)
        for _, file, rows in of_files:
            kept[file] = rows
        name = table.categories[category]
        parts += [(name, rows) for rows in cut_parts(kept, files.row_bytes, file_bytes)]
    ordered = batches(
        table.connection, "SELECT file, row, data_id, lds FROM kept ORDER BY category, file, row"
    )
    pieces = _pieces(ordered, [rows for _, rows in parts])
    there = list_files(folder, ".parquet").keys()
    write = partial(_write, urls=files.urls, folder=folder, there=there, metadata=metadata)
    categories = (category for category, _ in parts)
    wanted = set(in_threads(write, zip(categories, pieces, strict=True), WRITERS))
    for url in there - wanted:
        remove(url)
    return sorted(wanted)


def _pieces(tables: Iterator[pa.Table], lengths: Sequence[int]) -> Iterator[pa.Table]:
    """The rows of the tables in tables of these lengths."""
    rows = pa.table({})
    for length in lengths:
        held = [rows] if len(rows) else []
        while sum(map(len, held)) < length:
            held.append(next(tables))
        rows = pa.concat_tables(held)
        yield rows.slice(0, length).combine_chunks()
        rows = rows.slice(length)


def _write(
    part: tuple[str, pa.Table],
    urls: Sequence[str],
    folder: str,
    there: Any,
    metadata: Mapping[str, Any],
) -> str:
    """Copy whole rows of labelled files into one selected file, unless it is there; returns its URL."""
    category, kept = part
    target = join(folder, category, content_name(kept["data_id"], kept["lds"]))
    if target in there:
        return target
    file_of, row_of, lds_of = (kept[name].to_numpy() for name in ("file", "row", "lds"))
    schema = _schema([urls[file] for file in np.unique(file_of)])
    with staged(target) as local, parquet_writer(local, schema, metadata) as writer:
        for file in np.unique(file_of).tolist():
            rows, lds = row_of[file_of == file], lds_of[file_of == file]
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
                        writer.write_table(with_schema(read, writer.schema))
                    start = stop
    return target


def _schema(urls: Sequence[str]) -> pa.Schema:
    """Of a selected file: our columns, and those of the user's that some of its labelled files have."""
    schemas = []
    for url in urls:
        with open_parquet(url) as parquet:
            schemas.append(parquet.schema_arrow)
    return pa.schema([*SELECTED, *carried_fields(schemas)])
