"""Tell what the runs say: the noise floor, each arm against random with intervals, tables and plots.

    python tell.py RESULTS PAGE.md [--plots FOLDER]

Arm minus random, paired by held-out document. Intervals of 95 % by a bootstrap over documents and seeds
together: documents are drawn within their category, seeds of the arm and of random each anew; beside
it, whole repositories in place of documents, which are not independent within one. p-values (two-sided)
are of the same bootstrap; Holm's correction is over the arms, for the primary measure. The noise floor
is the spread of random over its own seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 10_000


def late_loss(run: dict[str, Any]) -> Floats:
    """Loss from half the window on."""
    late: Floats = np.array(run["loss_by_position"])[:, -2:].mean(1)
    return late


def early_loss(run: dict[str, Any]) -> Floats:
    """Loss below an eighth of the window (1024 of 8192)."""
    bounds, losses = run["position_bounds"], np.array(run["loss_by_position"])
    widths = np.diff(bounds)
    first = [i for i, end in enumerate(bounds[1:]) if end <= bounds[-1] // 8]
    early: Floats = (losses[:, first] * widths[first]).sum(1) / widths[first].sum()
    return early


def copying(run: dict[str, Any]) -> Floats:
    """Margin of a copy, mean over the distances, for the documents used for copying."""
    margin: Floats = np.array(run["copy_margin"]).mean(1)
    return margin


MEASURES: dict[str, Callable[[dict[str, Any]], Floats]] = {
    "far gain": lambda run: np.array(run["far_gain"]),
    "loss of late positions": late_loss,
    "loss of early positions": early_loss,
    "copy margin": copying,
}


@dataclass(frozen=True)
class Difference:
    """Arm minus random of one measure: mean, interval, two-sided p."""

    mean: float
    low: float
    high: float
    p: float
    by_seed: list[float]

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


class Results:
    """All runs, and the measures of each as (seeds, documents)."""

    def __init__(self, folder: Path) -> None:
        runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        self.arms: dict[str, list[dict[str, Any]]] = {}
        for run in sorted(runs, key=lambda run: run["seed"]):
            self.arms.setdefault(run["arm"], []).append(run)
        documents = {tuple(run["document"]) for run in runs}
        if len(documents) != 1 or "random" not in self.arms:
            raise ValueError(f"{folder}: runs of the same held-out documents, with random, needed")
        first = runs[0]
        self.category = np.array(first["category"])
        self.copied = np.array(first["copied"])
        self.names = {name: np.array(first[name]) for name in ("document", "repository")}
        self.others = [arm for arm in self.arms if arm not in ("random", "base")]

    def values(self, arm: str, measure: str) -> Floats:
        return np.stack([MEASURES[measure](run) for run in self.arms[arm]])

    def difference(
        self, arm: str, measure: str, category: str | None = None, units: str = "document"
    ) -> Difference:
        """Arm minus random; `units` that are drawn anew: "document" or "repository"."""
        at = self.copied if measure == "copy margin" else np.arange(len(self.category))
        keep = np.ones(len(at), bool) if category is None else self.category[at] == category
        ours, random = (self.values(name, measure)[:, keep] for name in (arm, "random"))
        rng, at = np.random.default_rng(0), at[keep]
        weights = np.zeros((DRAWS, len(at)))
        for name in sorted(set(self.category[at].tolist())):
            places = np.flatnonzero(self.category[at] == name)
            _, unit = np.unique(self.names[units][at[places]], return_inverse=True)
            drawn = rng.multinomial(
                unit.max() + 1, np.full(unit.max() + 1, 1 / (unit.max() + 1)), DRAWS
            )
            times = drawn[:, unit].astype(float)
            weights[:, places] = times * len(places) / times.sum(1, keepdims=True)
        a, b = (
            rng.multinomial(len(of), np.full(len(of), 1 / len(of)), DRAWS) / len(of) @ of
            for of in (ours, random)
        )
        draws = ((a - b) * weights).mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        side = min((draws <= 0).mean(), (draws >= 0).mean())
        by_seed = (ours.mean(1) - random.mean()).tolist()
        p = min(1.0, 2 * max(float(side), 1 / DRAWS))
        return Difference(float(ours.mean() - random.mean()), float(low), float(high), p, by_seed)


def holm(p: dict[str, float]) -> dict[str, float]:
    """Adjusted p-values."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for i, (name, value) in enumerate(sorted(p.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, value * (len(p) - i)))
        adjusted[name] = highest
    return adjusted


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def noise_floor(results: Results) -> str:
    """Seeds of random: each one's mean, and their standard deviation."""
    rows = []
    for measure in MEASURES:
        seeds = results.values("random", measure).mean(1)
        spread = f"{seeds.std(ddof=1):.5f}" if len(seeds) > 1 else "one seed"
        largest = f"{np.ptp(seeds):.5f}"
        base = f"{results.values('base', measure).mean():.4f}" if "base" in results.arms else ""
        rows.append(
            [
                measure,
                base,
                f"{seeds.mean():.4f}",
                ", ".join(f"{x:.4f}" for x in seeds),
                spread,
                largest,
            ]
        )
    return table(
        ["measure", "before training", "random", "its seeds", "deviation", "largest difference"],
        rows,
    )


