"""Two cheap measures of a window's text: how far it compresses, and how much of it is said twice.

Neither needs a model. Text that repeats itself comes first under every score of long-range
dependency, so these are what a selection cuts by:
    compression_ratio  bytes of the text over bytes of it compressed (zstd, level 3): 2 to 4 in most
                       text, tens in a log or a table of zeros
    repetition         the share of tokens inside 32-grams that occurred before in the window, from
                       0 to 1; an occurrence may overlap the earlier one
"""

import threading
from functools import lru_cache

import numpy as np
import zstandard
from numpy.typing import NDArray

LEVEL = 3
"""Of zstd."""
GRAM = 32
"""Tokens of a repeated passage."""
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
    first_n = _first_occurrences(_hashes(ids))
    repeated = np.flatnonzero(first_n < np.arange(len(first_n), dtype=np.int32))
    if not len(repeated):
        return 0.0
    earlier = first_n[repeated]
    if not _equal_grams(ids, repeated, earlier):
        repeated = _repeated_grams(ids)
    # The tokens inside: grams begin in ascending order, each adds what the one before did not hold.
    added = np.minimum(np.diff(repeated), GRAM)
    return float(added.sum() + GRAM) / len(ids)


@lru_cache
def _powers(length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """An odd factor's powers below 2^64, and their inverses."""
    factor = 0xD6E8FEB86659FD93
    inverse = pow(factor, -1, 2**64)
    with np.errstate(over="ignore"):
        up, down = (
            np.multiply.accumulate(np.r_[np.uint64(1), np.full(length - 1, f, np.uint64)])
            for f in (factor, inverse)
        )
    return up, down


def _hashes(ids: NDArray[np.integer]) -> NDArray[np.uint64]:
    """A polynomial hash of each 32-gram, (length - 31,): equal grams have equal ones."""
    up, down = _powers(len(ids))
    x = ids.astype(np.uint64)
    x += np.uint64(0x9E3779B97F4A7C15)
    x *= x  # else the bits of a sum of small numbers tell little
    x *= up
    total = np.cumsum(x)
    h = total[GRAM - 1 :].copy()
    h[1:] -= total[:-GRAM]
    h *= down[: len(h)]
    h ^= h >> np.uint64(32)
    h *= np.uint64(0x9E3779B97F4A7C15)
    return h


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
    ids: NDArray[np.integer], start_m: NDArray[np.intp], earlier_m: NDArray[np.int32]
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
