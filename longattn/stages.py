"""The last two stages of a run: the actor that scores windows, and the sink of labelled files.

The first, which reads, tokenizes and cuts, is `longattn.windows.SplitWindows`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from longattn import ledger
from longattn.config import check_category
from longattn.storage import (
    CATEGORY,
    EXACT,
    FURTHER,
    LABELLED,
    content_name,
    file_metadata,
    join,
    open_parquet,
    write_table,
)
from longattn.windows import load_tokenizer

if TYPE_CHECKING:  # not imported by workers that do not score: transformers takes them 4 s
    from longattn.scoring.checkpoint import Checkpoint

DEFINITION = 1  # version of what a score means; a change of any number raises it


@dataclass(frozen=True)
class ScoreSettings:
    """What decides a score, beside the window."""

    model: str
    min_distance: int | tuple[int, ...] | None
    rope_theta: float | None
    add_bos: bool | None
    dtype: str | None
    query_stride: int = 1

    def distances(self, window: int) -> list[int]:
        k = window // 4 if self.min_distance is None else self.min_distance
        return [k] if isinstance(k, int) else list(k)

    def parts(self, checkpoint: Checkpoint, window: int, dtype: str) -> dict[str, Any]:
        """Everything that goes into the fingerprint of the scores."""
        distances = self.distances(window)
        parts = {
            "definition": DEFINITION,
            "weights": checkpoint.fingerprint(),
            "tokenizer": load_tokenizer(self.model).fingerprint,
            "window": window,
            "min_distance": distances if len(distances) > 1 else distances[0],
            "rope_theta": self.rope_theta,
            "bos": self.bos(checkpoint),
            "dtype": dtype,
        }
        return parts if self.query_stride == 1 else {**parts, "query_stride": self.query_stride}

    def bos(self, checkpoint: Checkpoint) -> int | None:
        """The id put in front when scoring, or None.

        Raises ValueError where one is demanded and the checkpoint has none.
        """
        if self.add_bos is False:
            return None
        bos = load_tokenizer(self.model).bos_token_id
        if self.add_bos and bos is None:
            bos = checkpoint.config.bos_token_id
            if bos is None:
                raise ValueError(
                    f"scorer.add_bos: {self.model} has no BOS token; null or false is allowed"
                )
        return bos


class ScoreWindows:
    """Ray Data actor: a table of windows -> the table with their scores."""

    def __init__(
        self,
        settings: ScoreSettings,
        device: str,
        threads: int,
        report: Callable[..., None],
    ) -> None:
        import torch

        from longattn.scoring.checkpoint import open_checkpoint
        from longattn.scoring.scorer import AttentionScorer

        if device == "cpu":
            torch.set_num_threads(threads)
        self.settings, self.report = settings, report
        self.checkpoint = open_checkpoint(settings.model)
        self.bos = settings.bos(self.checkpoint)
        self.scorer = AttentionScorer.from_pretrained(
            settings.model, device=device, dtype=settings.dtype, rope_theta=settings.rope_theta
        )
        self.fingerprints: dict[int, str] = {}
        self.left = time.perf_counter()  # when the last call ended

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not len(batch):
            return batch
        started = time.perf_counter()
        ids_bl = token_ids(batch)
        length = ids_bl.shape[1]
        if self.bos is not None:  # takes position 0, and the last token gives way
            ids_bl = np.concatenate([np.full_like(ids_bl[:, :1], self.bos), ids_bl[:, :-1]], axis=1)
        distances = self.settings.distances(length)
        in_kernel = time.perf_counter()
        scores = self.scorer.score(ids_bl, distances, self.settings.query_stride)
        in_kernel = time.perf_counter() - in_kernel
        ds_bhk, variance_bhk = scores.ds.numpy(), scores.variance.numpy()
        ds_bh, variance_bh = ds_bhk[..., 0].copy(), variance_bhk[..., 0].copy()
        if "fingerprint" in batch.column_names:
            batch = batch.drop_columns(["fingerprint"])
        columns = {
            "ds": pa.array(ds_bh.mean(axis=1)),
            "variance": pa.array(variance_bh.mean(axis=1)),
            "ds_heads": _lists(ds_bh.astype(np.float32)),
            "variance_heads": _lists(variance_bh.astype(np.float32)),
            "fingerprint": pa.array([self._fingerprint(length)] * len(batch)),
        }
        for column, k in list(enumerate(distances))[1:]:
            columns[f"ds_k{k}"] = pa.array(ds_bhk[..., column].copy().mean(axis=1))
            columns[f"variance_k{k}"] = pa.array(variance_bhk[..., column].copy().mean(axis=1))
        if self.settings.query_stride > 1:  # what a second pass fills
            columns |= {name: pa.nulls(len(batch), pa.float64()) for name in EXACT}
        for name, column in columns.items():
            batch = batch.append_column(name, column)
        waiting, self.left = started - self.left, time.perf_counter()
        named = "category" in batch.column_names
        categories = batch["category"].to_pylist() if named else [""] * len(batch)
        self.report(Counter(categories), length, self.left - started, in_kernel, waiting)
        return batch

    def _fingerprint(self, window: int) -> str:
        if window not in self.fingerprints:
            dtype = str(self.scorer.dtype).removeprefix("torch.")
            parts = self.settings.parts(self.checkpoint, window, dtype)
            self.fingerprints[window] = ledger.fingerprint(parts)
        return self.fingerprints[window]


class ScoreAgain(ScoreWindows):
    """Ray Data actor of the second pass: gives rows of labelled files their exact scores, in place.

    Takes columns `url` and `rows`; gives how many it scored. A file is replaced in one step, so a
    retried task does no harm. `settings` are those of exact scores.
    """

    def __init__(self, batch: int, *settings: Any) -> None:
        super().__init__(*settings)
        self.batch = batch

    def __call__(self, batch: pa.Table) -> pa.Table:
        for task in batch.to_pylist():
            with open_parquet(task["url"]) as parquet:
                metadata = file_metadata(parquet)
                table = parquet.read().replace_schema_metadata()
            exact = {name: table[name].to_numpy().copy() for name in EXACT}
            windows = table.select(["input_ids", "category"])
            for start in range(0, len(task["rows"]), self.batch):
                rows = task["rows"][start : start + self.batch]
                scored = super().__call__(windows.take(rows))
                for name in EXACT:
                    exact[name][rows] = scored[name.removesuffix("_exact")].to_numpy()
            for name, values in exact.items():
                column = pa.array(values, mask=np.isnan(values))
                table = table.set_column(table.column_names.index(name), name, column)
            write_table(task["url"], table, metadata)
        return pa.table({"scored": [sum(map(len, batch["rows"].to_pylist()))]})


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


def _lists(values_bn: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, values_bn.size + 1, values_bn.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values_bn.ravel()))


def ignore(*_: object) -> None: ...


class LabelledSink(Datasink[int]):
    """Writes each block's windows as one file a category, named after the ids inside it."""

    def __init__(
        self, output: str, report: Callable[[str, int, int, float], None] = ignore
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
            metadata["runs"] = ledger.runs(*columns)
        at = table.column_names.index("input_ids") if "input_ids" in table.column_names else -1
        if at >= 0 and isinstance(table["input_ids"].type, pa.ExtensionType):
            table = table.set_column(at, "input_ids", _lists(token_ids(table)))
        for field in LABELLED:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        table = table.set_column(
            table.column_names.index("category"),
            pa.field("category", CATEGORY),
            pa.array([category] * len(table)).dictionary_encode(),
        )
        further = [field for field in table.schema if FURTHER.fullmatch(field.name)]
        schema = pa.schema([*LABELLED, *further])
        table = table.select(schema.names).cast(schema)
        url = join(self.output, "labelled", f"category={category}", content_name(table["data_id"]))
        size = write_table(url, table, metadata)
        self.report(category, len(table), size, time.perf_counter() - started)
