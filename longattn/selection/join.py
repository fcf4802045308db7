"""`longattn join`: a user's own numbers of windows become a score table.

A Parquet file with `data_id` and columns of numbers goes in; what it has of each labelled window is
written beside it, null where it has nothing. Rows are matched in a database that spills to disk.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from longattn.config import Select
from longattn.errors import ConfigError
from longattn.resume.fingerprint import read_run_record
from longattn.resume.score_tables import (
    TableRecord,
    read_table_record,
    require_same,
    table_records,
    tables_there,
    write_table_record,
)
from longattn.resume.shards import held
from longattn.scoring.further_scores import TableParts
from longattn.selection.database import database
from longattn.selection.score_table import batches
from longattn.settings.scores import TAKEN, check_score_name
from longattn.storage.digests import RowDigest
from longattn.storage.files import parallel, remove
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import (
    DamagedFileError,
    open_parquet,
    own_files,
    readable,
    write_table,
)
from longattn.text import without_secrets

log = logging.getLogger("longattn")

KIND = "joined"
SHOWN = 3  # ids that a line names
READ_ROWS = 1 << 17  # of the user's file at a time


@dataclass(frozen=True)
class Joined:
    """What became of a user's rows."""

    name: str
    """Of the score."""
    columns: tuple[str, ...]
    """Of the tables."""
    left_out: tuple[str, ...]
    """Columns of the file that hold no numbers, or are the index of a pandas frame."""
    rows: int
    """Of the file."""
    unknown: int
    """Rows of the file whose window is not labelled here."""
    windows: int
    """Labelled."""
    missing: int
    """Labelled windows that the file has nothing of."""
    tables: int
    """Written now."""


def join(output: str, file: str, name: str | None = None, *, replace: bool = False) -> Joined:
    """Make a table of the numbers in a Parquet file; the same again writes what is missing.

    A single column of numbers becomes `<name>`, of several each `<name>_<column>`.

    Args:
        output: folder with labelled windows.
        file: local or any fsspec URL.
        name: of the score; None: the file's, without its suffix.
        replace: whether tables of other numbers that were joined under this name give way. Killed in
            the middle, the score lacks tables, so that nothing is selected by it, until this is
            called again.

    Raises:
        ValueError: one line; a name or a column that cannot be, ids that are there twice or null, a
            number that is infinite, ids of which none is labelled, or other numbers under the name.
    """
    given, name = name, _stem(file) if name is None else name
    try:
        check_score_name(name)
    except ValueError as error:
        if given is None:
            raise ConfigError(
                f"{without_secrets(file)}: its name is no name of a score ({error}): give --name"
            ) from None
        raise ConfigError(f"--name {name}: {error}") from None
    folder = OutputFolder(output)
    labelled = own_files(folder.labelled_files())
    if not labelled:
        raise ConfigError(f"{without_secrets(folder.labelled)}: no labelled windows to join to")
    _require_parquet(file)
    with (
        held(output),
        open_parquet(file) as parquet,
        readable(file),
        database(Select().memory) as connection,
    ):
        columns, left_out = _columns(parquet.schema_arrow, name, file)
        _require_free(output, name, list(columns.values()))
        digest = _insert_given(connection, parquet, columns, file)
        _insert_labelled(connection, labelled)
        rows, unknown, windows, missing = _counts(connection, file)
        run = read_run_record(output)
        parts = TableParts(
            KIND,
            run.parts.window if run else 0,
            {"rows": digest.rows, "digest": digest.hex, "columns": list(columns)},
        )
        record = TableRecord(name, parts, tuple(columns.values()))
        _make_way(folder, read_table_record(output, name), record, replace=replace)
        write_table_record(output, record)
        todo = set(tables_there(folder, record, labelled).missing)
        for url, table in _tables(connection, labelled, list(columns.values())):
            if url in todo:
                scored = len(table) - table[record.columns[0]].null_count
                told = {"fingerprint": record.fingerprint, "score": name, "scored": scored}
                write_table(folder.score_file(name, url), table, told)
    return Joined(name, record.columns, left_out, rows, unknown, windows, missing, len(todo))


