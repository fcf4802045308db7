"""The narrow columns of all labelled windows, in partitions of whole documents, each window once.

A `data_id` names one document, so its rows, and the windows that may overlap, meet in one partition.
There they are by category, within it in order of file and row; columns `data_id`, `category`,
`document` (a number within the partition), `start`, `stop`, `ds`, `variance`, `file`, `row`, and
further ones by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longattn.exact import Floats, Totals, exact_sum, spread
from longattn.partitions import Handle, Place
from longattn.resume.remaining import read_footer
from longattn.storage.files import parallel
from longattn.storage.tables import EXACT, file_metadata, open_parquet, readable

PARTITION = 500_000  # windows aimed at in a partition: about 50 MB
MOST = 256  # partitions; more windows make them larger
SAMPLED = 64  # footers that tell about how many windows there are

Columns = Callable[[str, pa.Table], dict[str, Floats]]  # of the windows of a category, by name
V = TypeVar("V")


@dataclass(frozen=True)
class Counted:
    """Windows of one category."""

    windows: int
    duplicate_rows: int
    longest: int  # bytes of a data_id

    def __add__(self, other: Counted) -> Counted:
        return Counted(
            self.windows + other.windows,
            self.duplicate_rows + other.duplicate_rows,
            max(self.longest, other.longest),
        )


@dataclass(frozen=True)
class Scores:
    """The partitions, and what they hold."""

    handles: list[Handle]
    row_bytes: NDArray[np.int64]  # of a labelled row, by file
    fingerprint: str
    categories: dict[str, Counted]


def estimated_rows(sizes: Mapping[str, int]) -> int:
    """About how many windows labelled files of these sizes hold; exact for few files."""
    some = list(sizes)[:: math.ceil(len(sizes) / SAMPLED)]
    rows = sum(file.rows for file in parallel(read_footer, some))
    return round(rows * sum(sizes.values()) / max(1, sum(sizes[url] for url in some)))


def gather(
    place: Place, path: str, sizes: Mapping[str, int], rows: int, further: Sequence[str]
) -> Scores:
    """Read the narrow columns of labelled files, and `further`, into partitions.

    Raises:
        ValueError: files of different settings, a column that is not there or has no value in
            some windows, or scores that are not finite.
    """
    parts = min(MOST, max(1, math.ceil(rows / PARTITION)))
    group = np.cumsum(list(sizes.values())) * parts // (sum(sizes.values()) + 1)
    listed = pa.table({"url": list(sizes), "file": pa.array(range(len(sizes)), pa.int32())})
    bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(sizes)]
    handles, told = place.exchange(
        (
            (partial(_read, further=further, parts=parts), listed.slice(start, stop - start))
            for start, stop in pairwise(bounds)
        ),
        parts,
    )
    fingerprints = sorted(set().union(*(fingerprints for fingerprints, _ in told)))
    if len(fingerprints) > 1:
        raise ValueError(f"{path}: labelled files of different settings: {fingerprints}")
    lengths = np.array([length for _, lengths in told for length in lengths])
    row_bytes = np.array(list(sizes.values())) // np.maximum(1, lengths)
    handles, counted = place.update((_settle, handle) for handle in handles)
    return Scores(handles, row_bytes, fingerprints[0], merged(counted))


def merged(pieces: Iterable[Mapping[Any, V]]) -> dict[Any, V]:
    """What pieces tell by key, added up."""
    total: dict[Any, V] = {}
    for piece in pieces:
        for key, value in piece.items():
            total[key] = total[key] + value if key in total else value  # type: ignore[operator]
    return dict(sorted(total.items()))


def by_category(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The categories of a partition with their windows."""
    if not len(table):
        return
    (column,) = table["category"].chunks
    codes = column.indices.to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(table)]
    for start, stop in pairwise(bounds):
        yield column.dictionary[codes[start]].as_py(), table.slice(start, stop - start)


def moments_by_category(
    place: Place, handles: Sequence[Handle], columns: Columns
) -> dict[tuple[str, str], tuple[Totals, float]]:
    """Totals and population deviation by category and name of a column."""
    totals: dict[tuple[str, str], Totals] = merged(
        place.each((partial(_totals, columns=columns), handle) for handle in handles)
    )
    means = {key: of.mean for key, of in totals.items()}
    squares: dict[tuple[str, str], int] = merged(
        place.each((partial(_squares, columns=columns, means=means), handle) for handle in handles)
    )
    return {key: (of, of.deviation(squares[key])) for key, of in totals.items()}


