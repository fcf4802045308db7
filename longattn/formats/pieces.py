"""What is exported as a table of a database: runs of token ids in files, and the sequences they make.

A piece is a run of ids in one row of a Parquet file. A window is a sequence of one piece; short documents
that are packed into one window are a sequence of several. The table holds names and numbers only, and
spills to the temporary folder, so that a plan of any size takes bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from longattn.selection.database import without_progress
from longattn.selection.threads import CORES, in_threads
from longattn.storage.files import READERS, filesystem, is_local
from longattn.storage.output_folder import category_of
from longattn.storage.tables import DamagedFileError, file_metadata, open_parquet, readable

NARROW = ["data_id", "token_start", "token_stop"]
_CREATE = """
CREATE TABLE pieces (
    category INTEGER, bin BIGINT, place UBIGINT, name VARCHAR, within INTEGER, slot INTEGER,
    file INTEGER, row INTEGER, start INTEGER, length INTEGER
)
"""
COLUMNS = [
    "category",
    "bin",
    "place",
    "name",
    "within",
    "slot",
    "file",
    "row",
    "start",
    "length",
]


@dataclass(frozen=True)
class IdFile:
    """A Parquet file with a column of ids."""

    url: str
    column: str
    first_rows: NDArray[np.int64]
    """(row groups + 1,): the first row of each, and the number of rows."""
    whole: bool
    """Whether each piece is all of its row."""


@dataclass
class PieceTable:
    """The table `pieces`.

    Its columns: `category` (an index of `categories`); `bin`, which tells sequences apart and orders
    them where they are not shuffled; `place` and `name` of the sequence, by which they are shuffled;
    `within`, where the piece lies in its sequence; `slot`, tokens that the sequence takes; `file` (an
    index of `files`), `row`, `start`, `length`, where the ids are.
    """

    connection: duckdb.DuckDBPyConnection
    seed: int
    categories: list[str] = field(default_factory=list)
    files: list[IdFile] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    """Of the rows of each file that has one in its footer."""
    bins: int = 0

    def __post_init__(self) -> None:
        self.connection.execute(_CREATE)

    def insert(self, columns: dict[str, object]) -> None:
        self.connection.register("rows", pa.table({name: columns[name] for name in COLUMNS}))
        self.connection.execute("INSERT INTO pieces FROM rows")
        self.connection.unregister("rows")

    def category(self, name: str) -> int:
        if name not in self.categories:
            self.categories.append(name)
        return self.categories.index(name)

    def places(self, names: Iterable[str]) -> NDArray[np.uint64]:
        """Where each is in the order of this seed: a hash, the same on any machine."""
        return np.fromiter((place(self.seed, name) for name in names), np.uint64)

    def insert_windows(self, urls: list[str]) -> None:
        """Add each window of selected files as a sequence, in order of file and row.

        Raises ValueError for a file that is not what was written.
        """
        threads = CORES if not urls or is_local(filesystem(urls[0])[0]) else READERS
        read = in_threads(_narrow, urls, threads)
        for url, (rows, first_rows, digest) in zip(urls, read, strict=True):
            n = len(rows)
            lengths = (rows["token_stop"].to_numpy() - rows["token_start"].to_numpy()).astype("i4")
            self.insert(
                {
                    "category": np.full(n, self.category(category_of(url)), np.int32),
                    "bin": np.arange(self.bins, self.bins + n),
                    "place": self.places(rows["data_id"].to_pylist()),
                    "name": rows["data_id"],
                    "within": np.zeros(n, np.int32),
                    "slot": lengths,
                    "file": np.full(n, len(self.files), np.int32),
                    "row": np.arange(n, dtype=np.int32),
                    "start": np.zeros(n, np.int32),
                    "length": lengths,
                }
            )
            self.bins += n
            self.files.append(IdFile(url, "input_ids", first_rows, whole=True))
            self.digests.append(digest)

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """Of each category: sequences, documents, tokens of documents."""
        found = without_progress(self.connection).execute(
            "SELECT category, count(*) FILTER (within = 0), count(*), sum(length)::BIGINT "
            "FROM pieces GROUP BY category"
        )
        return {self.categories[of]: (n, m, tokens) for of, n, m, tokens in found.fetchall()}

    def padding(self) -> int:
        """Tokens of sequences that are of no document."""
        found = self.connection.execute(
            "SELECT coalesce(sum(slot) FILTER (within = 0), 0)::BIGINT "
            "- coalesce(sum(length), 0)::BIGINT FROM pieces"
        ).fetchone()
        return int(found[0]) if found else 0


def place(seed: int, name: str) -> int:
    """64 bits that order sequences: XXH3 of `seed:name`."""
    return xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode())


def name_of(category: str, names: Iterable[str]) -> str:
    """A data_id for a sequence of several."""
    digest = blake2b("\n".join(names).encode(), digest_size=16)
    return f"{category}-{digest.hexdigest()}-packed"


def first_rows_of(parquet: pq.ParquetFile) -> NDArray[np.int64]:
    """(row groups + 1,): the first row of each, and the number of rows."""
    metadata = parquet.metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.cumsum([0, *rows], dtype=np.int64)


def _narrow(url: str) -> tuple[pa.Table, NDArray[np.int64], str]:
    """Names and token ranges of a selected file, its row groups, and the digest in its footer."""
    with open_parquet(url) as parquet:
        try:
            digest = str(file_metadata(parquet).get("digest", ""))
        except ValueError as error:
            raise DamagedFileError(url, str(error)) from None
        with readable(url):
            rows = parquet.read(columns=NARROW, use_threads=False)
        return rows, first_rows_of(parquet), digest
