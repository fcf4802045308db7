"""Which attention head tells a document from a splice, chosen on some documents and judged on others.

The paper's score is the mean over heads, in which one head that matches equal tokens far away can be
buried under others that look nearby. Scores of every head are stored, so a head is chosen without
scoring again: native windows are set against foils (splices of several documents, say) in two halves
of the documents. The best head of each half is judged on the other; only where both halves name the
same head, and it beats the mean over heads on both, is it taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longattn.selection.auc import Floats, auc

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HeadScores:
    """Scores of some windows by every head.

    Attributes:
        ds, variance: (windows, heads) float64. Heads of several layers lie side by side.
        document: (windows,) integers that tell documents apart; a splice has one of its own.
    """

    ds: Floats
    variance: Floats
    document: Ints

    def __post_init__(self) -> None:
        shapes = self.ds.shape, self.variance.shape, self.document.shape
        if self.ds.ndim != 2 or shapes != (self.ds.shape, self.ds.shape, self.ds.shape[:1]):
            raise ValueError(
                f"ds {shapes[0]}, variance {shapes[1]}, document {shapes[2]}: allowed: (windows, "
                "heads) twice and (windows,)"
            )


@dataclass(frozen=True)
class Half:
    """Windows of one half of the documents, and foils that were made of documents of that half alone.

    Attributes:
        native: the windows as they are.
        foils: kind of foil -> its windows. A foil with the very `document` of the native windows is
            made of them, one for one.
    """

    native: HeadScores
    foils: Mapping[str, HeadScores]


@dataclass(frozen=True)
class Judgement:
    """What one half chose, and what the other half says of it.

    Attributes:
        head: of the highest AUC, meant over kinds of foils, on the half that chose.
        auc: kind of foil -> AUC of that head on the other half, low and high end of its 95% interval.
        mean_auc: the same of the mean over heads, which is the paper's score.
    """

    head: int
    auc: dict[str, tuple[float, float, float]]
    mean_auc: dict[str, tuple[float, float, float]]

    @property
    def gain(self) -> float:
        """AUC of the head over that of the mean of heads, meant over kinds of foils."""
        return float(np.mean([self.auc[kind][0] - self.mean_auc[kind][0] for kind in self.auc]))

    @property
    def low(self) -> float:
        """The low end of the head's AUC, meant over kinds of foils."""
        return float(np.mean([low for _, low, _ in self.auc.values()]))


@dataclass(frozen=True)
class HeadChoice:
    """The head to score by, or None: the mean over all.

    Attributes:
        head: column of the arrays.
        why: a sentence for people.
        judgements: of the first half's choice on the second, and the other way round; none where
            there was nothing to choose from.
    """

    head: int | None
    why: str
    judgements: tuple[Judgement, ...]


def halves_of(documents: Sequence[int], seed: int = 0) -> tuple[set[int], set[int]]:
    """Documents drawn into two halves, the first larger by at most one; in any order the same ones.

    Make foils of each half from its own documents, so that the half that judges saw none that chose.
    """
    names = np.unique(np.asarray(documents, np.int64))
    order = np.random.default_rng(seed).permutation(len(names))
    middle = (len(names) + 1) // 2
    return set(names[order[:middle]].tolist()), set(names[order[middle:]].tolist())


