"""The stage of a run that scores windows: an actor that holds one scorer, on a GPU or some cores.

In: a table of windows. Does: scores them, some at a time. Out: the same rows with their scores.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from longattn.config import CPU_BATCH_TOKENS, SCORER_BATCH
from longattn.models import model_folder
from longattn.pipeline.failures import FailureReport, failures_reported, no_failure_report
from longattn.pipeline.labelled_sink import list_array, no_report, token_ids
from longattn.pipeline.pulse import PulseReport, beating
from longattn.resume.origin import scored_by
from longattn.scoring.settings import ScoreSettings
from longattn.text import without_secrets

SAYS_WHAT_SCORED = ("fingerprint", "scored_by", "scored_on")
ScoreReport = Callable[["Counter[str]", int, float, float, float], None]
"""Windows by category, tokens a window, seconds of work, in it of the statistics, seconds waited."""
ScoringReports = tuple[ScoreReport, FailureReport, PulseReport]


@dataclass(frozen=True)
class ScoreStage:
    """How a run scores windows."""

    settings: ScoreSettings
    device: str
    threads: int = 0
    """Of torch on a CPU; 0: torch's own number."""
    batch: int | None = None
    """Windows scored at a time; None: as many as the device takes well."""
    run: bool = True
    """Of a run, which says in `run.json` what scores; else each row says so."""


class ScoreWindows:
    """Ray Data actor: a table of windows -> the table with their scores."""

    def __init__(
        self,
        stage: ScoreStage,
        report: ScoreReport,
        failed: FailureReport = no_failure_report,
        pulse: PulseReport = no_report,
    ) -> None:
        self.failed, self.pulse = failed, pulse
        with failures_reported(failed, "scores", lambda: without_secrets(stage.settings.model)):
            if stage.device == "cuda":
                _compile_ahead(stage.settings)
            from longattn.scoring.window_scorer import WindowScorer  # imports transformers: 4 s

            self.scorer = WindowScorer(
                stage.settings, stage.device, stage.threads if stage.device == "cpu" else 0
            )
        self.run, self.model = stage.run, stage.settings.model
        self.stage, self.report = stage, report
        self.left = time.perf_counter()  # when the last batch ended

    def __call__(self, block: pa.Table) -> pa.Table:
        if not len(block):
            return block
        block = block.drop_columns([n for n in SAYS_WHAT_SCORED if n in block.column_names])
        with failures_reported(self.failed, "scores"):
            size = self._batch(block)
            scored = [
                self._scored(block.slice(start, size)) for start in range(0, len(block), size)
            ]
        return pa.concat_tables(scored).combine_chunks()

    def _batch(self, block: pa.Table) -> int:
        """Windows of a block that are scored, and reported, together."""
        usual = SCORER_BATCH[self.stage.device]
        if self.stage.device == "cpu":
            usual = min(usual, max(1, CPU_BATCH_TOKENS // token_ids(block).shape[1]))
        return self.stage.batch or usual

    def _scored(self, batch: pa.Table) -> pa.Table:
        started = time.perf_counter()
        ids_bl = token_ids(batch)
        length = ids_bl.shape[1]
        in_kernel = time.perf_counter()
        with beating(self.pulse, len(batch)):
            scores = self.scorer.score(ids_bl)
        in_kernel = time.perf_counter() - in_kernel
        ds_bhk, variance_bhk = scores.ds.numpy(), scores.variance.numpy()
        ds_bh, variance_bh = ds_bhk[..., 0].copy(), variance_bhk[..., 0].copy()
        parts = self.scorer.parts(length)
        columns: dict[str, Any] = {
            "ds": pa.array(ds_bh.mean(axis=1)),
            "variance": pa.array(variance_bh.mean(axis=1)),
            "ds_heads": list_array(ds_bh.astype(np.float32)),
            "variance_heads": list_array(variance_bh.astype(np.float32)),
            "fingerprint": pa.array([parts.fingerprint] * len(batch)),
            "scored_on": pa.array([self.scorer.processor] * len(batch)),
        }
        if not self.run:
            columns["scored_by"] = pa.array([scored_by(self.model, parts)] * len(batch))
        for column, k in list(enumerate(parts.min_distances))[1:]:
            columns[f"ds_k{k}"] = pa.array(ds_bhk[..., column].copy().mean(axis=1))
            columns[f"variance_k{k}"] = pa.array(variance_bhk[..., column].copy().mean(axis=1))
        for name, column in columns.items():
            batch = batch.append_column(name, column)
        waiting, self.left = started - self.left, time.perf_counter()
        named = "category" in batch.column_names
        categories = batch["category"].to_pylist() if named else [""] * len(batch)
        self.report(Counter(categories), length, self.left - started, in_kernel, waiting)
        return batch


def _compile_ahead(settings: ScoreSettings) -> None:
    """Compile the kernels while transformers is imported."""
    from longattn.scoring.compile_ahead import compile_ahead, head_dim_of

    dim = head_dim_of(model_folder(settings.model))
    if dim and settings.dtype:
        compile_ahead(dim, settings.dtype)
