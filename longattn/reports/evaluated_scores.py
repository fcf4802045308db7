"""The further scores of a config in an evaluation: their values, their costs, and which two to combine."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.config import Config
from longattn.reports.evaluation_record import Pair
from longattn.scoring.further_scores import DTYPES, FurtherScorer, table_parts
from longattn.selection.lds import moments
from longattn.windows.tokenizer import DocumentTokenizer

log = logging.getLogger("longattn")

Floats = NDArray[np.float64]
Ids = NDArray[np.integer]

PAIRS = 5  # shown of a category
WORTH = 0.01  # of AUC over the better of the two, below which a pair is not worth its cost


class EvaluatedScores:
    """The further scores of a config, ready to score windows of its tokenizer."""

    def __init__(self, config: Config, tokenizer: DocumentTokenizer, device: str) -> None:
        """Load every model. Raises ValueError as `FurtherScorer` does."""
        self.tokenizer = tokenizer
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._scorers = [
            FurtherScorer(
                score,
                table_parts(
                    score,
                    window=config.window.tokens,
                    min_distance=config.min_distance,
                    tokenizer=tokenizer.fingerprint,
                    dtype=(score.dtype or DTYPES[device]) if score.model else None,
                ),
                device,
            )
            for score in config.scores
        ]

    def columns(self, ids_nl: Ids) -> dict[str, Floats]:
        """The single values of every score, (n,) each; variance as its negative, so that more is better.

        Raises ValueError for windows without a value.
        """
        if not self._scorers:
            return {}
        texts = [self.tokenizer.decode(ids_l).decode(errors="replace") for ids_l in ids_nl]
        ids = pa.array(list(ids_nl.astype(np.int32)), pa.list_(pa.int32()))
        windows = pa.table({"content": pa.array(texts, pa.string()), "input_ids": ids})
        told: dict[str, Floats] = {}
        for scorer in self._scorers:
            started = time.perf_counter()
            columns = scorer.columns(windows)
            self._seconds[scorer.score.name].append((time.perf_counter() - started) / len(ids_nl))
            for name, values in columns.items():
                if name.endswith("_layers"):
                    continue
                if None in values:
                    raise ValueError(f"score {name}: a window of the corpus has no value")
                is_variance = name.endswith("_variance")
                told[f"low {name}" if is_variance else name] = np.array(values) * (
                    -1 if is_variance else 1
                )
        return told

    def costs(self) -> dict[str, float]:
        """Seconds a window of each score, the median over what was scored."""
        return {name: float(np.median(of)) for name, of in self._seconds.items()}


def pairs(
    scores: Mapping[str, Mapping[str, Floats]], kinds: Sequence[str], names: Sequence[str]
) -> list[Pair]:
    """The pairs of scores whose sum tells native windows from splices best, best first.

    Each score is standardised by the native windows; AUC is the mean over the kinds of splices. The
    pairs are chosen on the windows that they are measured on, so that a small gain says nothing.

    Args:
        scores: by score and kind of window, values.
        kinds: of splices.
        names: scores to combine.
    """
    if not kinds:
        return []

    def of(values: Mapping[str, Floats]) -> float:
        return float(np.mean([_auc(values["native"], values[kind]) for kind in kinds]))

    scaled = {name: _standardised(scores[name]) for name in names}
    alone = {name: of(values) for name, values in scaled.items()}
    found: list[Pair] = []
    for a, b in combinations(names, 2):
        both = {kind: scaled[a][kind] + scaled[b][kind] for kind in ("native", *kinds)}
        value, better = of(both), max(alone[a], alone[b])
        gain = value - better
        found.append(Pair((a, b), value, better, gain, gain > WORTH))
    return sorted(found, key=lambda pair: -pair.auc)[:PAIRS]


def _standardised(values: Mapping[str, Floats]) -> dict[str, Floats]:
    mean, deviation = moments(values["native"])
    return {kind: (x - mean) / (deviation or 1) for kind, x in values.items()}


def _auc(native_n: Floats, foil_m: Floats) -> float:
    wins = (native_n[:, None] > foil_m) + 0.5 * (native_n[:, None] == foil_m)
    return float(wins.mean())
