"""The second source of a mix: short documents or windows, packed into sequences of one window.

Documents are tokenized once, into Parquet files in a temporary folder; ids that lie in Parquet files
already are read where they are. Pieces go through the packing in the order of a hash of their ids and
the seed, so many at a time: the same sequences whatever the layout of the files, in bounded memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Split
from longattn.corpus.sources import list_splits
from longattn.errors import ConfigError
from longattn.formats.packing import best_fit
from longattn.formats.pieces import IdFile, PieceTable, first_rows_of, name_of
from longattn.selection.score_table import batches
from longattn.selection.threads import CORES, in_threads
from longattn.settings.mix import PackedSource
from longattn.storage.tables import open_parquet, readable
from longattn.text import count, share, without_secrets
from longattn.windows.tokenizer import load_tokenizer

log = logging.getLogger("longattn")

BUFFER = (
    1 << 16
)  # pieces that are packed together: 1 s, and the windows are full but for some 0.1 %
GROUP_TOKENS = 1 << 21  # of a row group of tokenized documents
GROUPS = 32  # of a file of them
_SHORT = """
CREATE OR REPLACE TABLE short (
    place UBIGINT, name VARCHAR, file INTEGER, row INTEGER, start INTEGER, length INTEGER
)
"""
IDS = pa.schema([("input_ids", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class Packing:
    """How the sources of a mix are packed."""

    model: str
    """Whose tokenizer documents are tokenized with."""
    window: int
    padded: bool
    """Whether a sequence takes a whole window, be it full or not."""
    scratch: Path
    """A folder for the ids of documents."""


def insert_packed(table: PieceTable, source: PackedSource, packing: Packing) -> None:
    """Add a source's documents to the table, as sequences of at most one window.

    Raises:
        ConfigError: `ids_column` of what is no Parquet file, or has no such column.
        ValueError: a path that matches nothing.
        OSError: the storage failed.
    """
    splits = list_splits([source], settings=[f"packed {source.category}: path"])
    if source.ids_column is None:
        urls, column = list(_tokenized(splits, source, packing)), "input_ids"
    else:
        urls, column = list(dict.fromkeys(split.path for split in splits)), source.ids_column
        if strange := [split.source for split in splits if split.format != "parquet"]:
            raise ConfigError(f"packed.ids_column: {strange[0]} is no Parquet file")
    table.connection.execute(_SHORT)
    read = partial(_read_pieces, category=source.category, column=column, window=packing.window)
    for url, (rows, first_rows) in zip(urls, in_threads(read, urls, CORES), strict=True):
        rows = rows.append_column("place", pa.array(table.places(rows["name"].to_pylist())))
        rows = rows.append_column("file", pa.array(np.full(len(rows), len(table.files), np.int32)))
        table.connection.register("rows", rows)
        table.connection.execute("INSERT INTO short BY NAME FROM rows")
        table.connection.unregister("rows")
        table.files.append(IdFile(url, column, first_rows, whole=False))
    _pack(table, source.category, packing)


def _pack(table: PieceTable, category: str, packing: Packing) -> None:
    """Make sequences of the rows of the table `short`."""
    before, pieces, tokens = table.bins, 0, 0
    for rows in _buffers(table):
        bins = best_fit(rows["length"].to_numpy(), packing.window)
        order = np.argsort(bins, kind="stable")  # in a sequence, in the order of the hash
        rows, bins = rows.take(pa.array(order)), bins[order]
        lengths = rows["length"].to_numpy().astype(np.int64)
        firsts = np.flatnonzero(np.diff(bins, prepend=-1))
        totals = np.add.reduceat(lengths, firsts)
        begins = np.cumsum(lengths) - lengths
        members = np.split(np.array(rows["name"].to_pylist(), object), firsts[1:])
        names = [name_of(category, of) for of in members]
        table.insert(
            {
                **{name: rows[name] for name in ("file", "row", "start", "length")},
                "category": np.full(len(rows), table.category(category), np.int32),
                "bin": table.bins + bins,
                "place": table.places(names)[bins],
                "name": np.array(names, object)[bins],
                "within": (begins - begins[firsts][bins]).astype(np.int32),
                "slot": (np.full_like(totals, packing.window) if packing.padded else totals)[
                    bins
                ].astype(np.int32),
            }
        )
        table.bins += len(firsts)
        pieces, tokens = pieces + len(rows), tokens + int(lengths.sum())
    made = table.bins - before
    log.info(
        "%s: %s documents packed into %s windows, %s full",
        category,
        count(pieces),
        count(made),
        share(tokens, made * packing.window),
    )


def _buffers(table: PieceTable) -> Iterator[pa.Table]:
    """The table `short` in the order of the hash, so many rows at a time and the rest."""
    held = pa.table({})
    query = "SELECT * FROM short WHERE length > 0 ORDER BY place, name, file, row, start"
    for rows in batches(table.connection, query):
        held = pa.concat_tables([held, rows]) if len(held) else rows
        while len(held) >= BUFFER:
            yield held.slice(0, BUFFER)
            held = held.slice(BUFFER)
    if len(held):
        yield held


def _read_pieces(
    url: str, category: str, column: str, window: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    """`name`, `row`, `start`, `length` of the pieces of a file, and its row groups."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    with open_parquet(url) as parquet:
        if column not in parquet.schema_arrow.names:
            raise ConfigError(f"packed.ids_column: {without_secrets(url)} has no column {column!r}")
        kind = parquet.schema_arrow.field(column).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
            raise ConfigError(f"packed.ids_column: {without_secrets(url)}: {column!r} is {kind}")
        first_rows = first_rows_of(parquet)
        for group in range(parquet.num_row_groups):
            with readable(url):
                read = parquet.read_row_group(group, columns=[column], use_threads=False)
            array = read.column(0).combine_chunks()
            values, offsets = array.values.to_numpy(zero_copy_only=False), array.offsets.to_pylist()
            for row, (begin, end) in enumerate(pairwise(offsets), int(first_rows[group])):
                ids = np.ascontiguousarray(values[begin:end], "<i4")
                name = f"{category}-{xxhash.xxh3_128_hexdigest(ids.data)}"
                for start in range(0, len(ids), window):
                    names.append(f"{name}:{start}" if len(ids) > window else name)
                    places.append((row, start, min(window, len(ids) - start)))
    columns = np.array(places, np.int32).reshape(-1, 3)
    rows = {"name": pa.array(names, pa.string())}
    for i, key in enumerate(("row", "start", "length")):
        rows[key] = pa.array(columns[:, i])
    return pa.table(rows), first_rows


