"""Sums and cuts of columns that lie in pieces: exact, so that no layout of the pieces changes them.

A sum is a Python integer in units of 2**-1126: pieces are added as integers and rounded once, to the
double that math.fsum of the whole column gives.

A cut parts an order, best value first and ties by id, where a budget ends. A row's place in it is a
row of 64-bit words: its value as an integer, then its id, eight bytes a word. The cut is found
16 bits at a time, from histograms that add up over pieces, until the rows left to decide on are few
enough to be looked at one by one: two rounds for scores as they come, more for many equal ones.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]
Bools = NDArray[np.bool_]

UNIT = 1126  # 2**-1126 is the last bit of the 53 of the smallest subnormal number
ROWS = 1 << 25  # sums of that many 27-bit integers are exact in float64
BITS = 16  # of a round
FEW = 1 << 14  # rows to decide on one by one


def exact_sum(x: Floats) -> int:
    """Sum of (n,) float64 in units of 2**-1126; `rounded` gives the double.

    Raises OverflowError where a value is not finite.
    """
    if not np.isfinite(x).all():
        raise OverflowError("a value to be summed is not finite")
    total = 0
    for start in range(0, len(x), ROWS):
        mantissa, exponent = np.frexp(x[start : start + ROWS])
        whole = (mantissa * 2.0**53).astype(np.int64)
        lowest = int(exponent.min())
        places = exponent - lowest
        high = np.bincount(places, whole >> 26)  # the shift rounds down: what it leaves is >= 0
        low = np.bincount(places, whole & (2**26 - 1))
        for place in np.flatnonzero(np.bincount(places)).tolist():
            part = (int(high[place]) << 26) + int(low[place])
            total += part << (lowest + place - 53 + UNIT)
    return total


def rounded(total: int) -> float:
    """The double nearest to an exact sum. Raises OverflowError where there is none."""
    return total / (1 << UNIT)


@dataclass(frozen=True)
class Totals:
    """Of a column or a piece of it; those of pieces add up to those of the whole."""

    rows: int
    total: int  # exact
    low: float
    high: float

    @classmethod
    def of(cls, x: Floats) -> Totals:
        return cls(len(x), exact_sum(x), x.min(initial=np.inf), x.max(initial=-np.inf))

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.rows + other.rows,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def mean(self) -> float:
        return rounded(self.total) / self.rows if self.rows else np.nan

    def deviation(self, squares: int) -> float:
        """The population's, from `exact_sum((x - mean) ** 2)` over all pieces."""
        return float(np.sqrt(rounded(squares) / self.rows)) if self.rows else np.nan


def keys(x: Floats) -> Words:
    """(n,) integers in the order of -x: the best first; 0.0 and -0.0 are one."""
    bits = (-x + 0.0).view(np.int64)
    return np.where(bits < 0, ~bits, bits ^ np.int64(-(2**63))).view(np.uint64)


def words(ids: pa.StringArray, rows: Ints, offset: int) -> Words:
    """Bytes `offset` to `offset + 8` of some ids as integers in their order; past the end: zeros."""
    _, starts, data = ids.buffers()
    if data is None or not data.size:
        return np.zeros(len(rows), np.uint64)
    bounds = np.frombuffer(starts, np.int32)[ids.offset : ids.offset + len(ids) + 1]
    places = bounds[rows, None] + np.arange(offset, offset + 8)
    there = places < bounds[rows + 1, None]
    spelled = np.where(there, np.frombuffer(data, np.uint8).take(places, mode="clip"), 0)
    return spelled.astype(np.uint8).view(">u8").ravel().astype(np.uint64)


def spread(ids: pa.StringArray, parts: int) -> Ints:
    """(n,) a part for each id, the same for the same id anywhere; parts of about one size."""
    lengths = pc.binary_length(ids).to_numpy()
    mixed = np.zeros(len(ids), np.uint64)
    for offset in range(0, lengths.max(initial=0), 8):
        rows = np.flatnonzero(lengths > offset)  # an id's part is a matter of its own bytes
        some = (mixed[rows] ^ words(ids, rows, offset)) * np.uint64(0x9E3779B97F4A7C15)
        mixed[rows] = some ^ (some >> np.uint64(32))
    return (mixed % np.uint64(parts)).astype(np.int64)


