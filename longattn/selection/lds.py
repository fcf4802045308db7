"""LDS of windows (Eq. 8 of the paper): standardised DS and DU of one category, added up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Standardize = Literal["zscore", "minmax"]


def long_distance_scores(
    ds: ArrayLike, variance: ArrayLike, alpha: float = 0.5, standardize: Standardize = "zscore"
) -> Floats:
    """LDS of the windows of one category (Eq. 8): standardised DS + alpha * standardised DU.

    DU = -variance. `zscore` uses the population deviation, as the windows are all there are;
    `minmax` scales to 0..1, as the authors' code does. A constant column counts as all zero.

    Args:
        ds, variance: (n,) floats.
        alpha: weight of DU.

    Returns:
        (n,) float64.

    Raises:
        ValueError: not one-dimensional, of different lengths, not finite, or `standardize` unknown.
    """
    ds = np.asarray(ds, dtype=np.float64)
    du = -np.asarray(variance, dtype=np.float64)
    if ds.ndim != 1 or ds.shape != du.shape:
        raise ValueError(
            f"ds {ds.shape} and variance {du.shape}: two 1-D arrays of one length wanted"
        )
    if not (np.isfinite(ds).all() and np.isfinite(du).all()):
        raise ValueError("ds and variance must be finite")
    if standardize not in ("zscore", "minmax"):
        raise ValueError(f"standardize {standardize!r}: zscore or minmax is allowed")
    of_ds, of_du = (Scale.of_column(x, standardize) for x in (ds, du))
    return of_ds(ds) + alpha * of_du(du)


def moments(x: Floats) -> tuple[float, float]:
    """Mean and population deviation, each sum exactly rounded, so independent of order."""
    if not len(x):
        return math.nan, math.nan
    mean = math.fsum(x.tolist()) / len(x)
    return mean, math.sqrt(math.fsum(((x - mean) ** 2).tolist()) / len(x))


@dataclass(frozen=True)
class Scale:
    """(x - origin) / unit; a constant column counts as all zero."""

    origin: float
    unit: float

    @classmethod
    def of(
        cls, mean: float, deviation: float, extremes: tuple[float, float], standardize: Standardize
    ) -> Scale:
        low, high = extremes
        if low >= high:  # a rounded mean would give a deviation above zero
            return cls(0, 0)
        if standardize == "zscore":
            return cls(mean, deviation)
        return cls(low, high - low)

    @classmethod
    def of_column(cls, x: Floats, standardize: Standardize) -> Scale:
        extremes = float(x.min(initial=np.inf)), float(x.max(initial=-np.inf))
        return cls.of(*moments(x), extremes, standardize)

    def __call__(self, x: Floats) -> Floats:
        return (x - self.origin) / self.unit if self.unit else np.zeros_like(x)