def _tokenized(splits: list[Split], source: PackedSource, packing: Packing) -> Iterator[str]:
    """Parquet files in the scratch folder with the ids of all documents, as each is written."""
    bad = documents = 0
    tokenizer = load_tokenizer(packing.model)
    end = np.array([] if source.end_token is None else [source.end_token], np.int32)

    def all_ids() -> Iterator[NDArray[np.int32]]:
        nonlocal bad, documents
        for split in splits:
            for record in read_split(split):
                if isinstance(record, BadRecord):
                    bad += record.records
                    continue
                try:
                    ids = tokenizer.encode(record.text).ids
                except ValueError:
                    bad += 1
                    continue
                documents += 1
                yield np.append(ids, end)

    groups = _groups(all_ids())
    number = 0
    while (first := next(groups, None)) is not None:
        path = packing.scratch / f"{source.category}-{number:06d}.parquet"
        with pq.ParquetWriter(path, IDS, compression="zstd", use_dictionary=False) as writer:
            writer.write_table(first)
            for _, group in zip(range(GROUPS - 1), groups, strict=False):
                writer.write_table(group)
        yield str(path)
        number += 1
    if bad:
        log.warning(
            "%s: %s of %s records could not be used",
            source.category,
            count(bad),
            count(documents + bad),
        )


def _groups(documents: Iterator[NDArray[np.int32]]) -> Iterator[pa.Table]:
    held: list[NDArray[np.int32]] = []
    tokens = 0
    for ids in documents:
        held.append(ids)
        tokens += len(ids)
        if tokens >= GROUP_TOKENS:
            yield pa.table({"input_ids": held}, schema=IDS)
            held, tokens = [], 0
    if held:
        yield pa.table({"input_ids": held}, schema=IDS)