def choose_head(
    first: Half,
    second: Half,
    *,
    alpha: float,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> HeadChoice:
    """Choose a head on each half, judge it on the other, and take it where both agree.

    It is taken where, on the half that did not choose it, it tells windows from foils better than
    chance (the low end of the interval) and better than the mean over heads.

    Args:
        first, second: see `halves_of`; the same kinds of foils and the same heads.
        alpha: weight of -variance in LDS, standardised by the native windows of a half.
        seed: of the bootstrap behind the intervals.
        names: of the heads, for people; `head 3` and the like by default.

    Raises:
        ValueError: a half without windows or foils, or halves of other heads or foils.
    """
    if first.foils.keys() != second.foils.keys() or not first.foils:
        raise ValueError(
            f"foils {sorted(first.foils)} and {sorted(second.foils)}: allowed: the same ones in "
            "both halves, at least one"
        )
    parts = [part for half in (first, second) for part in (half.native, *half.foils.values())]
    if len({part.ds.shape[1] for part in parts}) > 1 or not all(len(part.ds) for part in parts):
        raise ValueError(
            f"windows by heads {sorted({p.ds.shape for p in parts})}: allowed: one number of "
            "heads, some windows of each kind"
        )
    rng = np.random.default_rng(seed)
    judgements = (_judged(first, second, alpha, rng), _judged(second, first, alpha, rng))
    head, other = (judgement.head for judgement in judgements)
    one, two = (names[of] if names else f"head {of}" for of in (head, other))
    if head != other:
        why = f"one half of the documents chose {one}, the other {two}: all heads are taken"
        return HeadChoice(None, why, judgements)
    if min(judgement.gain for judgement in judgements) <= 0:
        why = (
            f"both halves chose {one}, which is no better on unseen documents than the mean over "
            "heads: all heads are taken"
        )
        return HeadChoice(None, why, judgements)
    if (low := min(judgement.low for judgement in judgements)) <= 0.5:
        why = (
            f"both halves chose {one}, which may tell unseen documents by chance (AUC from {low:.2f}): "
            "all heads are taken"
        )
        return HeadChoice(None, why, judgements)
    return HeadChoice(head, f"both halves of the documents chose {one}", judgements)


def mean_of_heads(scores_nh: Floats, heads: Sequence[int] | None) -> Floats:
    """Scores of the chosen heads, (windows,): their mean; None takes all of them.

    Heads are added up in the order given, so that a mean depends on its own window alone.

    Raises:
        ValueError: a head that is not there.
    """
    width = scores_nh.shape[1]
    chosen = list(range(width) if heads is None else heads)
    if not chosen or not all(0 <= head < width for head in chosen):
        raise ValueError(f"heads {chosen}: allowed: 0 to {width - 1}, at least one")
    total = scores_nh[:, chosen[0]].astype(np.float64)
    for head in chosen[1:]:
        total += scores_nh[:, head]
    return np.asarray(total / len(chosen))


def head_aucs(half: Half, alpha: float) -> dict[str, Floats]:
    """Kind of foil -> AUC of each head's LDS, (heads,), without intervals."""
    native_nh = lds_of_heads(half.native, half.native, alpha)
    return {
        kind: _wins(native_nh, lds_of_heads(foil, half.native, alpha))
        for kind, foil in half.foils.items()
    }


def lds_of_heads(scores: HeadScores, by: HeadScores, alpha: float) -> Floats:
    """LDS (Eq. 8) of each head, (windows, heads), standardised by the windows of `by`."""

    def standard(x: Floats, of: Floats) -> Floats:
        deviation = of.std(0)
        return np.asarray((x - of.mean(0)) / np.where(deviation > 0, deviation, 1))

    return standard(scores.ds, by.ds) - alpha * standard(scores.variance, by.variance)


def _wins(native_nh: Floats, foil_mh: Floats) -> Floats:
    """Share of pairs in which the native window scores higher, ties half, for each head."""
    columns = []
    for native_n, foil_m in zip(native_nh.T, foil_mh.T, strict=True):
        ordered = np.sort(foil_m)
        below = np.searchsorted(ordered, native_n, "left") + np.searchsorted(
            ordered, native_n, "right"
        )
        columns.append(below.mean() / (2 * len(foil_m)))
    return np.array(columns)


def _judged(chosen_on: Half, judged_on: Half, alpha: float, rng: np.random.Generator) -> Judgement:
    head = int(np.argmax(np.mean(list(head_aucs(chosen_on, alpha).values()), axis=0)))
    return Judgement(
        head,
        _with_intervals(judged_on, [head], alpha, rng),
        _with_intervals(judged_on, None, alpha, rng),
    )


def _with_intervals(
    half: Half, heads: Sequence[int] | None, alpha: float, rng: np.random.Generator
) -> dict[str, tuple[float, float, float]]:
    def means(scores: HeadScores) -> HeadScores:
        ds, variance = (mean_of_heads(x, heads)[:, None] for x in (scores.ds, scores.variance))
        return HeadScores(ds, variance, scores.document)

    native = means(half.native)
    native_n = lds_of_heads(native, native, alpha)[:, 0]
    return {
        kind: auc(
            native_n,
            lds_of_heads(means(foil), native, alpha)[:, 0],
            native.document,
            foil.document,
            rng,
            together=foil.document is half.native.document,
        )
        for kind, foil in half.foils.items()
    }