def page(results: Results) -> str:
    differences = {
        measure: {arm: results.difference(arm, measure) for arm in results.others}
        for measure in MEASURES
    }
    adjusted = holm({arm: d.p for arm, d in differences["far gain"].items()})
    parts = ["## Noise floor", noise_floor(results), "## Arms minus random, all held-out documents"]
    rows = []
    for arm in results.others:
        runs = results.arms[arm]
        rows.append(
            [arm, str(len(runs))]
            + [str(differences[measure][arm]) for measure in MEASURES]
            + [f"{differences['far gain'][arm].p:.4f}", f"{adjusted[arm]:.4f}"]
        )
    parts.append(table(["arm", "seeds", *MEASURES, "p (far gain)", "Holm"], rows))
    parts.append("Far gain, whole repositories drawn in place of documents:")
    by_repository = {
        a: results.difference(a, "far gain", units="repository") for a in results.others
    }
    again = holm({arm: d.p for arm, d in by_repository.items()})
    rows = [[arm, str(d), f"{d.p:.4f}", f"{again[arm]:.4f}"] for arm, d in by_repository.items()]
    parts.append(table(["arm", "far gain", "p", "Holm"], rows))
    parts.append("Far gain of each seed minus the mean of random's seeds:")
    parts.append(
        table(
            ["arm", "seeds"],
            [
                [arm, ", ".join(f"{x:+.4f}" for x in of)]
                for arm, of in [
                    (
                        "random",
                        (
                            results.values("random", "far gain").mean(1)
                            - results.values("random", "far gain").mean()
                        ).tolist(),
                    ),
                    *((arm, differences["far gain"][arm].by_seed) for arm in results.others),
                ]
            ],
        )
    )
    names = sorted(set(results.category.tolist()))
    for measure in ("far gain", "loss of late positions"):
        parts.append(f"## By category: {measure}, arm minus random")
        first = ["random itself"]
        for name in names:
            first.append(
                f"{results.values('random', measure)[:, results.category == name].mean():.4f}"
            )
        rows = [first] + [
            [arm, *(str(results.difference(arm, measure, name)) for name in names)]
            for arm in results.others
        ]
        parts.append(table(["arm", *names], rows))
    bounds = next(iter(results.arms["random"]))["position_bounds"]
    parts.append("## Loss by position, arm minus random")
    rows = []
    for arm in results.others:
        both = [
            np.mean([np.mean(run["loss_by_position"], 0) for run in results.arms[name]], 0)
            for name in (arm, "random")
        ]
        rows.append([arm, *(f"{x:+.4f}" for x in both[0] - both[1])])
    parts.append(table(["arm", *(f"{a} to {b - 1}" for a, b in pairwise(bounds))], rows))
    distances = results.arms["random"][0]["copy_distances"]
    parts.append("## Copying a foreign passage: nats a token that an earlier copy saves")
    rows = [
        [arm, *(f"{x:.3f}" for x in np.mean([np.mean(r["copy_margin"], 0) for r in runs], 0))]
        for arm, runs in results.arms.items()
    ]
    parts.append(table(["arm", *(f"{d} back" for d in distances)], rows))
    parts.append("## What each arm drew from, and cost")
    rows = []
    for arm, runs in results.arms.items():
        if arm != "base":
            rows.append(
                [arm, f"{runs[0]['trained_tokens'] / 1e6:.1f} M"]
                + [", ".join(str(run[k]) for run in runs) for k in ("documents", "repositories")]
                + [
                    ", ".join(f"{run['tokens_a_second'] / 1e3:.0f}" for run in runs),
                    f"{np.mean([np.mean(run['train_loss'][-10:]) for run in runs]):.4f}",
                ]
            )
    parts.append(
        table(
            [
                "arm",
                "tokens",
                "documents",
                "repositories",
                "k tokens/s",
                "training loss at the end",
            ],
            rows,
        )
    )
    return "\n\n".join(parts) + "\n"


def plots(results: Results, folder: Path) -> None:
    """far_gain.svg: each seed's difference and the interval; positions.svg: loss by position."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "longattn"  # the same file each time
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.5 * len(results.others) + 1.5))
    random = results.values("random", "far gain").mean(1)
    axes.axvspan(*(np.array([random.min(), random.max()]) - random.mean()), color="0.85")
    for y, arm in enumerate(results.others):
        d = results.difference(arm, "far gain")
        axes.plot([d.low, d.high], [y, y], color="C0")
        axes.plot(d.by_seed, [y] * len(d.by_seed), "o", color="C0", markersize=4)
    axes.set_yticks(range(len(results.others)), results.others)
    axes.axvline(0, color="0.5")
    axes.set_xlabel("far gain minus random's, nats a token (grey: random's own seeds)")
    figure.tight_layout()
    figure.savefig(folder / "far_gain.svg", metadata={"Date": None})
    figure, axes = plt.subplots(figsize=(7, 4))
    bounds = np.array(results.arms["random"][0]["position_bounds"])
    middle = np.sqrt(bounds[:-1] * bounds[1:])
    base = np.mean([np.mean(run["loss_by_position"], 0) for run in results.arms["random"]], 0)
    for arm in results.others:
        losses = np.mean([np.mean(run["loss_by_position"], 0) for run in results.arms[arm]], 0)
        axes.plot(middle, losses - base, "o-", label=arm, markersize=3)
    axes.axhline(0, color="0.5")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position")
    axes.set_ylabel("loss minus random's, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "positions.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--plots", type=Path)
    given = parser.parse_args()
    results = Results(given.results)
    given.page.write_text(page(results))
    if given.plots:
        plots(results, given.plots)


if __name__ == "__main__":
    main()
