"""The selected files: kept rows of labelled files, copied into files of about one size.

Kept rows of a category, in order of labelled file and row, are cut where their bytes, at the mean
of their labelled file, pass a multiple of the size aimed at. So the files depend on what is kept and
on the labelled files alone; each is named after the ids and LDS inside it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.selection.score_table import LabelledFiles, ScoreTable, batches
from longattn.selection.threads import CORES, in_threads, read_ahead
from longattn.storage.digests import RowDigest
from longattn.storage.files import join, remove, staged
from longattn.storage.tables import (
    SELECTED,
    carried_fields,
    content_name,
    file_metadata,
    is_content_name,
    is_own_file,
    open_parquet,
    parquet_writer,
    readable,
    with_schema,
)
from longattn.text import without_secrets

log = logging.getLogger("longattn")
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
    there: Collection[str],
    metadata: Mapping[str, Any],
) -> list[str]:
    """Write the rows of the view `kept` into `folder`; returns the URLs of the files that hold them.

    Args:
        there: URLs of the files that the folder has.
        metadata: for the footer of each file.

    A file that is there and is what it should be stays: all of it is read, and compared with its
    footer, with what is kept and with the labelled files' digests. `remove_others` takes the old ones
    away, once the record names the new ones: so what the record names is always there.
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
    ahead = len(parts) < CORES  # with more files to write, all cores are busy
    write = partial(_write, files=files, folder=folder, there=there, metadata=metadata, ahead=ahead)
    categories = (category for category, _ in parts)
    return sorted(set(in_threads(write, zip(categories, pieces, strict=True), WRITERS)))


def remove_others(there: Collection[str], wanted: Collection[str]) -> None:
    """Remove the selected files that were there and are not wanted; other programs' are named."""
    for url in sorted({*there} - {*wanted}):
        if _was_selected(url):
            remove(url)
        else:
            log.warning("%s was not written by longattn: left alone", without_secrets(url))


def _was_selected(url: str) -> bool:
    """Whether a file below `selected/` is one of ours, be it broken."""
    try:
        with open_parquet(url) as parquet:
            return is_own_file(parquet)
    except ValueError:
        return is_content_name(url)


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
    files: LabelledFiles,
    folder: str,
    there: Any,
    metadata: Mapping[str, Any],
    ahead: bool,
) -> str:
    """Copy whole rows of labelled files into one selected file, unless it is there; returns its URL.

    Args:
        ahead: read the next row group while one is written; takes memory for one more.
    """
    category, kept = part
    target = join(folder, category, content_name(kept["data_id"], kept["lds"]))
    of = np.unique(kept["file"].to_numpy()).tolist()
    schema = _schema([files.urls[file] for file in of])
    metadata = {**metadata, "labelled": [files.digests[file] for file in of]}
    if target in there:
        if not (why := _misfit(target, kept, schema, metadata)):
            return target
        log.warning("%s: %s; it is written anew", without_secrets(target), why)
    rows = _kept_rows(files, kept)
    with staged(target) as local, parquet_writer(local, schema, metadata) as writer:
        for read in read_ahead(rows) if ahead else rows:
            writer.write_table(with_schema(read, schema))
    return target


def _kept_rows(files: LabelledFiles, kept: pa.Table) -> Iterator[pa.Table]:
    """Whole rows of labelled files with their `lds`, a row group at a time."""
    file_of, row_of, lds_of = (kept[name].to_numpy() for name in ("file", "row", "lds"))
    for file in np.unique(file_of).tolist():
        url = files.urls[file]
        rows, lds = row_of[file_of == file], lds_of[file_of == file]
        with open_parquet(url, dictionaries=["category", "source"]) as parquet:
            start = 0
            for group in range(parquet.num_row_groups):
                stop = start + parquet.metadata.row_group(group).num_rows
                inside = (rows >= start) & (rows < stop)
                if inside.any():
                    with readable(url):
                        read = parquet.read_row_group(group)
                    read = read.take(pa.array(rows[inside] - start))
                    yield read.append_column("lds", pa.array(lds[inside]))
                start = stop


def _schema(urls: Sequence[str]) -> pa.Schema:
    """Of a selected file: our columns, and those of the user's that some of its labelled files have."""
    schemas = []
    for url in urls:
        with open_parquet(url) as parquet:
            schemas.append(parquet.schema_arrow)
    return pa.schema([*SELECTED, *carried_fields(schemas)])


def _misfit(url: str, kept: pa.Table, schema: pa.Schema, metadata: Mapping[str, Any]) -> str:
    """How a selected file differs from what it is to hold; empty where it does not.

    Args:
        kept: `data_id` and `lds` of its rows.
        metadata: that its footer is to have, beside the digest.
    """
    digest, row = RowDigest(), 0
    try:
        with open_parquet(url) as parquet:
            stored = file_metadata(parquet)
            if parquet.schema_arrow.remove_metadata() != schema:
                return "other columns"
            if {key: stored.get(key) for key in metadata} != dict(metadata):
                return "its footer tells of another selection"
            for group in range(parquet.num_row_groups):
                with readable(url):
                    rows = parquet.read_row_group(group)
                of = kept.slice(row, len(rows)).select(["data_id", "lds"])
                if rows["data_id"] != of["data_id"] or rows["lds"] != of["lds"]:
                    return "other windows"
                digest.add(rows)
                row += len(rows)
    except ValueError as error:
        return " ".join(str(error).removeprefix(f"{url}: ").split())
    if (row, digest.rows, digest.hex) != (len(kept), stored.get("rows"), stored.get("digest")):
        return "rows that are not those its footer tells of"
    return ""
