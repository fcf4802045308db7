"""The passages of a window that read each other from afar, chosen and told as text.

Every text attends less and less the farther back it looks, so that the pairs at the minimum distance
have most far attention in any window. A pair is worth reading where it has much more than the other
pairs that are as far apart, and more than attention spread evenly over the past would give.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longattn.windows.tokenizer import DocumentTokenizer

Floats = NDArray[np.float64]

PAIRS = 8
MARKED = 8  # one token in so many is marked in a passage, at most
OVER_UNIFORM = 1.5  # times uniform attention, that a pair stands out
OVER_USUAL = 2.0  # times the median of pairs as far apart
PEERS = 12  # pairs about as far apart that the median is of, at least


@dataclass(frozen=True)
class Passage:
    """Some tokens in a row, as text; the tokens that the attention is about are marked."""

    start: int
    stop: int
    segments: list[tuple[str, bool]]


@dataclass(frozen=True)
class Pair:
    """A passage, and one far before it that it attends to far more than others so far apart do."""

    reader: Passage
    read: Passage
    times: float
    """Its attention over that of uniform attention."""
    usual: float
    """The median of `times` over the pairs about as far apart."""


@dataclass(frozen=True)
class Place:
    """A pair of passages by their numbers; `times` and `usual` as of a `Pair`."""

    q: int
    k: int
    times: float
    usual: float


def usual_times(times_qk: Floats) -> Floats:
    """For each pair the median of `times_qk` over the pairs as far apart, or about so where few are.

    Args:
        times_qk: (n, n) multiples of uniform attention; NaN where nothing is far.
    """
    n = len(times_qk)
    usual_qk = np.full_like(times_qk, np.nan)
    far = [np.diagonal(times_qk, -d) for d in range(n)]
    far = [of[~np.isnan(of)] for of in far]
    for d in range(n):
        if not len(far[d]):
            continue
        reach = 0
        peers = far[d]
        while len(peers) < PEERS and reach < n:
            reach += 1
            peers = np.concatenate(far[max(0, d - reach) : d + reach + 1])
        rows = np.arange(d, n)
        usual_qk[rows, rows - d] = np.median(peers)
    return usual_qk


def standing_out(far_qk: Floats, uniform_qk: Floats) -> list[Place]:
    """The pairs that stand out, those with most attention over the usual first; maybe none.

    Neighbours of a better pair are left out. A passage is read in at most two pairs: else one that
    all look at would fill the list.

    Args:
        far_qk: far attention of the tokens of passage q to those of passage k.
        uniform_qk: the same of attention spread evenly over the past.
    """
    times_qk = np.divide(far_qk, uniform_qk, out=np.full_like(far_qk, np.nan), where=uniform_qk > 0)
    usual_qk = usual_times(times_qk)
    with np.errstate(invalid="ignore"):
        stands_out = (times_qk >= OVER_UNIFORM) & (times_qk >= OVER_USUAL * usual_qk)
    excess_qk = np.where(stands_out, far_qk - usual_qk * uniform_qk, -np.inf)
    chosen: list[Place] = []
    for flat in np.argsort(-excess_qk, axis=None, kind="stable").tolist():
        q, k = divmod(flat, len(far_qk))
        if len(chosen) == PAIRS or not stands_out[q, k]:
            break
        near = any(abs(q - other.q) <= 1 and abs(k - other.k) <= 1 for other in chosen)
        if not near and sum(k == other.k for other in chosen) < 2:
            chosen.append(Place(q, k, float(times_qk[q, k]), float(usual_qk[q, k])))
    return chosen


# --- as text -------------------------------------------------------------------------------------


def passage_text(
    tokenizer: DocumentTokenizer,
    ids: NDArray[np.int64],
    bos: int | None,
    start: int,
    stop: int,
    weight_t: NDArray[np.float32],
) -> Passage:
    """Tokens [start, stop) as text, those of most weight marked."""
    tokens = ids[start:stop]
    if bos is not None and start == 0:
        tokens, weight_t = tokens[1:], weight_t[1:]
    top = np.argsort(-weight_t, kind="stable")[: len(tokens) // MARKED]
    marked = set(top[weight_t[top] > weight_t.mean()].tolist())
    # Whole prefixes: a tokenizer may decode a token otherwise at the start of a text.
    ends = [len(tokenizer.decode(tokens[:i])) for i in range(len(tokens) + 1)]
    data = tokenizer.decode(tokens)
    mask = np.zeros(len(data), bool)
    for i in marked:
        mask[ends[i] : ends[i + 1]] = True
    return Passage(start, stop, list(_segments(data, mask)))


def _segments(data: bytes, mask: NDArray[np.bool_]) -> Iterator[tuple[str, bool]]:
    """Runs of equal mask as text, never cut inside a character: it goes with its first byte."""
    start = 0
    for i in range(1, len(data) + 1):
        if i < len(data) and (data[i] & 0xC0 == 0x80):
            mask[i] = mask[i - 1]
        elif i == len(data) or mask[i] != mask[start]:
            yield data[start:i].decode("utf-8", "replace"), bool(mask[start])
            start = i


def printable(text: str) -> str:
    """Text that a terminal only shows: escape sequences and direction marks of a corpus do nothing."""
    return "".join(
        c
        if c == "\n"
        else "    "
        if c == "\t"
        else "\ufffd"
        if unicodedata.category(c)[0] == "C"
        else c
        for c in text
    )
