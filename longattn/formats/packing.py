"""Short documents into windows, none cut: best-fit decreasing.

The longest first, each into the window with the least room that still holds it, or into a new one
(Ding et al., "Fewer Truncations Improve Language Modeling", 2024). A list that is kept sorted finds it
in logarithmic time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def best_fit(lengths: Sequence[int] | NDArray[np.integer], capacity: int) -> NDArray[np.int64]:
    """(n,) the bin of each length, 0, 1, ... in order of when a bin was opened.

    Of equal lengths the earlier goes first, of bins with equal room the one opened first.

    Raises:
        ValueError: a length that no bin holds.
    """
    lengths_n = np.asarray(lengths, np.int64)
    if len(lengths_n) and not 0 < lengths_n.min() <= lengths_n.max() <= capacity:
        raise ValueError(f"lengths {lengths_n.min()} to {lengths_n.max()}: 1 to {capacity} fit")
    bins_n = np.empty(len(lengths_n), np.int64)
    room: list[tuple[int, int]] = []  # of each bin that is not full, and its number
    opened = 0
    for i in np.argsort(-lengths_n, kind="stable").tolist():
        length = int(lengths_n[i])
        at = bisect_left(room, (length, -1))
        if at < len(room):
            left, bin_ = room.pop(at)
        else:
            left, bin_, opened = capacity, opened, opened + 1
        bins_n[i] = bin_
        if left > length:
            insort(room, (left - length, bin_))
    return bins_n
