"""How well a score tells two kinds of windows apart, with an interval over documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 1000  # bootstrap samples behind an interval


def auc(
    native_n: Floats,
    foil_m: Floats,
    native_group_n: NDArray[np.int64],
    foil_group_m: NDArray[np.int64],
    rng: np.random.Generator,
    *,
    together: bool,
) -> tuple[float, float, float]:
    """Share of pairs in which the native window scores higher (ties half), and its 95% interval.

    Windows of one document are no independent evidence: the bootstrap draws documents, and takes
    all windows of each. Foils made of the native windows are drawn with them (`together`). A splice
    is drawn alone, though others share its documents: there the interval is somewhat too narrow.
    """
    wins_nm = (native_n[:, None] > foil_m) + 0.5 * (native_n[:, None] == foil_m)
    w_bn = _bootstrap(native_group_n, rng)
    v_bm = w_bn if together else _bootstrap(foil_group_m, rng)
    values_b = ((w_bn @ wins_nm) * v_bm).sum(1) / (w_bn.sum(1) * v_bm.sum(1))
    low, high = np.quantile(values_b, [0.025, 0.975])
    return float(wins_nm.mean()), float(low), float(high)


def _bootstrap(group_n: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """How often each window is drawn, (DRAWS, n)."""
    groups, of_n = np.unique(group_n, return_inverse=True)
    share = np.full(len(groups), 1 / len(groups))
    return rng.multinomial(len(groups), share, size=DRAWS)[:, of_n].astype(float)
