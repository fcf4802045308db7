"""Which windows an arm trains on: by category, from the scores of the pool alone, and a seed.

An arm names candidates among the windows of each category; a seed draws as many of them as the
category's share of the tokens, and the order of all. So arms differ in what may be drawn, and seeds in
what is drawn and when.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from longattn.selection.lds import long_distance_scores

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
CORE = ["random", "lds_top", "lds_bottom", "compression", "loss_gap"]
FURTHER = ["pairs_top", "loss_gap_in_band"]


def top(score: Floats, of: NDArray[np.bool_], share: float = 0.25) -> NDArray[np.bool_]:
    """The highest share of all windows, among those of `of`."""
    order = np.argsort(np.where(of, -score, np.inf), kind="stable")
    chosen = np.zeros(len(score), bool)
    chosen[order[: int(share * len(score))]] = True
    return chosen & of


def candidates(arm: str, scores: dict[str, Floats]) -> NDArray[np.bool_]:
    """Of the windows of one category, which an arm may draw."""
    everything = np.ones(len(scores["ds"]), bool)
    if arm == "random":
        return everything
    lds = long_distance_scores(scores["ds"], scores["variance"], 0.5)
    low, high = np.quantile(scores["compression_ratio"], [0.2, 0.8])
    band = (scores["compression_ratio"] >= low) & (scores["compression_ratio"] <= high)
    if arm == "compression":
        return band
    score, of = {
        "lds_top": (lds, everything),
        "lds_bottom": (-lds, everything),
        "pairs_top": (scores["recurrence_pairs"], everything),
        "loss_gap": (scores["loss_gap"], everything),
        "loss_gap_in_band": (scores["loss_gap"], band),
    }[arm]
    return top(score, of)


def draw(
    arm: str, seed: int, category: NDArray[np.str_], scores: dict[str, Floats], windows: int
) -> Rows:
    """Rows in the order of training, of the category's shares of the pool; fewer where a quarter of
    the pool is fewer than `windows`, the same number for every arm."""
    windows = min(windows, int(0.25 * len(category)))
    drawn = []
    for name in sorted(set(category.tolist())):
        rows = np.flatnonzero(category == name)
        number = int(windows * len(rows) / len(category))
        of = rows[candidates(arm, {k: v[rows] for k, v in scores.items()})]
        rng = np.random.default_rng([seed, crc32(name.encode())])
        drawn.append(rng.permutation(of)[:number])
    order: Rows = np.random.default_rng([seed, 1]).permutation(np.concatenate(drawn))
    return order
