"""What the further scores of a config would cost: each measured on a window of the sample."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from longattn.config import Config
from longattn.scoring.further_scores import DTYPES, FurtherScorer, table_parts
from longattn.settings.scores import Score
from longattn.text import counted, duration
from longattn.windows.tokenizer import load_tokenizer


@dataclass(frozen=True)
class ScoreCost:
    """What a further score would take."""

    name: str
    windows: int
    """Of all categories; with quantiles in `where` their share, else all, which is at most."""
    at_most: bool
    """Whether `where` may leave out more."""
    seconds: float | None
    """A window, measured here; None where nothing was measured."""
    device: str
    refused: str = ""
    """Why it cannot be computed here."""

    def line(self) -> str:
        """`score gap: 1,200 windows at 3.4 s: 1.1 h on one cuda device`."""
        some = f"score {self.name}: {'at most ' if self.at_most else ''}{counted(self.windows, 'window')}"
        if self.seconds is None:
            return f"{some}, not measured" + (f": {self.refused}" if self.refused else "")
        kind = {"cuda": "GPU", "cpu": "CPU scorer"}[self.device]
        return (
            f"{some} at {duration(self.seconds)} each (measured here): "
            f"{duration(self.seconds * self.windows)} of one {kind}"
        )


def score_costs(
    config: Config, row: Mapping[str, Any] | None, device: str, windows: int
) -> list[ScoreCost]:
    """The cost of each further score.

    Args:
        row: a window, with `content` and `input_ids`; None: nothing is measured.
        device: "cuda" or "cpu".
        windows: that a run would label.
    """
    told = []
    for score in config.scores:
        share, at_most = 1.0, False
        for bound in score.where:
            low, high = bound.quantiles or (0.0, 1.0)
            share *= high - low
            at_most |= bound.min is not None or bound.max is not None
        seconds, refused = None, ""
        if row is not None:
            try:
                seconds = _measured(config, score, row, device)
            except (
                ValueError
            ) as error:  # an 8B model on a laptop: what it costs elsewhere is unknown
                refused = str(error)
        of = device if score.model and device != "stated" else "cpu"
        told.append(ScoreCost(score.name, round(windows * share), at_most, seconds, of, refused))
    return told


def _measured(config: Config, score: Score, row: Mapping[str, Any], device: str) -> float:
    """Seconds a window."""
    parts = table_parts(
        score,
        window=config.window.tokens,
        min_distance=config.min_distance,
        tokenizer=load_tokenizer(config.scorer.model).fingerprint,
        dtype=(score.dtype or DTYPES[device]) if score.model else None,
    )
    scorer = FurtherScorer(score, parts, device)
    ids = pa.array([row["input_ids"]], pa.list_(pa.int32()))
    window = pa.table({"content": pa.array([row["content"]], pa.string()), "input_ids": ids})
    if device == "cuda" and score.model:
        scorer.columns(window)  # compiles its kernels
    started = time.perf_counter()
    scorer.columns(window)
    return time.perf_counter() - started
