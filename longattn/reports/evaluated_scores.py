"""The further scores of a config in an evaluation: their values, their costs, and which two to combine."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.config import Config
from longattn.reports.evaluation_record import Pair
from longattn.scoring.further_scores import DTYPES, FurtherScorer, table_parts
from longattn.selection.lds import moments
from longattn.settings.scores import head_columns, single_values
from longattn.settings.selection import HeadsOfScore
from longattn.windows.tokenizer import DocumentTokenizer, load_tokenizer

log = logging.getLogger("longattn")

Floats = NDArray[np.float64]
Ids = NDArray[np.integer]
ScoreHeads = Callable[[Ids], tuple[Floats, Floats]]
"""(n, window) ids -> DS and variance of every head, (n, heads) each."""


@dataclass(frozen=True)
class HeadScorer:
    """What scores heads, and what their numbers stand for.

    Attributes:
        score: the first layer's heads, or those of a score's layers, layer by layer.
        heads: numbers of the first layer's, or (layer, head).
    """

    score: ScoreHeads
    heads: Sequence[int] | Sequence[tuple[int, int]]

    @property
    def names(self) -> list[str]:
        """`head 3`, `layer 7 head 3`."""
        return [
            f"head {of}" if isinstance(of, int) else f"layer {of[0]} head {of[1]}"
            for of in self.heads
        ]


PAIRS = 5  # shown of a category
WORTH = 0.01  # of AUC over the better of the two, below which a pair is not worth its cost


@dataclass(frozen=True)
class FurtherScores:
    """Of some windows, what the scores of a config say.

    Attributes:
        columns: single values, (n,) each; variance as its negative, so that more is better.
        heads: by score of kind attention, DS and variance of every head, (n, layers x heads) each.
    """

    columns: dict[str, Floats] = field(default_factory=dict)
    heads: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)


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

    def scored(self, ids_nl: Ids) -> FurtherScores:
        """Every score of some windows. Raises ValueError for windows without a value."""
        told = FurtherScores()
        windows = self._windows(ids_nl) if self._scorers else None
        for scorer in self._scorers:
            started = time.perf_counter()
            columns = scorer.columns(windows)
            score = scorer.score
            self._seconds[score.name].append((time.perf_counter() - started) / len(ids_nl))
            for name in single_values(score.kind, score.columns):
                if None in columns[name]:
                    raise ValueError(f"score {name}: a window of the corpus has no value")
                values = np.array(columns[name])
                if score.kind == "attention" and name.endswith("_variance"):
                    told.columns[f"low {name}"] = -values
                else:
                    told.columns[name] = values
            if scorer.layers:
                told.heads[score.name] = _heads(columns, score.name)
        return told

    def head_scorers(self) -> dict[str, HeadScorer]:
        """By name of a score of kind attention, what scores every head of its layers."""
        return {of.score.name: self._head_scorer(of) for of in self._scorers if of.layers}

    def layers_of(self, name: str) -> tuple[tuple[int, ...], int]:
        """Layers of a score, and heads of each."""
        (found,) = (scorer for scorer in self._scorers if scorer.score.name == name)
        return found.layers, found.heads

    def _head_scorer(self, scorer: FurtherScorer) -> HeadScorer:
        def score(ids_nl: Ids) -> tuple[Floats, Floats]:
            return _heads(scorer.columns(self._windows(ids_nl)), scorer.score.name)

        heads = [(layer, head) for layer in scorer.layers for head in range(scorer.heads)]
        return HeadScorer(score, heads)

    def _windows(self, ids_nl: Ids) -> pa.Table:
        texts = [self.tokenizer.decode(ids_l).decode(errors="replace") for ids_l in ids_nl]
        ids = pa.array(list(ids_nl.astype(np.int32)), pa.list_(pa.int32()))
        return pa.table({"content": pa.array(texts, pa.string()), "input_ids": ids})

    def costs(self) -> dict[str, float]:
        """Seconds a window of each score, the median over what was scored."""
        return {name: float(np.median(of)) for name, of in self._seconds.items()}


def score_heads(config: Config, asked: HeadsOfScore) -> HeadScorer:
    """Scores of some heads of a further score of a config.

    Raises ValueError for a score, layers or heads that are not there.
    """
    import torch  # 4 s

    of = tuple(score for score in config.scores if score.name == asked.score)
    if not of or of[0].kind != "attention":
        there = ", ".join(score.name for score in config.scores if score.kind == "attention")
        raise ValueError(
            f"select.heads: `scores:` has no score {asked.score!r} of kind attention; it has "
            f"{there or 'none'}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    only = config.model_copy(update={"scores": of})
    scores = EvaluatedScores(only, load_tokenizer(config.scorer.model), device)
    everything = scores.head_scorers()[asked.score]
    heads = asked.among(*scores.layers_of(asked.score))
    places = [list(everything.heads).index(head) for head in heads]

    def score(ids_nl: Ids) -> tuple[Floats, Floats]:
        ds, variance = everything.score(ids_nl)
        return ds[:, places], variance[:, places]

    return HeadScorer(score, heads)


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


def _heads(columns: Mapping[str, Sequence[Sequence[float]]], name: str) -> tuple[Floats, Floats]:
    """DS and variance of every head. Raises ValueError for windows without a value."""
    found = [columns[column] for column in head_columns(name)]
    if None in found[0]:
        raise ValueError(f"score {name}: a window of the corpus has no value")
    ds, variance = (np.array(of, np.float64) for of in found)
    return ds, variance


def _standardised(values: Mapping[str, Floats]) -> dict[str, Floats]:
    mean, deviation = moments(values["native"])
    return {kind: (x - mean) / (deviation or 1) for kind, x in values.items()}


def _auc(native_n: Floats, foil_m: Floats) -> float:
    wins = (native_n[:, None] > foil_m) + 0.5 * (native_n[:, None] == foil_m)
    return float(wins.mean())
