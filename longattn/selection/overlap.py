"""Windows of one document that share tokens: what they are worth together, and what they hold.

Algorithm 1 lets the front, middle and back windows of a document overlap. `prefer_distinct` buys
windows best first, each at its LDS less a penalty for what is already bought: the share of its tokens
that bought windows of its document hold, times the deviation of LDS over the category. So a token is
not bought twice while a distinct window is left that is as good, or worse by less than that share of
a deviation. Penalties stay within a document, hence the order is that of one value a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def distinct_scores(
    lds: Floats, document: ArrayLike, start: Ints, stop: Ints, deviation: float
) -> Floats:
    """LDS of each window when it is bought, best first, less the penalty for tokens held already.

    Args:
        lds: (n,) in order of data_id, which breaks ties.
        document: (n,) what tells documents apart: integers or strings.
        start, stop: (n,) tokens of the document, stop excluded.
        deviation: of LDS over the category; what a window loses that holds nothing new.

    Returns:
        (n,) at most `lds`; equal where no other window of the document shares tokens.
    """
    worth = lds.copy()
    order, low, high = _laid_out(document, start, stop)
    heads = np.flatnonzero(low >= np.concatenate([[-1], np.maximum.accumulate(high)[:-1]]))
    sizes = np.diff(heads, append=len(order))
    pairs = heads[sizes == 2]  # front and back, nearly all there are: a million in a second
    a, b = np.sort([order[pairs], order[pairs + 1]], axis=0)
    second = np.where(lds[a] >= lds[b], b, a)
    shared = np.minimum(stop[a], stop[b]) - np.maximum(start[a], start[b])
    worth[second] -= deviation * shared / (stop - start)[second]
    for head, size in zip(heads[sizes > 2], sizes[sizes > 2], strict=True):
        waiting = sorted(order[head : head + size].tolist())
        bought: list[int] = []
        while waiting:
            shares = [_shared(i, bought, start, stop) for i in waiting]
            value = [lds[i] - deviation * s for i, s in zip(waiting, shares, strict=True)]
            best = int(np.argmax(value))  # of equal ones the first
            worth[waiting[best]] = value[best]
            bought.append(waiting.pop(best))
    return worth


def unique_tokens(document: ArrayLike, start: Ints, stop: Ints) -> int:
    """Tokens in the windows, each token of a document counted once."""
    _, low, high = _laid_out(document, start, stop)
    return _union(low, high)


def _laid_out(document: ArrayLike, start: Ints, stop: Ints) -> tuple[Ints, Ints, Ints]:
    """The order by document and start, and spans in that order with documents one after another."""
    _, of = np.unique(document, return_inverse=True)
    order = np.lexsort((start, of))
    place = of[order] * (int(stop.max(initial=0)) + 1)
    return order, place + start[order], place + stop[order]


def _shared(i: int, bought: Sequence[int], start: Ints, stop: Ints) -> float:
    """Share of the tokens of window i that are in windows already bought."""
    low = np.clip(start[bought], start[i], stop[i])
    high = np.clip(stop[bought], start[i], stop[i])
    by_start = np.argsort(low, kind="stable")
    return _union(low[by_start], high[by_start]) / int(stop[i] - start[i])


def _union(start: Ints, stop: Ints) -> int:
    """Places in any of the spans, which are in order of start."""
    reach = np.concatenate([[-1], np.maximum.accumulate(stop)[:-1]])
    return int(np.maximum(0, stop - np.maximum(start, reach)).sum())
