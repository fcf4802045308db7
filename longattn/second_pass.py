"""The second pass: exact scores for the windows near a threshold, of windows scored by a stride of rows.

With `scorer.query_stride` DS and V are estimates. To select what exact scores would select, few
windows need exact ones: those whose estimate is near the threshold, and some drawn by a hash of their
ids. From the drawn ones, and the estimates of all, come mean and deviation of DS and DU over all, which
LDS is standardised with, and a linear fit of LDS to the estimates. What the fit leaves over is normal
and as wide for every window (kurtosis 3.0 to 3.3 over 1000 windows of books and code, strides 2 to 16),
so the chance that an estimated window is on the wrong side of the threshold follows from its distance.
The windows nearest to it are scored exactly, until these chances, over all categories, add up to no
more than half of what `select.second_pass` allows; the other half is for a deviation of the fit that
came out too small.

The set is that of exact scores of all windows with LDS standardised by these means and deviations. A
run without a stride standardises by the very ones, so where not all windows were drawn it weighs DU
against DS a little otherwise, and near the threshold selects a few other windows (EXPERIMENTS.md says
how many); no more exact scores near it change that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import Select
from longattn.cuts import Order, find_cuts
from longattn.exact import Bools, Cut, Floats, Ints, keys, spread
from longattn.lds import Scale, Standard, moments
from longattn.partitions import Handle, Place
from longattn.scores import Scores, by_category, ds_du, merged, moments_by_category
from longattn.storage.tables import EXACT

DRAWN = 1024  # windows of a category at least, and
SHARE = 64  # one of so many, and
MOST = 100_000  # at most
BINS = 64  # of one deviation of distance
FAR = 64 * BINS  # bins; beyond them no double tells the chance from zero

_CHANCES = np.array([0.5 * math.erfc(i / BINS / math.sqrt(2)) for i in range(FAR + 1)])


def drawn(ids: pa.StringArray, windows: int) -> Bools:
    """Which of some windows are drawn, of a category that has so many: a hash of the id decides."""
    wanted = min(MOST, max(DRAWN, windows // SHARE))
    return spread(ids, 1 << 30) < (wanted << 30) / max(windows, 1)


@dataclass(frozen=True)
class Fit:
    """LDS of a window, from estimates of its DS and V."""

    standard: Standard
    origin: float
    ds: float
    du: float
    deviation: float
    """Of what the fit leaves over; but for half of the allowed chance it is no larger."""

    @classmethod
    def of(
        cls, scores: Sequence[Floats], whole: Mapping[str, Scale], alpha: float, failure: float
    ) -> Fit:
        """From DS, V, exact DS and exact V of the drawn windows, and the scales of all estimates."""
        ds, variance, exact_ds, exact_variance = scores
        ds_scale = _scale(exact_ds, whole["ds"](ds))
        du_scale = _scale(-exact_variance, whole["du"](-variance))
        standard = Standard(ds_scale, du_scale, alpha)
        lds = standard.lds(exact_ds, exact_variance)
        x, y = standard.ds(ds), standard.du(-variance)
        x_mean, y_mean, mean = (moments(column)[0] for column in (x, y, lds))
        # Least squares one after the other, in sums that are the same on any machine.
        x_off, y_off, off = x - x_mean, y - y_mean, lds - mean
        own = y_off - _slope(x_off, y_off) * x_off
        of_du = _slope(own, off)
        of_ds = _slope(x_off, off - of_du * y_off)
        origin = mean - of_ds * x_mean - of_du * y_mean
        left = lds - (origin + of_ds * x + of_du * y)
        free = max(1, len(ds) - 3)
        # The quantile of chi squared by Wilson and Hilferty: off by a thousandth at 10 degrees.
        low = NormalDist().inv_cdf(failure / 2) * math.sqrt(2 / (9 * free))
        spread_of = free * max(1e-9, 1 - 2 / (9 * free) + low) ** 3
        return cls(standard, origin, of_ds, of_du, math.sqrt(math.fsum(left**2) / spread_of))

    def lds(self, rows: pa.Table) -> Floats:
        """Exact where that is known, else fitted."""
        ds, variance, *exact = _scores(rows)
        return np.where(np.isnan(exact[0]), self(ds, variance), self.standard.lds(*exact))

    def __call__(self, ds: Floats, variance: Floats) -> Floats:
        return self.origin + self.ds * self.standard.ds(ds) + self.du * self.standard.du(-variance)


def _scale(exact: Floats, estimate: Floats) -> Scale:
    """That of exact scores of all windows, from the drawn ones.

    Args:
        exact, estimate: (n,) of the drawn windows; estimates so that those of all windows have mean
            0 and deviation 1, or are 0.

    The regression estimators of two-phase sampling (Cochran, Sampling Techniques, 1977, 12.6): the
    drawn windows tell how exact scores follow the estimates, and all windows how these lie.
    """
    (mean, _), (origin, _) = moments(exact), moments(estimate)
    if exact.min() >= exact.max():
        return Scale(mean, 0.0)
    off, own = exact - mean, estimate - origin
    slope = _slope(own, off)
    left = math.fsum((off - slope * own) ** 2) / len(off)
    return Scale(mean - slope * origin, math.sqrt(slope * slope + left))


def _slope(x: Floats, y: Floats) -> float:
    """Of y to x, both without their means; 0 where x, of standardised values, is constant."""
    square = math.fsum(x * x)
    return math.fsum(x * y) / square if square > 1e-20 * len(x) else 0.0


def distances(value: Floats, low: float, high: float, deviation: float) -> Ints:
    """(n,) how far values are from a threshold between `low` and `high`, in bins of a deviation."""
    if not math.isfinite(high - low):  # all is kept, or none
        return np.full(len(value), FAR)
    off = np.where(value > (low + high) / 2, value - high, low - value)
    if not deviation:
        return np.where(off > 0, FAR, 0)
    return np.clip(np.floor(off / deviation * BINS), 0, FAR).astype(np.int64)


def reach(counts: Sequence[int] | Ints, failure: float) -> int:
    """From which bin on windows may stay estimated, given how many there are in each."""
    chance = np.cumsum((np.asarray(counts) * _CHANCES)[::-1])[::-1]
    return int(np.argmax(np.append(chance, 0.0) <= failure / 2))


@dataclass(frozen=True)
class Looked:
    """What a look at the partitions gave."""

    handles: list[Handle]
    """With the column `lds`: exact where that is known, else fitted."""
    found: dict[tuple[str, str], tuple[float, float]]
    """Mean and deviation of exact `ds` and `du`, by category, as told from the drawn windows."""
    cuts: dict[str, Cut]
    wanted: dict[int, list[int]]
    """Rows of labelled files that want exact scores first; then the rest may be empty."""


def look(place: Place, scores: Scores, settings: Select) -> Looked:
    """Fit LDS in each category, find its threshold, and the windows too near to stay estimated."""
    handles = scores.handles
    failure = (settings.second_pass or 0.0) / max(1, len(scores.categories))
    windows = {category: of.windows for category, of in scores.categories.items()}
    some = merged(place.each((partial(_drawn_rows, windows=windows), h) for h in handles))
    tables = {
        category: pa.concat_tables(pieces).sort_by("data_id") for category, pieces in some.items()
    }
    wanted = [_rows(table.filter(pc.is_nan(table[EXACT[0]]))) for table in tables.values()]
    if any(wanted):
        return Looked([], {}, {}, merged(wanted))
    fits, found = {}, {}
    of_all = moments_by_category(place, handles, ds_du)
    for category, table in tables.items():
        whole = {name: Scale.of(*of_all[category, name], "zscore") for name in ("ds", "du")}
        fit = fits[category] = Fit.of(_scores(table), whole, settings.alpha, failure)
        for name, scale in (("ds", fit.standard.ds), ("du", fit.standard.du)):
            found[category, name] = (scale.origin, scale.unit)
    handles, _ = place.update((partial(_with_lds, fits=fits), handle) for handle in handles)
    order = Order({category: fit.standard for category, fit in fits.items()}, "lds")
    cuts = find_cuts(place, handles, scores, order, settings.keep)
    edges = merged(place.each((partial(_edge, cuts=cuts), handle) for handle in handles))
    near = partial(_distances, edges=edges, fits=fits)
    counts = merged(place.each((partial(_counts, near=near), handle) for handle in handles))
    reaches = {category: reach(of, failure) for category, of in counts.items()}
    rows = place.each((partial(_near, near=near, reaches=reaches), handle) for handle in handles)
    return Looked(handles, found, cuts, merged(rows))


def fitted(rows: pa.Table, settings: Select) -> Floats:
    """LDS of the windows of one category, in order of data_id, in memory: for who checks."""
    ids = rows["data_id"].cast(pa.string()).combine_chunks()
    some = _scores(rows.filter(pa.array(drawn(ids, len(rows)))))
    whole = {name: Scale.of_column(x, "zscore") for name, x in ds_du("", rows).items()}
    return Fit.of(some, whole, settings.alpha, settings.second_pass or 0.0).lds(rows)


def _scores(rows: pa.Table) -> list[Floats]:
    """Estimated DS and V, and the exact ones."""
    return [rows[name].to_numpy() for name in ("ds", "variance", *EXACT)]


# --- on one partition ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edge:
    """The highest LDS that is dropped, and the lowest that is kept."""

    low: float
    high: float

    def __add__(self, other: _Edge) -> _Edge:
        return _Edge(max(self.low, other.low), min(self.high, other.high))


def _drawn_rows(table: pa.Table, windows: Mapping[str, int]) -> dict[str, list[pa.Table]]:
    return {
        category: [rows.filter(pa.array(drawn(rows["data_id"].chunk(0), windows[category])))]
        for category, rows in by_category(table)
    }


def _rows(table: pa.Table) -> dict[int, list[int]]:
    """Rows by labelled file."""
    wanted: dict[int, list[int]] = {}
    for file, row in zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True):
        wanted.setdefault(file, []).append(row)
    return wanted


def _with_lds(table: pa.Table, fits: Mapping[str, Fit]) -> tuple[pa.Table, None]:
    lds = [np.empty(0)]
    lds += [fits[category].lds(rows) for category, rows in by_category(table)]
    return table.append_column("lds", pa.array(np.concatenate(lds))), None


def _edge(table: pa.Table, cuts: Mapping[str, Cut]) -> dict[str, _Edge]:
    found = {}
    for category, rows in by_category(table):
        lds = rows["lds"].to_numpy()
        kept = cuts[category].within(keys(lds), rows["data_id"].chunk(0))
        found[category] = _Edge(
            float(lds[~kept].max(initial=-np.inf)), float(lds[kept].min(initial=np.inf))
        )
    return found


def _distances(
    category: str, rows: pa.Table, edges: Mapping[str, _Edge], fits: Mapping[str, Fit]
) -> Ints:
    """Bins of the windows that are estimated; -1 for those that are not."""
    edge, deviation = edges[category], fits[category].deviation
    bins = distances(rows["lds"].to_numpy(), edge.low, edge.high, deviation)
    return np.where(np.isnan(rows[EXACT[0]].to_numpy()), bins, -1)


def _counts(table: pa.Table, near: partial[Ints]) -> dict[str, Ints]:
    return {
        category: np.bincount(near(category, rows) + 1, minlength=FAR + 2)[1:]
        for category, rows in by_category(table)
    }


def _near(table: pa.Table, near: partial[Ints], reaches: Mapping[str, int]) -> dict[int, list[int]]:
    found = []
    for category, rows in by_category(table):
        bins = near(category, rows)
        found.append(_rows(rows.filter(pa.array((bins >= 0) & (bins < reaches[category])))))
    return merged(found)
