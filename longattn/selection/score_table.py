"""The scores of all windows as a table `windows` of a database, each window once.

Numbers take less room and time than names, which stay outside (`window_names.py`): a document is
told from others by two 64-bit hashes of its name, and data_ids are compared only where their hashes
or the values that rank them are equal.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.selection.columns import NAMES, NAMING, Columns
from longattn.selection.database import folder_of, without_progress
from longattn.selection.id_hashes import IdHashes
from longattn.selection.threads import CORES, in_threads
from longattn.selection.window_names import WindowNames
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

INSERTED = 1 << 17  # rows handed to the database at a time: a row group of it
ID_HASH = "hash(data_id)"
_COPIES = """
CREATE OR REPLACE TABLE copies AS SELECT position, category FROM (
    SELECT position, category,
           row_number() OVER (PARTITION BY category, data_id ORDER BY position) AS copy
    FROM suspects JOIN (SELECT category, position FROM windows) USING (position)
) WHERE copy > 1
"""
_KEPT = """
CREATE OR REPLACE TABLE kept (
    category USMALLINT, position UINTEGER, lds DOUBLE, value DOUBLE, {naming}, file INTEGER, row INTEGER
)
"""


class ScoreTable:
    """The table `windows` for as long as a block, and what its numbers stand for.

    Attributes:
        columns: what is read of each window.
        categories: names, by `category`.
        copies: rows dropped, by `category`.
        names: what names the windows, by `position`.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, columns: Columns | None = None
    ) -> None:
        self.connection = connection
        self.columns = columns or Columns()
        self.categories: list[str] = []
        self.copies: dict[int, int] = {}
        self.names = WindowNames(folder_of(connection))
        self._hashes = IdHashes(folder_of(connection))
        self._starts = np.zeros(1, np.int64)  # position of the first row of each file, and the end
        in_database = ", ".join(f"{n} {kind}" for n, (kind, _) in self.columns.in_database.items())
        connection.execute(f"CREATE TABLE windows ({in_database})")

    def __enter__(self) -> ScoreTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.names.close()
        self._hashes.close()

    def _insert(self, rows: pa.Table, beside: Executor) -> None:
        """Add rows: `NAMES`, `rank`, columns of bounds; `beside` writes their names meanwhile."""
        document = rows["document_id"]
        if document.null_count:
            document = pc.coalesce(document, rows["data_id"])
        first = len(self.names)
        columns = {
            "category": self._codes(rows["category"]),
            "position": np.arange(first, first + len(rows)),
            "data_id": rows["data_id"],
            "document": document,
            "start": rows["token_start"],
            "stop": rows["token_stop"],
            **{name: rows[name] for name in rows.column_names if name not in NAMES},
            "ds": rows["ds"],
            "variance": rows["variance"],
        }
        table = pa.table(columns)
        named = beside.submit(self.names.append, table)
        of = ", ".join(of for _, of in self.columns.in_database.values())
        with self._registered(table) as connection:
            connection.execute(f"INSERT INTO windows SELECT {of} FROM rows")
            hashes = connection.sql(f"SELECT {ID_HASH} AS hash FROM rows").to_arrow_table()
        self._hashes.append(hashes["hash"].to_numpy())
        named.result()

    def _codes(self, names: pa.ChunkedArray) -> np.ndarray:
        """The numbers of categories, which are dictionaries."""
        codes = [np.empty(0, np.int32)]
        for chunk in names.chunks:
            dictionary = chunk.dictionary.to_pylist()
            self.categories += [name for name in dictionary if name not in self.categories]
            of = np.array([self.categories.index(name) for name in dictionary], np.int32)
            codes.append(of[chunk.indices.to_numpy()])
        return np.concatenate(codes)

    @contextmanager
    def _registered(self, rows: pa.Table) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, with a view `rows` of a table."""
        self.connection.register("rows", rows)
        yield self.connection
        self.connection.unregister("rows")

    def drop_copies(self) -> None:
        """Of rows with one data_id in a category, only the first in order of file and row stays."""
        connection = self.connection
        connection.execute("CREATE OR REPLACE TABLE repeated (id_hash UBIGINT)")
        found = 0
        for hashes in self._hashes.repeated():
            found += len(hashes)
            if len(hashes):
                with self._registered(pa.table({"id_hash": hashes})):
                    connection.execute("INSERT INTO repeated FROM rows")
        if not found:
            return
        connection.execute("CREATE OR REPLACE TABLE suspects (position UINTEGER, data_id VARCHAR)")
        for first, names in self.names.blocks():
            positions = pa.array(np.arange(first, first + len(names)))
            with self._registered(names.append_column("position", positions)):
                connection.execute(
                    "INSERT INTO suspects SELECT position, data_id FROM rows "
                    f"WHERE {ID_HASH} IN (FROM repeated)"
                )
        connection.execute(_COPIES)
        of = connection.execute("SELECT category, count(*) FROM copies GROUP BY category")
        self.copies = dict(of.fetchall())
        connection.execute(
            "DELETE FROM windows USING copies WHERE windows.position = copies.position"
        )
        for table in ("repeated", "suspects", "copies"):
            connection.execute(f"DROP TABLE {table}")

    def name(self, target: str, query: str) -> None:
        """Make a table of the positions that a query gives, with the `data_id` of each."""
        connection = self.connection
        connection.execute(f"CREATE OR REPLACE TABLE {target} (position UINTEGER, data_id VARCHAR)")
        for rows in batches(connection, f"SELECT position FROM ({query}) ORDER BY position"):
            names = self.names.at(rows["position"].to_numpy())
            with self._registered(rows.append_column("data_id", names["data_id"])):
                connection.execute(f"INSERT INTO {target} BY NAME FROM rows")

    def name_kept(self) -> None:
        """Make a table `kept` of the table `best`: with what names the windows, and where they are."""
        connection = self.connection
        naming = ", ".join(f"{name} {kind}" for name, (kind, _) in NAMING.items())
        connection.execute(_KEPT.format(naming=naming))
        of = ", ".join(of for _, of in NAMING.values())
        for rows in batches(
            connection, "SELECT category, position, lds, value FROM best ORDER BY position"
        ):
            positions = rows["position"].to_numpy()
            file = np.searchsorted(self._starts, positions, side="right") - 1
            names = self.names.at(positions)
            columns = {
                **{name: rows[name] for name in rows.column_names},
                **{name: names[name] for name in names.column_names},
                "file": file,
                "row": positions - self._starts[file],
            }
            with self._registered(pa.table(columns)):
                connection.execute(
                    f"INSERT INTO kept SELECT category, position, lds, value, {of}, file, row FROM rows"
                )
        connection.execute("DROP TABLE best")

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
        read = in_threads(partial(_read, wanted=self.columns), sizes, threads)
        with ThreadPoolExecutor(1) as beside:
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
                    self._insert(pa.concat_tables(waiting), beside)
                    waiting.clear()
            if waiting:
                self._insert(pa.concat_tables(waiting), beside)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
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


def _read(url: str, wanted: Columns) -> tuple[pa.Table, dict[str, Any]]:
    """The narrow columns of a file and what its footer says; nothing of another program's."""
    with open_parquet(url, dictionaries=["category"]) as parquet:
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
    return table, {**metadata, "scores": scores}
