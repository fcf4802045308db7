"""The actor that scores windows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from longattn.resume.fingerprint import fingerprint_of
from longattn.storage.tables import (
    EXACT,
    file_metadata,
    open_parquet,
    write_table,
)

if TYPE_CHECKING:  # not imported by workers that do not score: transformers takes them 4 s
    pass
from longattn.pipeline.labelled_sink import list_array, token_ids
from longattn.scoring.settings import ScoreSettings


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
            "ds_heads": list_array(ds_bh.astype(np.float32)),
            "variance_heads": list_array(variance_bh.astype(np.float32)),
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
            self.fingerprints[window] = fingerprint_of(parts)
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
