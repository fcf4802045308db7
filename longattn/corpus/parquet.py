"""Parquet files of a corpus: the text column, a batch of rows at a time.

A file with broken content gives records that say so; pyarrow must not abort on them. A value that
many rows share, as pages with a dictionary have it, is held once: 64 rows of 13 KB took 2.1 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longattn.corpus.arrow_columns import (
    Paths,
    TrackedFile,
    Unreadable,
    batch_records,
    check_values,
    checked_schema,
    content_errors,
    require_bounded,
    require_plausible,
    text_problem,
)
from longattn.corpus.records import (
    CHUNK,
    BadRecord,
    Reason,
    Record,
    Split,
    bad_record,
    open_listed,
)

BATCH_BYTES, BATCH_ROWS = 16 << 20, 64  # of Parquet text decoded at a time


@contextmanager
def opened_parquet(split: Split) -> Iterator[pq.ParquetFile]:
    """A split's Parquet file.

    Raises:
        Unreadable: there is no good footer, or it contradicts itself.
    """
    with open_listed(split) as file:
        yield _parquet(file, split)[0]


def _parquet(file: Any, split: Split) -> tuple[pq.ParquetFile, TrackedFile]:
    tracked = TrackedFile(file, split)
    with content_errors(tracked):
        parquet = _opened(tracked)
        checked_schema(parquet.schema_arrow)
        footer = parquet.metadata
        counts = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        rows = sum(counts)
        if rows != footer.num_rows:  # a wrong bit: the rows of a group would be gone unsaid
            raise Unreadable(f"its footer counts {footer.num_rows} rows, its row groups {rows}")
        for count in counts:
            require_plausible(count, split)
        require_plausible(rows, split)
        return parquet, tracked


def _opened(tracked: TrackedFile, **options: Any) -> pq.ParquetFile:
    # Neither pre_buffer, which holds a row group's column whole, nor a read-ahead cache below,
    # which fetches the other columns: the text column comes in reads of CHUNK.
    return pq.ParquetFile(
        pa.PythonFile(tracked, mode="r"),
        pre_buffer=False,
        buffer_size=CHUNK,
        page_checksum_verification=True,
        **options,
    )


def _with_dictionaries(
    parquet: pq.ParquetFile, tracked: TrackedFile, paths: Paths
) -> pq.ParquetFile:
    """The file opened so that its wanted columns of text come as dictionaries."""
    with content_errors(tracked):
        wanted = [".".join(path) for path in paths.all()]
        leaves = [parquet.schema.column(i).path for i in range(len(parquet.schema))]
        # Of two columns of one name, which pyarrow cannot tell apart, neither.
        names = [
            leaf
            for leaf in leaves
            if leaves.count(leaf) == 1 and any(f"{leaf}.".startswith(f"{name}.") for name in wanted)
        ]
        return _opened(tracked, metadata=parquet.metadata, read_dictionary=names)


def parquet_rows(file: Any, split: Split, cap: int) -> Iterator[Record | BadRecord]:
    """The rows of a split's row groups. Raises Unreadable where there is no good footer."""
    parquet, tracked = _parquet(file, split)
    problem = text_problem(parquet.schema_arrow, split.text_column)
    paths = Paths.of(parquet.schema_arrow, split)
    if not problem:
        parquet = _with_dictionaries(parquet, tracked, paths)
    counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    first = sum(counts[: split.start])
    for group, rows in islice(enumerate(counts), split.start, split.stop):
        if problem and rows:
            yield bad_record(first, problem[0], f"{rows} rows: {problem[1]}", records=rows)
        elif rows:
            yield from _row_group(parquet, tracked, group, first, split, cap)
        first += rows


def _row_group(
    parquet: pq.ParquetFile, tracked: TrackedFile, group: int, first: int, split: Split, cap: int
) -> Iterator[Record | BadRecord]:
    position, end = first, first + parquet.metadata.row_group(group).num_rows
    paths = Paths.of(parquet.schema_arrow, split)
    try:
        unpacked = parquet.metadata.row_group(group).total_byte_size
        require_bounded(unpacked, split.file_size, cap)
        for batch in _batches(parquet, tracked, group, paths):
            yield from batch_records(batch, paths, split, position, cap)
            position += len(batch)
        if position < end:
            raise Unreadable("the column is shorter than the row group")
    except Unreadable as error:
        detail = f"row group {group}, {end - position} rows from here: {error}"
        yield bad_record(position, Reason.UNREADABLE, detail, records=end - position)


def _batches(
    parquet: pq.ParquetFile, tracked: TrackedFile, group: int, paths: Paths
) -> Iterator[pa.RecordBatch]:
    """The wanted columns of a row group, about BATCH_BYTES at a time. Raises Unreadable."""
    with content_errors(tracked):
        # Not metadata.column(i): on a footer with one wrong bit it can abort the process (pyarrow
        # 26). The row group's own size, of all columns, bounds that of the text.
        metadata = parquet.metadata.row_group(group)
        size = max(metadata.total_byte_size, 1)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // size))
        columns = [".".join(path) for path in paths.all()]
        batches = parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False)
    while True:
        with content_errors(tracked):
            batch = next(batches, None)
            for column in batch.columns if batch is not None else ():
                check_values(column)
        if batch is None:
            return
        yield batch