@dataclass(frozen=True)
class Cut:
    """As much as is known of where a budget ends: rows before it fit, rows at it are to be decided."""

    left: int  # of the budget, for rows at it
    words: tuple[int, ...] = ()  # its first words
    head: int = 0  # of its next word, the first `bits` bits
    bits: int = 0
    last: tuple[int, str] | None = None  # key and id of the last row at it that fits
    all: bool = False  # the budget has room for every row

    def divide(self, key: Words, ids: pa.StringArray) -> tuple[Bools, Ints, Words]:
        """Which rows are before the cut, the positions of those at it, and their next words."""
        before, at = np.zeros(len(key), bool), np.arange(len(key))
        word = key
        for depth, own in enumerate(self.words):
            before[at[word < np.uint64(own)]] = True
            at = at[word == np.uint64(own)]
            word = words(ids, at, 8 * depth)
        if self.bits:
            head = word >> np.uint64(64 - self.bits)
            before[at[head < np.uint64(self.head)]] = True
            same = head == np.uint64(self.head)
            at, word = at[same], word[same]
        return before, at, word

    def histogram(self, key: Words, ids: pa.StringArray, weights: Ints) -> tuple[Ints, Ints, Ints]:
        """Of the rows at the cut, by the next 16 bits: those there are, weights and numbers of rows."""
        _, at, word = self.divide(key, ids)
        head = (word >> np.uint64(64 - BITS - self.bits)) & np.uint64(2**BITS - 1)
        bins = head.astype(np.int64)
        rows = np.bincount(bins)
        weight = np.bincount(bins, weights[at], minlength=len(rows)).astype(np.int64)
        there = np.flatnonzero(rows)
        return there, weight[there], rows[there]

    def nothing(self) -> tuple[Ints, Ints]:
        """Weights and numbers of rows by the next 16 bits, to add histograms up in."""
        return np.zeros(2**BITS, np.int64), np.zeros(2**BITS, np.int64)

    def narrowed(self, weights: Ints, rows: Ints) -> tuple[Cut, int]:
        """The cut 16 bits further, and how many rows are at it."""
        running = np.cumsum(weights)
        over = int(np.searchsorted(running, self.left, side="right"))
        if over == len(running):
            return Cut(self.left, all=True), 0
        left = self.left - int(running[over] - weights[over])
        head, bits = self.head << BITS | over, self.bits + BITS
        if bits < 64:
            return Cut(left, self.words, head, bits), int(rows[over])
        return Cut(left, (*self.words, head)), int(rows[over])

    def undecided(
        self, key: Words, ids: pa.StringArray, weights: Ints
    ) -> list[tuple[int, str, int]]:
        """Key, id and weight of the rows at the cut."""
        _, at, _ = self.divide(key, ids)
        names = ids.take(pa.array(at)).to_pylist()
        return list(zip(key[at].tolist(), names, weights[at].tolist(), strict=True))

    def decided(self, rows: Iterable[tuple[int, str, int]]) -> Cut:
        """The cut, given all rows at it."""
        ordered = sorted(rows)
        fits = bisect_right(list(accumulate(weight for _, _, weight in ordered)), self.left)
        last = ordered[fits - 1][:2] if fits else None
        return Cut(self.left, self.words, self.head, self.bits, last)

    def within(self, key: Words, ids: pa.StringArray) -> Bools:
        """Which rows are kept, once the cut is decided."""
        if self.all:
            return np.ones(len(key), bool)
        kept, at, _ = self.divide(key, ids)
        if self.last is not None and len(at):
            best, name = self.last
            tied = pc.less_equal(ids.take(pa.array(at)), name).to_numpy(zero_copy_only=False)
            kept[at] = (key[at] < np.uint64(best)) | ((key[at] == np.uint64(best)) & tied)
        return kept
