"""Two cheap measures of a window's text: how far it compresses, and how much of it is said twice.

Neither needs a model. Text that repeats itself comes first under every score of long-range
dependency, so these are what a selection cuts by:
    compression_ratio  bytes of the text over bytes of it compressed (zstd, level 1): 2 to 4 in most
                       text, tens in a log or a table of zeros
    repetition         the share of tokens inside 32-grams that occurred before in the window, from
                       0 to 1; an occurrence may overlap the earlier one
"""

import threading
from functools import lru_cache

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL = 1
"""Of zstd. Ranks as level 3 does (Spearman .99 or more) in two thirds of its time."""
GRAM = 32
"""Tokens of a repeated passage."""
_SHORT = 16  # on code, where short passages come back often, a fifth faster than 8
_SPAN = GRAM - _SHORT + 1  # short grams in a gram
_ODD = np.uint32(0x9E3779B1)
_NONE = np.zeros(_SPAN - 1, np.uint32)
_local = threading.local()  # a compressor is of one thread


def compression_ratio(text: bytes) -> float:
    """Bytes over bytes compressed; 1 for an empty text."""
    if not text:
        return 1.0
    if not hasattr(_local, "compressor"):
        _local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=False)
    return len(text) / len(_local.compressor.compress(text))


def repetition(ids: NDArray[np.integer]) -> float:
    """Share of tokens inside 32-grams that occurred before in the window; 0 below 33 tokens.

    Exact: hashes only find candidates, whose tokens are compared.

    Args:
        ids: (length,) integers.
    """
    if len(ids) <= GRAM:
        return 0.0
    start_m, hash_m = _candidates(ids)
    if not len(start_m):
        return 0.0
    first_m = _first_occurrences(hash_m)
    again = np.flatnonzero(first_m < np.arange(len(first_m), dtype=np.int32))
    if not len(again):
        return 0.0
    repeated, earlier = start_m[again], start_m[first_m[again]]
    if not _equal_grams(ids, repeated, earlier):
        repeated = _repeated_grams(ids)
    # The tokens inside: grams begin in ascending order, each adds what the one before did not hold.
    added = np.minimum(np.diff(repeated), GRAM)
    return float(added.sum() + GRAM) / len(ids)


def _candidates(ids: NDArray[np.integer]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Starts, ascending, of grams that may be equal to another, and hashes of these grams.

    Each gram is known by the least hash of the 16-grams in it. Equal grams have it at two places, and
    few places hold one (2 of 18), so that most grams are done with after a look at these.
    """
    up, down = _powers(len(ids))
    x = ids.astype(np.uint32)
    x += _ODD
    x *= x
    x *= up
    total = np.cumsum(x, dtype=np.uint32)
    short = total[_SHORT - 1 :].copy()
    short[1:] -= total[:-_SHORT]
    short *= down[: len(short)]
    _mix(short)
    least = _over_span(np.minimum, short)
    # A place is the least of some gram if it is as small as the largest least around it.
    edged = np.concatenate([_NONE, least, _NONE])
    holder = short[short == _over_span(np.maximum, edged)]
    holder.sort()
    twice = holder[1:][holder[1:] == holder[:-1]]
    if not len(twice):
        return np.empty(0, np.intp), np.empty(0, np.uint64)
    edge = np.flatnonzero(least[1:] != least[:-1]) + 1
    run = np.concatenate([[0], edge])
    place = np.minimum(np.searchsorted(twice, least[run]), len(twice) - 1)
    lengths = np.diff(run, append=len(least))
    start_m = np.flatnonzero(np.repeat(twice[place] == least[run], lengths))
    long_m = total[start_m + (GRAM - 1)]
    long_m -= np.where(start_m > 0, total[start_m - 1], 0)
    long_m *= down[start_m]
    _mix(long_m)
    return start_m, (long_m.astype(np.uint64) << np.uint64(32)) | least[start_m]


def _mix(h: NDArray[np.uint32]) -> None:
    h ^= h >> np.uint32(15)
    h *= _ODD
    h ^= h >> np.uint32(13)


def _over_span(least_or_most: np.ufunc, x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Of each _SPAN values in a row the least, or the most."""
    for step in (1, 2, 4, 8, _SPAN - 16):
        x = least_or_most(x[:-step], x[step:])
    return x


@lru_cache
def _powers(length: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """An odd factor's powers below 2^32, and their inverses."""
    factor = 0x8664F205
    up, down = (
        np.multiply.accumulate(np.r_[np.uint32(1), np.full(length - 1, f, np.uint32)])
        for f in (factor, pow(factor, -1, 2**32))
    )
    return up, down


def _first_occurrences(hash_n: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Of each hash, the place where it is first, (n,)."""
    first_n = np.arange(len(hash_n), dtype=np.int32)
    place_m = first_n.copy()
    bits = (2 * len(hash_n)).bit_length()
    for shift in range(64 - bits, -1, -bits):
        # One slot for each value of some bits; of repeated indices numpy keeps the last written.
        hash_m = hash_n[place_m]
        slot_m = ((hash_m >> np.uint64(shift)) & np.uint64(2**bits - 1)).astype(np.intp)
        slots = np.empty(2**bits, np.int32)
        slots[slot_m[::-1]] = place_m[::-1]
        found_m = slots[slot_m]
        first_n[place_m] = found_m
        # All of one hash share a slot, so what another took is left with all of its like.
        place_m = place_m[hash_n[found_m] != hash_m]
        if not len(place_m):
            return first_n
    _, first, of = np.unique(hash_n[place_m], return_index=True, return_inverse=True)
    first_n[place_m] = place_m[first][of]
    return first_n


def _equal_grams(
    ids: NDArray[np.integer], start_m: NDArray[np.intp], earlier_m: NDArray[np.integer]
) -> bool:
    """Whether the grams at `start_m`, ascending, hold the same tokens as those at `earlier_m`."""
    last = GRAM - 1
    if not np.array_equal(ids[start_m + last], ids[earlier_m + last]):
        return False
    # A gram one after the one before, with its like one after the other's, shares the rest with it.
    new = np.ones(len(start_m), bool)
    new[1:] = (np.diff(start_m) != 1) | (np.diff(earlier_m) != 1)
    grams = np.lib.stride_tricks.sliding_window_view(ids, GRAM)
    return np.array_equal(grams[start_m[new]], grams[earlier_m[new]])


def _repeated_grams(ids: NDArray[np.integer]) -> NDArray[np.intp]:
    """Starts of grams that occurred before, by comparing all: for windows in which two share a hash."""
    grams = np.lib.stride_tricks.sliding_window_view(ids, GRAM)
    _, first, of = np.unique(grams, axis=0, return_index=True, return_inverse=True)
    return np.flatnonzero(first[of.ravel()] < np.arange(len(grams)))
