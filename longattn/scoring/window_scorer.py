"""Windows of tokens -> their scores, by a scorer with the settings of a run.

The rule of BOS is here alone: where the checkpoint wants one, it takes position 0 of the window and
the last token gives way, so that a window keeps its length.
"""

from __future__ import annotations

import platform
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from longattn.scoring.checkpoint import open_checkpoint
from longattn.scoring.scorer import AttentionScorer, Scores
from longattn.scoring.settings import ScoreParts, ScoreSettings

Ids = NDArray[np.integer]


def with_bos(ids_bl: Ids, bos: int | None) -> Ids:
    """Ids as they are scored: (batch, length), `bos` in position 0 unless it is None."""
    if bos is None:
        return ids_bl
    return np.concatenate([np.full_like(ids_bl[:, :1], bos), ids_bl[:, :-1]], axis=1)


class WindowScorer:
    """An `AttentionScorer` with BOS, distances and stride as the settings have them."""

    def __init__(self, settings: ScoreSettings, device: str | None = None, threads: int = 0):
        """Open the checkpoint.

        Args:
            settings: of the run.
            device: "cpu" or "cuda"; a GPU if there is one by default.
            threads: of torch on a CPU; 0: torch's own number.
        """
        if threads:
            torch.set_num_threads(threads)
        self.checkpoint = open_checkpoint(settings.model)
        self.bos = settings.bos(self.checkpoint)
        self.scorer = AttentionScorer.from_pretrained(
            settings.model, device=device, dtype=settings.dtype, rope_theta=settings.rope_theta
        )
        self.settings = replace(settings, dtype=self.dtype)
        self._parts: dict[int, ScoreParts] = {}

    @property
    def dtype(self) -> str:
        """Of the products, as in the settings."""
        return str(self.scorer.dtype).removeprefix("torch.")

    @property
    def processor(self) -> str:
        """The kind that scores: scores of one window differ by 1e-9 between kinds."""
        if self.scorer.device.type == "cuda":
            return torch.cuda.get_device_name(self.scorer.device)
        return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}"

    def parts(self, window: int) -> ScoreParts:
        """All that decides the scores of windows of this length."""
        if window not in self._parts:
            self._parts[window] = self.settings.parts(self.checkpoint, window, self.dtype)
        return self._parts[window]

    def score(self, ids_bl: Ids) -> Scores:
        """Statistics of each window: (batch, heads, distances) tensors in float64."""
        distances = self.settings.distances(ids_bl.shape[1])
        ids_bl = with_bos(ids_bl, self.bos)
        return self.scorer.score(ids_bl, distances, self.settings.query_stride)
