"""The sink of a run: scored windows become labelled Parquet files, each whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from longattn.config import check_category
from longattn.resume.remaining import row_spans
from longattn.storage.files import join
from longattn.storage.tables import (
    CATEGORY,
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    content_name,
    write_table,
)

if TYPE_CHECKING:  # not imported by workers that do not score: transformers takes them 4 s
    pass


def token_ids(batch: pa.Table) -> np.ndarray:
    """`input_ids` as (windows, tokens) int64, from lists of any kind or tensors of Ray.

    Raises ValueError on mixed lengths, and on what are no lists of integers.
    """
    column = batch["input_ids"]
    if isinstance(column.type, pa.ExtensionType):  # what Ray Data makes of NumPy arrays
        rows = list(BlockAccessor.for_block(batch.select(["input_ids"])).to_numpy("input_ids"))
    else:
        lists = column.combine_chunks()
        if not hasattr(lists, "flatten") or lists.null_count:
            raise ValueError(f"input_ids: lists of integers are wanted; given {_given(column)}")
        lengths = pa.compute.list_value_length(lists).to_numpy()
        rows = np.split(lists.flatten().to_numpy(zero_copy_only=False), np.cumsum(lengths)[:-1])
    shapes = sorted({np.shape(row) for row in rows})
    if len(shapes) != 1 or len(shapes[0]) != 1:
        told = ", ".join("x".join(map(str, shape)) for shape in shapes[:5])
        raise ValueError(f"input_ids: windows of one length are wanted; given lengths {told}")
    ids_bl = np.stack(rows)
    if not np.issubdtype(ids_bl.dtype, np.integer):
        raise ValueError(f"input_ids: lists of integers are wanted; given {_given(column)}")
    return ids_bl.astype(np.int64, copy=False)


def _given(column: pa.ChunkedArray) -> str:
    return f"{column.type}" + (f", {column.null_count} of them null" if column.null_count else "")


def list_array(values_bn: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, values_bn.size + 1, values_bn.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values_bn.ravel()))


def no_report(*_: object) -> None: ...


class LabelledSink(Datasink[int]):
    """Writes each block's windows as one file a category, named after the ids inside it."""

    def __init__(
        self, output: str, report: Callable[[str, int, int, float], None] = no_report
    ) -> None:
        self.output, self.report = output, report

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return 0
        table = pa.concat_tables(tables, promote_options="default")
        if missing := {"data_id", "category"} - set(table.column_names):
            raise ValueError(
                f"labelled windows: no column {', '.join(sorted(missing))} among "
                f"{', '.join(table.column_names)}"
            )
        categories = table["category"].cast(pa.string())
        names = pa.compute.unique(categories).to_pylist()
        for name in names:  # of a dataset of the user's own it may be anything
            try:
                check_category(name)
            except ValueError as error:
                raise ValueError(f"{error} (given: {name!r:.120})") from None
        for category in names:
            self._write(category, table.filter(pa.compute.equal(categories, category)))
        return len(table)

    def _write(self, category: str, table: pa.Table) -> None:
        started = time.perf_counter()
        metadata: dict[str, Any] = {}
        if "fingerprint" in table.column_names:
            metadata["fingerprint"] = table["fingerprint"][0].as_py()
        if "split" in table.column_names:
            columns = (table[name].to_pylist() for name in ("split", "source", "data_id"))
            metadata["runs"] = row_spans(*columns)
        at = table.column_names.index("input_ids") if "input_ids" in table.column_names else -1
        if at >= 0 and isinstance(table["input_ids"].type, pa.ExtensionType):
            table = table.set_column(at, "input_ids", list_array(token_ids(table)))
        for field in LABELLED:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        table = table.set_column(
            table.column_names.index("category"),
            pa.field("category", CATEGORY),
            pa.array([category] * len(table)).dictionary_encode(),
        )
        further = [field for field in table.schema if EXTRA_SCORE_COLUMNS.fullmatch(field.name)]
        schema = pa.schema([*LABELLED, *further])
        table = table.select(schema.names).cast(schema)
        url = join(self.output, "labelled", f"category={category}", content_name(table["data_id"]))
        size = write_table(url, table, metadata)
        self.report(category, len(table), size, time.perf_counter() - started)
