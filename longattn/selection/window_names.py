"""What names each window, in files of the temporary folder rather than in the database.

Ids are most of what a selection reads of a window, and it needs almost none of them: those of the
kept windows, of windows with equal values where a budget ends, and of those with equal hashes. So
they are written here one after the other and found again by position, the number of a window in
order of labelled file and row. Only numbers go into the database.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.storage.files import storage_errors
from longattn.storage.tables import LABELLED

SCHEMA = pa.schema(
    [
        ("data_id", pa.string()),
        ("document", pa.string()),  # document_id, else data_id
        ("start", LABELLED.field("token_start").type),
        ("stop", LABELLED.field("token_stop").type),
    ]
)
BLOCK = 1 << 17  # windows that are read together


class WindowNames:
    """`SCHEMA` of every window: written in order, then read by position."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "names.arrow"
        self._sink = pa.OSFile(str(self._path), "wb")
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._writer = pa.ipc.new_file(self._sink, SCHEMA, options=options)
        self._starts = [0]  # position of the first row of each block, and of the next one
        self._source: pa.OSFile | None = None
        self._block: tuple[int, pa.Table] = -1, SCHEMA.empty_table()  # the one read last

    def append(self, rows: pa.Table) -> None:
        """Add windows, in blocks of at most `BLOCK`."""
        for block in rows.select(SCHEMA.names).cast(SCHEMA).combine_chunks().to_batches(BLOCK):
            with storage_errors(str(self._path)):
                self._writer.write_batch(block)
            self._starts.append(self._starts[-1] + len(block))

    def __len__(self) -> int:
        return self._starts[-1]

    def blocks(self) -> Iterator[tuple[int, pa.Table]]:
        """The position of the first window of each block, and the block."""
        for number, start in enumerate(self._starts[:-1]):
            yield start, self._read(number)

    def at(self, positions: NDArray[np.int64]) -> pa.Table:
        """The windows at ascending positions."""
        if not len(positions):
            return SCHEMA.empty_table()
        ends = np.searchsorted(positions, self._starts)  # of each block, where its positions begin
        return pa.concat_tables(
            self._read(number).take(pa.array(positions[start:stop] - self._starts[number]))
            for number, (start, stop) in enumerate(pairwise(ends.tolist()))
            if start < stop
        )

    def close(self) -> None:
        """Remove the file."""
        self._finish()
        if self._source is not None:
            self._source.close()
        self._path.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self._sink.closed:
            with storage_errors(str(self._path)):
                self._writer.close()
                self._sink.close()

    def _read(self, number: int) -> pa.Table:
        if self._source is None:
            self._finish()
            self._source = pa.OSFile(str(self._path), "rb")  # a map would count as memory held
            self._reader = pa.ipc.open_file(self._source)
        if self._block[0] != number:
            self._block = number, pa.table(self._reader.get_batch(number))
        return self._block[1]
