"""What an evaluation found, as records: how well each score tells native windows from foils.

A native window is of one document; a foil is made up: spliced from several documents, or one passage
repeated. `evaluate` writes the records, pages, commands and notebooks read them; `evaluation.json` is
`Evaluation.to_dict()`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from longattn.selection.heads import HeadChoice
from longattn.text import counted

LABELS = {"DU": "low variance"}
"""Of scorers, for people; the paper's DU is -variance."""
FEW_HEADS = 5
"""The best ones of deeper layers, which are shown."""
FEW_DOCUMENTS = 20
"""Of fewer, a bootstrap over documents gives intervals that are too narrow."""


def lds_of(name: str) -> str:
    """What LDS of a score of kind attention is called: of means over its heads and layers."""
    return f"LDS of {name}"


@dataclass(frozen=True)
class Auc:
    """Share of pairs in which the native window scores higher, and the ends of its 95% interval."""

    auc: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.auc:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of a score over the native windows."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Agreement:
    """How far another way to score ranks the native windows alike."""

    spearman: float | None
    """None where one of the two is constant."""
    kept: float
    """Share of the better half that stays there."""


@dataclass(frozen=True)
class Pair:
    """Two scores whose sum was measured, mean AUC over the kinds of splices."""

    scores: tuple[str, str]
    auc: float
    better: float
    """AUC of the better of the two alone."""
    gain: float
    worth: bool
    """Whether the gain is worth a second score."""


@dataclass(frozen=True)
class HeadsEvaluation:
    """What every head tells by itself, and which one is taken."""

    auc: dict[str, list[float]]
    """By kind of foil, of each head, on all documents."""
    choice: HeadChoice
    names: list[str]
    """Of the heads."""

    def best(self, most: int) -> list[int]:
        """The heads of the highest AUC, meant over splices, where there are some; at most so many."""
        kinds = [kind for kind in self.auc if kind.startswith("splice")] or list(self.auc)
        means = np.mean([self.auc[kind] for kind in kinds], axis=0)
        order: list[int] = np.argsort(-means, kind="stable")[:most].tolist()
        return order


@dataclass(frozen=True)
class CategoryEvaluation:
    """What was measured on one category."""

    documents: int
    """That the native windows are of."""
    windows: int
    native: dict[str, Spread]
    """By scorer."""
    auc: dict[str, dict[str, Auc]]
    """By scorer and kind of foil."""
    spearman: dict[str, dict[str, float | None]]
    """Of two scorers over the native windows; None where one is constant."""
    heads: HeadsEvaluation
    stability: dict[str, Agreement]
    """By variant of the scorer."""
    pairs: list[Pair]
    """Of scores, the best first."""
    deeper_heads: dict[str, HeadsEvaluation] = field(default_factory=dict)
    """Of the layers of each score of kind attention, by its name."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What decides the numbers."""

    model: str
    causal_model: str | None
    window: int
    min_distance: int
    alpha: float
    dtype: str
    held_out: float | None
    seed: int
    sources: list[str]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What `la.evaluate` gives: `.categories["book"].auc["LDS"]["splice 4"].auc` and the like."""

    settings: EvaluationSettings
    uniform_ds: float
    """DS of uniform attention."""
    costs: dict[str, float]
    """Seconds a window of each further score of the config."""
    categories: dict[str, CategoryEvaluation]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `evaluation.json` holds them."""
        told: dict[str, Any] = orjson.loads(self.to_json())
        return told

    def to_json(self) -> bytes:
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)

    def __repr__(self) -> str:
        """A line a category and scorer: AUC against each kind of foil."""
        lines = [f"Evaluation of {self.settings.model}: AUC of native windows against foils"]
        for name, category in self.categories.items():
            lines.append(
                f"{name}: {counted(category.documents, 'document')}, {counted(category.windows, 'window')}"
            )
            for scorer, cells in category.auc.items():
                values = ", ".join(f"{kind} {cell}" for kind, cell in cells.items())
                lines.append(f"  {LABELS.get(scorer, scorer)}: {values}")
        return "\n".join(lines)