def _stem(file: str) -> str:
    return PurePosixPath(file.partition("?")[0]).stem


def _require_parquet(file: str) -> None:
    """Raises ConfigError where there is no file, or one of another kind."""
    wanted = "one with data_id and columns of numbers is wanted"
    try:
        with open_parquet(file):
            pass
    except FileNotFoundError:
        raise ConfigError(f"{without_secrets(file)}: no such file; {wanted}") from None
    except IsADirectoryError:
        raise ConfigError(f"{without_secrets(file)}: a folder, not a file; {wanted}") from None
    except DamagedFileError:
        raise ConfigError(f"{without_secrets(file)}: not a Parquet file; {wanted}") from None


def _make_way(
    folder: OutputFolder, there: TableRecord | None, record: TableRecord, *, replace: bool
) -> None:
    """Remove joined tables of other numbers, where that is asked for; else raises FolderError.

    The record is left to be written over: whatever a kill leaves is of one record, and not whole.
    """
    joined = there is not None and there.parts.kind == KIND
    if there is None or there.parts == record.parts or not (joined and replace):
        remedy = ", or replace it: --replace" if joined else ""
        require_same(folder.url, record.name, there, record.parts, remedy)
        return
    for url in own_files(folder.score_files(record.name)):
        remove(url)


def _columns(schema: pa.Schema, name: str, file: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Column of the file -> column of the tables, and those that hold no numbers."""
    shown = without_secrets(file)
    if "data_id" not in schema.names:
        raise ConfigError(f"{shown}: no column data_id; there are {', '.join(schema.names)}")
    others = [field for field in schema if field.name != "data_id"]
    index = [field.name for field in others if field.name in _pandas_index(schema)]
    numbers = [
        field.name
        for field in others
        if field.name not in index
        and (types.is_floating(field.type) or types.is_integer(field.type))
    ]
    left_out = tuple(field.name for field in others if field.name not in numbers)
    if not numbers:
        beside = "".join(f" and the index of pandas, {name}" for name in index)
        raise ConfigError(f"{shown}: no column of numbers beside data_id{beside}")
    if len(numbers) == 1:
        return {numbers[0]: name}, left_out
    columns = {column: column if column == name else f"{name}_{column}" for column in numbers}
    for column, made in columns.items():
        if not made.isidentifier() or TAKEN.fullmatch(made):
            raise ConfigError(f"{shown}: column {column!r} would be {made!r}: rename it")
    return columns, left_out


def _pandas_index(schema: pa.Schema) -> set[str]:
    """Columns that pandas wrote for the index of a frame."""
    unnamed = {name for name in schema.names if re.fullmatch(r"__index_level_\d+__", name)}
    try:
        told = (schema.pandas_metadata or {}).get("index_columns", [])
        return unnamed | {name for name in told if isinstance(name, str)}
    except (ValueError, TypeError, AttributeError):  # what another program has put there
        return unnamed


def _require_free(output: str, name: str, columns: list[str]) -> None:
    """Raises ConfigError where another score has a column of this name."""
    others = {c: r.name for r in table_records(output) for c in r.columns if r.name != name}
    for column in columns:
        if column in others:
            raise ConfigError(
                f"--name {name}: the score {others[column]!r} has a column {column!r} already"
            )


def _insert_given(
    connection: duckdb.DuckDBPyConnection,
    parquet: pq.ParquetFile,
    columns: Mapping[str, str],
    file: str,
) -> RowDigest:
    """Read the user's rows into a table `given`; returns their digest."""
    names = list(columns.values())
    told = ", ".join(f'"{name}" DOUBLE' for name in names)
    connection.execute(f"CREATE TABLE given (data_id VARCHAR, {told})")
    schema = pa.schema([("data_id", pa.string()), *((name, pa.float64()) for name in names)])
    digest = RowDigest()
    for batch in parquet.iter_batches(READ_ROWS, columns=["data_id", *columns]):
        some = pa.table(batch).select(["data_id", *columns])
        some = some.rename_columns(schema.names).replace_schema_metadata()
        if some["data_id"].null_count:
            raise ConfigError(f"{without_secrets(file)}: rows without a data_id")
        table = some.cast(schema, safe=False)
        for name in names:
            if pc.any(pc.is_inf(table[name])).as_py():
                raise ConfigError(f"{without_secrets(file)}: {name} has numbers that are infinite")
            values = pc.if_else(pc.is_nan(table[name]), None, table[name])  # no number is no number
            table = table.set_column(table.column_names.index(name), name, values)
        digest.add(table)
        connection.register("some_rows", table)
        connection.execute("INSERT INTO given FROM some_rows")
        connection.unregister("some_rows")
    return digest


def _insert_labelled(connection: duckdb.DuckDBPyConnection, labelled: list[str]) -> None:
    """Read the ids of labelled files into a table `windows`, with the place of each."""
    connection.execute("CREATE TABLE windows (data_id VARCHAR, file INTEGER, row INTEGER)")
    step = 1024
    for start in range(0, len(labelled), step):
        ids = parallel(_ids, labelled[start : start + step])
        table = pa.concat_tables(
            [
                pa.table(
                    {
                        "data_id": column,
                        "file": pa.array([start + i] * len(column), pa.int32()),
                        "row": pa.array(range(len(column)), pa.int32()),
                    }
                )
                for i, column in enumerate(ids)
            ]
        )
        connection.register("some_rows", table)
        connection.execute("INSERT INTO windows FROM some_rows")
        connection.unregister("some_rows")


def _ids(url: str) -> pa.ChunkedArray:
    with open_parquet(url) as parquet, readable(url):
        return parquet.read(columns=["data_id"])["data_id"]


def _counts(connection: duckdb.DuckDBPyConnection, file: str) -> tuple[int, int, int, int]:
    """Rows given, those unknown here, windows labelled, and those without a row; refuses doubles."""

    def found(query: str) -> Any:
        return connection.execute(query).fetchall()

    twice = found(
        f"SELECT data_id FROM given GROUP BY data_id HAVING count(*) > 1 ORDER BY 1 LIMIT {SHOWN}"
    )
    if twice:
        ids = ", ".join(data_id for (data_id,) in twice)
        raise ConfigError(f"{without_secrets(file)}: ids that are there more than once: {ids}")
    rows, windows = (found(f"SELECT count(*) FROM {of}")[0][0] for of in ("given", "windows"))
    unknown, example = found(
        "SELECT count(*), min(data_id) FROM given ANTI JOIN windows USING (data_id)"
    )[0]
    if unknown == rows:
        raise ConfigError(
            f"{without_secrets(file)}: none of its {rows} ids is labelled here, as {example}"
        )
    missing, lacking = found(
        "SELECT count(*), min(data_id) FROM windows ANTI JOIN given USING (data_id)"
    )[0]
    if unknown:
        log.warning("%d of %d ids are not labelled here, as %s", unknown, rows, example)
    if missing:
        log.warning("%d of %d labelled windows get null, as %s", missing, windows, lacking)
    return rows, unknown, windows, missing


def _tables(
    connection: duckdb.DuckDBPyConnection, labelled: list[str], names: list[str]
) -> Iterator[tuple[str, pa.Table]]:
    """The table of each labelled file, in the order of its rows."""
    columns = ", ".join(f'"{name}"' for name in names)
    query = (
        f"SELECT file, windows.data_id AS data_id, {columns} FROM windows "
        "LEFT JOIN given ON windows.data_id = given.data_id ORDER BY file, row"
    )
    schema = pa.schema([("data_id", pa.string()), *((name, pa.float64()) for name in names)])
    waiting: list[pa.Table] = []
    at: int | None = None

    def whole() -> tuple[str, pa.Table]:
        assert at is not None
        return labelled[at], pa.concat_tables(waiting).select(schema.names).cast(schema)

    for some in batches(connection, query):
        ends = pc.run_end_encode(some["file"].combine_chunks())
        start = 0
        for file, stop in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
            if at is not None and file != at:
                yield whole()
                waiting.clear()
            at = file
            waiting.append(some.slice(start, stop - start))
            start = stop
    if waiting:
        yield whole()
