"""A DuckDB database for as long as a `with` block: what outgrows its memory goes to the temporary folder.

What a killed process left there is removed by the next one. DuckDB reads no files and loads no
extensions here: rows come and go as Arrow tables.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb

from longattn.selection.threads import CORES

FOLDER = "longattn-select-"  # in the temporary folder
LOCKED = "held"  # file in it, locked by the process that uses the folder
MOST = 1 << 50  # bytes of memory, more than there are; DuckDB refuses numbers above 2^63
STARTING = 60.0  # seconds in which a process that has made its folder locks it


@contextmanager
def database(memory: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database that keeps about `memory` bytes in memory and the rest on disk."""
    with temporary_folder() as folder:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{min(memory, MOST)}B",
            "temp_directory": str(folder / "spilled"),
            "threads": CORES,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        }
        with duckdb.connect(":memory:", config=settings) as connection:
            connection.execute("SET enable_external_access = false")
            yield without_progress(connection)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the temporary one for as long as a block; a killed process's goes with the next."""
    _sweep()
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER) as folder,
        Path(folder, LOCKED).open("w") as locked,
    ):
        fcntl.flock(locked, fcntl.LOCK_EX)  # falls with this process
        yield Path(folder)


def folder_of(connection: duckdb.DuckDBPyConnection) -> Path:
    """The temporary folder of a database, for what is to go when it goes."""
    (spilled,) = connection.execute("SELECT current_setting('temp_directory')").fetchone() or ("",)
    return Path(spilled).parent


def without_progress(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """The connection, which no longer prints a bar to standard output in queries of some seconds."""
    return connection.execute("SET enable_progress_bar = false")


def small_table(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    columns: str,
    rows: Mapping[int, Iterable[float]],
) -> None:
    """Make a table of a few doubles for each category: `columns` are their names.

    A join with VALUES would take more than twice the time, since DuckDB knows of a table alone that
    each category is there once.
    """
    values = ", ".join(f"({of}, {', '.join(map(literal, row))})" for of, row in rows.items())
    doubles = ", ".join(f"{column} DOUBLE" for column in columns.split(", "))
    connection.execute(f"CREATE OR REPLACE TABLE {name} (category USMALLINT, {doubles})")
    if values:
        connection.execute(f"INSERT INTO {name} VALUES {values}")


def literal(value: float) -> str:
    """A double in SQL, the very same one: `0.1` alone would be a decimal."""
    return f"'{value!r}'::DOUBLE"


def _sweep() -> None:
    """Remove what killed processes of this user left in the temporary folder."""
    for held in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/{LOCKED}"):
        status = held.stat()
        if status.st_uid != os.getuid() or status.st_mtime > time.time() - STARTING:
            continue
        with held.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its process lives
                continue
            shutil.rmtree(held.parent, ignore_errors=True)
