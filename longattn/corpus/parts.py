"""Large files cut into parts that are read alone, and a part of a file to estimate by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

from longattn.corpus.arrow import number_of_batches
from longattn.corpus.arrow_columns import Unreadable
from longattn.corpus.parquet import opened_parquet
from longattn.corpus.reading import is_lines
from longattn.corpus.records import Split, local_identity, open_listed, read_listed

THREADS = 16  # requests under way at once


def cut_files(files: Iterable[Split], split_bytes: int) -> list[Split]:
    """Whole files, each larger than `split_bytes` cut into parts where its format allows.

    JSON Lines go by bytes, Parquet by row groups, Arrow files by record batches; an archive, a JSON
    array, CSV and plain text stay whole.

    Raises OSError as storage does.
    """
    ordered = list(files)
    large = [file for file in ordered if file.file_size > split_bytes and not file.compression]
    with ThreadPoolExecutor(THREADS) as pool:
        weights = dict(zip(large, pool.map(_weights, large), strict=True))
    return [part for file in ordered for part in _cut(file, split_bytes, weights.get(file))]


def _weights(file: Split) -> list[int] | None:
    """Bytes of the units that a file can be cut between; None: between any two bytes."""
    if file.format == "parquet":
        return row_group_sizes(file)
    if file.format == "arrow":
        batches = number_of_batches(file)
        return [file.file_size // batches] * batches if batches else []
    return None if file.format == "jsonl" and is_lines(file) else []


def row_group_sizes(split: Split) -> list[int]:
    """Each row group's share of the bytes of a Parquet file; none if its footer is broken.

    In proportion to the unpacked sizes: asked for those of the columns, pyarrow can abort the
    process on a footer with one wrong bit.
    """
    try:
        with opened_parquet(split) as parquet:
            groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    except Unreadable:
        return []
    sizes = [max(group.total_byte_size, 0) for group in groups]
    return [split.file_size * size // max(sum(sizes), 1) for size in sizes]


def _cut(file: Split, split_bytes: int, weights: list[int] | None) -> list[Split]:
    if file.file_size <= split_bytes or file.compression:
        return [file]
    if weights is None:
        pieces = -(-file.file_size // split_bytes)
        cuts = [file.file_size * i // pieces for i in range(pieces + 1)]
    elif weights:  # each unit goes to the part in which its last byte lies
        parts = [end // split_bytes for end in accumulate(weights)]
        cuts = [0, *(i for i, (a, b) in enumerate(pairwise(parts), 1) if a != b), len(parts)]
    else:
        return [file]
    return [replace(file, start=start, stop=stop) for start, stop in pairwise(cuts)]


@contextmanager
def sample_part(file: Split, budget: int) -> Iterator[tuple[Split, float]]:
    """A part of about `budget` bytes of a whole file that is read alone, drawn by the file's id.

    Gives the part, and the stored bytes that it stands for. Of a file that cannot be cut it is the
    first bytes as a whole file; its last record, which they end in, reads as a bad one.
    """
    if file.file_size <= budget:
        yield file, file.file_size
        return
    weights = None if file.compression and file.format == "jsonl" else _weights(file)
    if weights:
        behind = list(accumulate(reversed(weights)))[::-1]  # bytes from each unit to the end
        starts = sum(size >= budget for size in behind)  # units with the budget behind them
        first = int(file.id, 16) % max(starts, 1)
        ends = accumulate(weights[first:])
        stop = first + next((i for i, end in enumerate(ends, 1) if end >= budget), len(weights))
        yield replace(file, start=first, stop=stop), sum(weights[first:stop])
    elif weights is None and not file.compression:
        start = int(file.id, 16) % (file.file_size - budget)
        yield replace(file, start=start, stop=start + budget), budget
    elif file.format in ("parquet", "arrow"):
        yield file, file.file_size
    else:
        with tempfile.TemporaryDirectory(prefix="longattn-") as folder:
            head = Path(folder, "head")
            with open_listed(file) as opened:
                head.write_bytes(read_listed(opened, file, 0, budget))
            size, version, marks = local_identity(str(head))
            whole = replace(file, path=str(head), start=0, stop=None, file_size=size)
            yield replace(whole, version=version, marks=marks), budget
