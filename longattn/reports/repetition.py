"""Whether a selection favours text that repeats itself, which attention cannot tell from good text.

A licence header, a table or one passage over and over is read from afar, too, and scores high. The
share of token pairs that occurred far before (`recurrence_pairs`) of the kept windows against the
dropped ones says how far that went.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of a kept and a dropped window, how often the kept one repeats more: 0.5 is chance. Half kept of the
# samples of this package in windows of 512 tokens: 0.57 (books), 0.83 (C), 0.93 (Python).
FAVOURED = 0.8
DIFFERENCE = 0.05  # of the means, below which it matters to nobody
REPEATED = 0.8  # of a window's far token pairs: little in it is new. 5 of those 1092 windows
MANY_REPEATED = 0.05  # of the kept windows
FEW = 10  # windows on either side, below which nothing is warned of


@dataclass(frozen=True)
class Repetition:
    """Far recurrence of token pairs of one category, from 0 to 1.

    Attributes:
        kept, dropped: mean over the windows; None where there is none.
        favoured: share of pairs of a kept and a dropped window in which the kept one repeats more.
        repeated: kept windows of which REPEATED of the token pairs or more occurred far before.
        windows: kept ones.
        favours: whether `favoured` is high, on enough windows to say so.
    """

    kept: float | None
    dropped: float | None
    favoured: float | None
    repeated: int
    windows: int
    favours: bool

    @property
    def warned(self) -> bool:
        """Whether a person should look at what was kept."""
        many = self.windows >= FEW and self.repeated >= MANY_REPEATED * self.windows
        return self.favours or many

    @classmethod
    def of(cls, pairs: NDArray[np.float64], kept: NDArray[np.bool_]) -> Repetition | None:
        """Of the windows of a category; None where their recurrence was not stored.

        Args:
            pairs: (n,) `recurrence_pairs`, NaN where none is stored.
            kept: (n,) which windows were kept.
        """
        if not len(pairs) or np.isnan(pairs).any():
            return None
        a, b = pairs[kept], np.sort(pairs[~kept])
        favoured = None
        if len(a) and len(b):
            below, upto = (np.searchsorted(b, a, side) for side in ("left", "right"))
            favoured = float((below + upto).sum() / (2 * len(a) * len(b)))
        favours = (
            min(len(a), len(b)) >= FEW
            and favoured is not None
            and favoured >= FAVOURED
            and a.mean() - b.mean() >= DIFFERENCE
        )
        return cls(
            float(a.mean()) if len(a) else None,
            float(b.mean()) if len(b) else None,
            favoured,
            int((a >= REPEATED).sum()),
            len(a),
            bool(favours),
        )
