"""The narrow columns of all windows as a table `windows` of a database, each window once.

Numbers take less room and time than names: a document is told from others by two 64-bit hashes of
its name, and data_ids are compared only where their hashes are equal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.selection.columns import NAMES, Columns
from longattn.selection.database import without_progress
from longattn.selection.threads import CORES, in_threads
from longattn.storage.files import READERS, filesystem, is_local
from longattn.storage.tables import (
    DamagedFileError,
    file_metadata,
    is_own_file,
    open_parquet,
    readable,
)
from longattn.text import without_secrets

log = logging.getLogger("longattn")

COUNTED = 1 << 22  # id hashes looked at together
INSERTED = 1 << 17  # rows handed to the database at a time: a row group of it
_CREATE = """
CREATE TABLE windows (
    category INTEGER, data_id VARCHAR, id_hash UBIGINT, document UBIGINT, document_check UBIGINT,
    start BIGINT, stop BIGINT, ds DOUBLE, variance DOUBLE, rank DOUBLE, file INTEGER, row INTEGER{extra}
)
"""
_INSERT = """
INSERT INTO windows
SELECT category, data_id, hash(data_id), hash(document), hash('document ' || document),
       start, stop, ds, variance, rank, file, row{extra} FROM rows
"""
_COPIES = """
CREATE TABLE copies AS SELECT file, row, category FROM (
    SELECT file, row, category,
           row_number() OVER (PARTITION BY category, data_id ORDER BY file, row) AS copy
    FROM windows WHERE id_hash IN (FROM repeated)
) WHERE copy > 1
"""


@dataclass
class ScoreTable:
    """The table `windows`, and what its numbers stand for."""

    connection: duckdb.DuckDBPyConnection
    columns: Columns = field(default_factory=Columns)
    """What is read of each window."""
    categories: list[str] = field(default_factory=list)  # by `category`
    copies: dict[int, int] = field(default_factory=dict)  # rows dropped, by `category`

    def __post_init__(self) -> None:
        extra = "".join(f", {name} DOUBLE" for name in self.columns.extra.values())
        self.connection.execute(_CREATE.format(extra=extra))

    def insert(self, rows: pa.Table) -> None:
        """Add rows: `NAMES`, `rank`, columns of bounds, `file`, `row`."""
        extra = list(self.columns.extra.values())
        category = rows["category"].cast(pa.string()).combine_chunks().dictionary_encode()
        named = category.dictionary.to_pylist()
        self.categories += [name for name in named if name not in self.categories]
        codes = np.array([self.categories.index(name) for name in named], np.int32)
        columns = {
            "category": codes[category.indices.to_numpy()],
            "data_id": rows["data_id"],
            "document": pc.coalesce(rows["document_id"], rows["data_id"]),
            "start": rows["token_start"],
            "stop": rows["token_stop"],
            **{name: rows[name] for name in ("ds", "variance", "rank", "file", "row", *extra)},
        }
        self.connection.register("rows", pa.table(columns))
        self.connection.execute(_INSERT.format(extra="".join(f", {name}" for name in extra)))
        self.connection.unregister("rows")

    def drop_copies(self) -> None:
        """Of rows with one data_id in a category, only the first in order of file and row stays."""
        connection = self.connection
        if not self._find_repeated():
            return
        connection.execute(_COPIES)
        found = connection.execute("SELECT category, count(*) FROM copies GROUP BY category")
        self.copies = dict(found.fetchall())
        connection.execute(
            "DELETE FROM windows USING copies "
            "WHERE windows.file = copies.file AND windows.row = copies.row"
        )
        connection.execute("DROP TABLE copies")

    def _find_repeated(self) -> int:
        """Make a table `repeated` of the id hashes that more than one row has; returns their number.

        A range of hashes at a time, so that counting them stays in memory.
        """
        connection = self.connection
        connection.execute("CREATE OR REPLACE TABLE repeated (id_hash UBIGINT)")
        ((rows,),) = connection.execute("SELECT count(*) FROM windows").fetchall()
        found = 0
        parts = rows // COUNTED + 1
        for low, high in pairwise(2**64 * part // parts for part in range(parts + 1)):
            some = f"SELECT id_hash FROM windows WHERE id_hash BETWEEN {low} AND {high - 1}"
            hashes = np.concatenate(
                [
                    np.empty(0, np.uint64),
                    *(of["id_hash"].to_numpy() for of in batches(connection, some)),
                ]
            )
            hashes.sort()  # in two fifths of the time that the database takes to group by them
            again = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
            found += len(again)
            if len(again):
                connection.register("rows", pa.table({"id_hash": again}))
                connection.execute("INSERT INTO repeated FROM rows")
                connection.unregister("rows")
        return found

    def insert_labelled(self, path: str, sizes: Mapping[str, int]) -> LabelledFiles:
        """Read the narrow columns of labelled files, and what `columns` names, into the table.

        Raises:
            ValueError: files of different settings, a column that is not there or has no value in
                some windows, or scores that are not finite.
        """
        threads = CORES if is_local(filesystem(path)[0]) else READERS
        fingerprints: set[str] = set()
        lengths: list[int] = []
        digests: list[str] = []
        tables: dict[str, set[str]] = {}  # fingerprints of each score table
        waiting: list[pa.Table] = []
        read = in_threads(
            lambda file: _read(file[1], file[0], self.columns), enumerate(sizes), threads
        )
        for url, (table, metadata) in zip(sizes, read, strict=True):
            lengths.append(len(table))
            digests.append(metadata.get("digest", ""))
            if not metadata:
                log.warning("%s was not written by longattn: left alone", without_secrets(url))
                continue
            fingerprints.add(metadata.get("fingerprint", ""))
            for name, fingerprint in metadata.get("scores", {}).items():
                tables.setdefault(name, set()).add(fingerprint)
            waiting.append(table)
            if sum(map(len, waiting)) >= INSERTED:
                self.insert(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            self.insert(pa.concat_tables(waiting))
        if len(fingerprints) > 1:
            raise ValueError(
                f"{path}: labelled files of different settings: {sorted(fingerprints)}"
            )
        for name, found in tables.items():
            if len(found) > 1:
                raise ValueError(
                    f"{path}: scores/{name}: files of different settings: {sorted(found)}"
                )
        row_bytes = np.array(list(sizes.values())) // np.maximum(1, lengths)
        if not fingerprints:
            raise ValueError(f"{path}: no labelled windows of longattn to select from")
        return LabelledFiles(list(sizes), row_bytes, fingerprints.pop(), digests)


@dataclass(frozen=True)
class LabelledFiles:
    urls: Sequence[str]
    row_bytes: np.ndarray  # (files,) of one row
    fingerprint: str
    digests: Sequence[str]  # of the rows of each


def batches(
    connection: duckdb.DuckDBPyConnection, query: str, rows: int = INSERTED
) -> Iterator[pa.Table]:
    """The rows of a query, so many at a time; the connection may do other things meanwhile."""
    with connection.cursor() as own:
        without_progress(own)
        for batch in own.sql(query).to_arrow_reader(rows):
            yield pa.table(batch)


def _read(url: str, file: int, wanted: Columns) -> tuple[pa.Table, dict[str, Any]]:
    """The narrow columns of a file and what its footer says; nothing of another program's."""
    with open_parquet(url) as parquet:
        if not is_own_file(parquet):
            return pa.table({}), {}
        try:
            metadata = file_metadata(parquet)
        except ValueError as error:
            raise DamagedFileError(url, str(error)) from None
        if metadata.get("rows") != (rows := parquet.metadata.num_rows):
            raise DamagedFileError(url, f"{rows} rows, its footer tells of {metadata.get('rows')}")
        for name in {*wanted.labelled} - {*parquet.schema_arrow.names}:
            raise ValueError(f"select: {url} has no column {name}")
        with readable(url):
            table = parquet.read(columns=[*NAMES, *wanted.labelled], use_threads=False)
    scores: dict[str, str] = {}
    table = wanted.of_rows(url, table.replace_schema_metadata(), scores)
    table = table.append_column("file", pa.array(np.full(len(table), file, np.int32)))
    table = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int32)))
    return table, {**metadata, "scores": scores}
