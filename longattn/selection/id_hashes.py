"""Hashes of all ids in a file of the temporary folder, to find those that more than one window has.

They are parted by their first bits as they come, so that equal ones are found a part at a time: each
is written once and read once, however many there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longattn.selection.threads import CORES, in_threads
from longattn.storage.files import storage_errors

PARTITIONS = 256  # by the first eight bits
COUNTED = 1 << 21  # hashes that are sorted together
Hashes = NDArray[np.uint64]


class IdHashes:
    """64-bit hashes, added a run at a time, and which of them are equal."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "id_hashes"
        self._file = self._path.open("w+b", buffering=0)
        self._runs: list[NDArray[np.int64]] = []  # of each run, where its partitions begin and end
        self._rows = 0

    def append(self, hashes: Hashes) -> None:
        """Add hashes as a run, ordered by partition."""
        if not len(hashes):
            return
        partition = (hashes >> np.uint64(56)).astype(np.uint8)
        run = hashes[np.argsort(partition, kind="stable")]
        ends = np.cumsum(np.bincount(partition, minlength=PARTITIONS))
        self._runs.append(self._rows + np.concatenate([[0], ends]))
        self._rows += len(run)
        left = run.data.cast("B")
        with storage_errors(str(self._path)):
            while left:
                left = left[self._file.write(left) :]

    def repeated(self) -> Iterator[Hashes]:
        """The hashes that were added more than once, each once, some at a time."""
        if self._runs:
            yield from in_threads(partial(_repeated, self._file.fileno()), self._groups(), CORES)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _groups(self) -> Iterator[NDArray[np.int64]]:
        """(runs, 2) where the same partitions of each run begin and end: about `COUNTED` hashes."""
        runs = np.array(self._runs)
        of_partition = np.diff(runs, axis=1).sum(axis=0)
        group = (np.cumsum(of_partition) - of_partition) // COUNTED
        for number in np.unique(group):
            inside = np.flatnonzero(group == number)
            yield runs[:, [inside[0], inside[-1] + 1]]


def _repeated(file: int, pieces: NDArray[np.int64]) -> Hashes:
    """What is more than once in pieces of a file of hashes."""
    hashes = np.empty(np.diff(pieces).sum(), np.uint64)
    into, done = hashes.data.cast("B"), 0
    for start, stop in (8 * pieces).tolist():
        while start < stop:
            read = os.preadv(file, [into[done : done + stop - start]], start)
            if not read:
                raise OSError("the temporary file of id hashes has been cut short")
            start, done = start + read, done + read
    hashes.sort()  # in two fifths of the time that the database takes to group by them
    return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