# --- on one partition ----------------------------------------------------------------------------


def _read(
    listed: pa.Table, further: Sequence[str], parts: int
) -> tuple[list[pa.Table], tuple[set[str], list[int]]]:
    """Windows of some files by partition; their fingerprints, and how many windows a file has."""
    read = parallel(lambda row: _read_file(row["url"], row["file"], further), listed.to_pylist())
    tables = [table for table, _ in read]
    table = pa.concat_tables(tables).combine_chunks()
    told = {fingerprint for _, fingerprint in read}, [len(table) for table in tables]
    if parts == 1:
        return [table], told
    (names,) = table["document"].chunks or [pa.array([], pa.string())]
    part = spread(names, parts)
    table = table.take(pa.array(np.argsort(part, kind="stable")))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(part, minlength=parts))]).tolist()
    return [table.slice(a, b - a) for a, b in pairwise(bounds)], told


def _read_file(url: str, file: int, further: Sequence[str]) -> tuple[pa.Table, str]:
    names = ["data_id", "category", "document_id", "token_start", "token_stop", "ds", "variance"]
    with open_parquet(url) as parquet:
        for name in {*further} - {*parquet.schema_arrow.names}:
            raise ValueError(f"select: {url} has no column {name}")
        with readable(url):
            read = parquet.read(columns=[*names, *further])
        fingerprint = file_metadata(parquet).get("fingerprint", "")
    for name in {*further} - {*EXACT}:
        if pc.any(pc.is_null(read[name], nan_is_null=True)).as_py():
            raise ValueError(f"select.rank_by: some windows have no {name}: {url}")
    for name in ("ds", "variance"):
        if not np.isfinite(read[name].to_numpy()).all():
            raise ValueError(f"{url}: {name} must be finite")
    columns = {
        "data_id": read["data_id"],
        "category": read["category"].cast(pa.string()),
        "document": pc.coalesce(read["document_id"], read["data_id"]),
        "start": read["token_start"],
        "stop": read["token_stop"],
        "ds": read["ds"],
        "variance": read["variance"],
        "file": np.full(len(read), file, np.int32),
        "row": np.arange(len(read), dtype=np.int32),
        **{name: pc.fill_null(read[name], np.nan) for name in further},
    }
    return pa.table(columns), fingerprint


def _settle(table: pa.Table) -> tuple[pa.Table, dict[str, Counted]]:
    """By category, the first row of each data_id."""
    table = table.combine_chunks()
    category, document = _encoded(table["category"]), _encoded(table["document"])
    names, codes = category.dictionary.to_pylist(), category.indices.to_numpy()
    ids = _encoded(table["data_id"]).indices.to_numpy().astype(np.int64)
    _, first = np.unique(ids * len(names) + codes, return_index=True)
    order = np.sort(first)
    order = order[np.argsort(codes[order], kind="stable")]
    rows, windows = (np.bincount(of, minlength=len(names)) for of in (codes, codes[first]))
    longest = pc.max(pc.binary_length(table["data_id"])).as_py()
    table = table.set_column(1, "category", category)
    table = table.set_column(2, "document", document.indices)
    return table.take(pa.array(order)), {
        name: Counted(int(windows[code]), int(rows[code] - windows[code]), longest)
        for code, name in enumerate(names)
    }


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Numbers for names, in order of first appearance."""
    return column.combine_chunks().dictionary_encode()


def ds_du(_: str, rows: pa.Table) -> dict[str, Floats]:
    """DS and DU of windows: `Columns` of `moments_by_category`."""
    return {"ds": rows["ds"].to_numpy(), "du": -rows["variance"].to_numpy()}


def _totals(table: pa.Table, columns: Columns) -> dict[tuple[str, str], Totals]:
    return {
        (category, name): Totals.of(values)
        for category, rows in by_category(table)
        for name, values in columns(category, rows).items()
    }


def _squares(
    table: pa.Table, columns: Columns, means: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], int]:
    return {
        (category, name): exact_sum((values - means[category, name]) ** 2)
        for category, rows in by_category(table)
        for name, values in columns(category, rows).items()
    }
