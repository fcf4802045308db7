"""The last stage of a run: scored windows become labelled Parquet files, each whole or not at all.

In: tables of scored windows. Out: one file a category and table, named after the ids inside it, so
that a stage that is tried again overwrites its own file. The footer says of which splits the rows are.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import check_category
from longattn.resume.remaining import row_spans
from longattn.storage.files import join
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import (
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    carried_fields,
    content_name,
    with_schema,
    write_table,
)

WriteReport = Callable[[str, int, int, float, Mapping[str, int]], None]
"""Category, windows, bytes and seconds of a file, and its windows by split."""


def no_report(*_: object) -> None: ...


def write_labelled_windows(
    output: str, tables: Iterable[pa.Table], report: WriteReport = no_report
) -> int:
    """Write scored windows as one labelled file for each category; returns how many they are.

    Raises ValueError for windows without `data_id` or `category`, or with a category that is no
    folder's name.
    """
    some = [table for table in tables if len(table)]
    if not some:
        return 0
    table = pa.concat_tables(some, promote_options="default")
    if missing := {"data_id", "category"} - set(table.column_names):
        raise ValueError(
            f"labelled windows: no column {', '.join(sorted(missing))} among "
            f"{', '.join(table.column_names)}"
        )
    categories = table["category"].cast(pa.string())
    names = pc.unique(categories).to_pylist()
    for name in names:  # of a dataset of the user's own it may be anything
        try:
            check_category(name)
        except ValueError as error:
            raise ValueError(f"{error} (given: {name!r:.120})") from None
    for name in names:
        _write_category(output, name, table.filter(pc.equal(categories, name)), report)
    return len(table)


def _write_category(output: str, category: str, table: pa.Table, report: WriteReport) -> None:
    started = time.perf_counter()
    metadata: dict[str, Any] = {}
    splits: Counter[str] = Counter()
    if "fingerprint" in table.column_names:
        metadata["fingerprint"] = table["fingerprint"][0].as_py()
    if "scored_by" in table.column_names:
        metadata["scored_by"] = table["scored_by"][0].as_py()
    if "scored_on" in table.column_names:
        metadata["scored_on"] = ", ".join(sorted(set(table["scored_on"].to_pylist())))
    if "split" in table.column_names:
        columns = (table[name].to_pylist() for name in ("split", "source", "data_id"))
        metadata["runs"] = row_spans(*columns)
        for split, _, rows, *_ in metadata["runs"]:
            splits[split] += rows
    at = table.column_names.index("input_ids") if "input_ids" in table.column_names else -1
    if at >= 0 and isinstance(table["input_ids"].type, pa.ExtensionType):
        table = table.set_column(at, "input_ids", list_array(token_ids(table)))
    extra = [field for field in table.schema if EXTRA_SCORE_COLUMNS.fullmatch(field.name)]
    table = with_schema(table, pa.schema([*LABELLED, *extra, *carried_fields([table.schema])]))
    url = join(OutputFolder(output).labelled, category, content_name(table["data_id"]))
    size = write_table(url, table, metadata)
    report(category, len(table), size, time.perf_counter() - started, splits)


def token_ids(batch: pa.Table) -> np.ndarray:
    """`input_ids` as (windows, tokens) int64, from lists of any kind or tensors of Ray.

    Raises ValueError on mixed lengths, and on what are no lists of integers.
    """
    column = batch["input_ids"]
    if isinstance(column.type, pa.ExtensionType):  # what Ray Data makes of NumPy arrays
        block = sys.modules["ray.data.block"].BlockAccessor.for_block(batch.select(["input_ids"]))
        rows = list(block.to_numpy("input_ids"))
    else:
        lists = column.combine_chunks()
        if not hasattr(lists, "flatten") or lists.null_count:
            raise ValueError(f"input_ids: lists of integers are required; given {_given(column)}")
        lengths = pc.list_value_length(lists).to_numpy()
        rows = np.split(lists.flatten().to_numpy(zero_copy_only=False), np.cumsum(lengths)[:-1])
    shapes = sorted({np.shape(row) for row in rows})
    if len(shapes) != 1 or len(shapes[0]) != 1:
        lengths = ", ".join("x".join(map(str, shape)) for shape in shapes[:5])
        raise ValueError(f"input_ids: windows of one length are required; given lengths {lengths}")
    ids_bl = np.stack(rows)
    if not np.issubdtype(ids_bl.dtype, np.integer):
        raise ValueError(f"input_ids: lists of integers are required; given {_given(column)}")
    return ids_bl.astype(np.int64, copy=False)


def _given(column: pa.ChunkedArray) -> str:
    return f"{column.type}" + (f", {column.null_count} of them null" if column.null_count else "")


def list_array(values_bn: np.ndarray) -> pa.ListArray:
    """A row a list."""
    offsets = np.arange(0, values_bn.size + 1, values_bn.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values_bn.ravel()))
