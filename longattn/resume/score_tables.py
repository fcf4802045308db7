"""What of a further score is there: its record, its tables, and the labelled files that lack one.

A table is whole or absent, and is never written again, so what is missing is what has no file. Beside
each labelled file lies `scores/<name>/<category>/<its name>` with the same rows in the same order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from longattn.errors import ConfigError, FolderError
from longattn.scoring.further_scores import TableParts
from longattn.settings.scores import Score, single_values
from longattn.settings.selection import Bound
from longattn.storage.digests import RowDigest
from longattn.storage.files import absolute, parallel
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.records import read_record, write_record
from longattn.storage.tables import (
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    DamagedFileError,
    file_metadata,
    is_own_file,
    open_parquet,
    own_files,
    readable,
)
from longattn.text import did_you_mean, without_secrets

Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class TableRecord:
    """`_longattn/scores/<name>.json`: whose numbers the tables of a score hold."""

    name: str
    parts: TableParts
    columns: tuple[str, ...]
    model: str | None = None
    """As the settings named it."""
    limits: Mapping[str, Mapping[str, Limits]] = field(default_factory=dict)
    """By category and column, between which values a window is scored."""

    @property
    def fingerprint(self) -> str:
        return self.parts.fingerprint

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fingerprint": self.fingerprint}


def read_table_record(output: str, name: str) -> TableRecord | None:
    """The record of a score; None where there is none. Raises FolderError for a broken one."""
    url = OutputFolder(output).score_record(name)
    try:
        stored = read_record(url)
        if stored is None:
            return None
        record = TableRecord(
            stored["name"],
            TableParts(**stored["parts"]),
            tuple(stored["columns"]),
            stored["model"],
            {
                category: {column: (low, high) for column, (low, high) in of.items()}
                for category, of in stored["limits"].items()
            },
        )
        if record.fingerprint != stored["fingerprint"]:
            raise ValueError("its fingerprint is not that of its parts")
        return record
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        shown = without_secrets(url)
        why = " ".join(str(error).split()).removeprefix(f"{shown}: damaged: ")
        raise FolderError(f"{shown}: damaged: {why}") from None


def table_records(output: str) -> list[TableRecord]:
    """Of every further score of a folder, by name."""
    records = (read_table_record(output, name) for name in OutputFolder(output).score_names())
    return [record for record in records if record is not None]


def require_same(
    output: str, name: str, record: TableRecord | None, parts: TableParts, remedy: str = ""
) -> None:
    """Raises FolderError where the tables of this name hold other numbers than these parts give.

    Args:
        remedy: what else helps, as the refusal tells it.
    """
    if record is not None and record.parts != parts:
        raise FolderError(
            f"{without_secrets(output)} holds a score {name!r} of other settings "
            f"({parts.differences(record.parts)}); give this one another name{remedy}"
        )


def write_table_record(output: str, record: TableRecord) -> None:
    write_record(OutputFolder(output).score_record(record.name), record.to_dict())


# --- what is there -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TablesThere:
    """The tables of one score beside the labelled files."""

    missing: list[str]
    """Labelled files without a table."""
    done: int
    """Labelled files with one."""
    damaged: dict[str, str]
    """Tables that are not what was written, and why."""
    orphans: list[str]
    """Tables of labelled files that are not there."""


def tables_there(
    folder: OutputFolder, record: TableRecord, labelled: Sequence[str], *, whole: bool = False
) -> TablesThere:
    """Compare the tables of a score with the labelled files.

    Args:
        labelled: URLs of longattn's own labelled files.
        whole: whether to read all rows, too, and compare them with their digests.

    Raises:
        FolderError: a table with another fingerprint than the record's.
    """
    wanted = {absolute(folder.score_file(record.name, url)): url for url in labelled}
    there = list(folder.score_files(record.name))
    whys = parallel(lambda url: table_damage(url, record, whole=whole), there)
    damaged = {url: why for url, why in zip(there, whys, strict=True) if why}
    done = {url for url in there if url in wanted and url not in damaged}
    return TablesThere(
        missing=[url for table, url in wanted.items() if table not in done],
        done=len(done),
        damaged=damaged,
        orphans=[url for url in there if url not in wanted and url not in damaged],
    )


def table_damage(url: str, record: TableRecord, *, whole: bool) -> str:
    """How a table is not what was written; empty where it is. Raises FolderError as `tables_there`."""
    try:
        with open_parquet(url) as parquet:
            if not is_own_file(parquet):
                return "not written by longattn"
            metadata, rows = file_metadata(parquet), parquet.metadata.num_rows
            found = metadata.get("fingerprint")
            if found != record.fingerprint:
                raise FolderError(
                    f"{without_secrets(url)}: of another fingerprint, {found}, than the score "
                    f"{record.name!r} has, {record.fingerprint}; remove it, or choose another name"
                )
            if metadata.get("rows") != rows:
                return f"{rows} rows, its footer tells of {metadata.get('rows')}"
            if whole:
                digest = RowDigest()
                with readable(url):
                    digest.add(parquet.read(use_threads=False))
                if digest.hex != metadata.get("digest"):
                    return "its rows are not those its footer tells of"
    except DamagedFileError as error:
        return error.why
    except FolderError:
        raise
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return ""


# --- which windows are scored --------------------------------------------------------------------


def column_places(
    output: str, scores: Sequence[Score], names: Iterable[str], carried: Sequence[str] = ()
) -> dict[str, str]:
    """Where each named column lies: the name of a score, or "" for the labelled files.

    Args:
        scores: of the settings, those that come before.
        carried: the user's own columns, which the labelled files will have.

    Raises:
        ConfigError: a column that is nowhere, or that holds no numbers.
    """
    folder = OutputFolder(output)
    places: dict[str, str] = {}
    for record in table_records(output):
        places |= dict.fromkeys(single_values(record.parts.kind, record.columns), record.name)
    for score in scores:
        places |= dict.fromkeys(single_values(score.kind, score.columns), score.name)
    schema = LABELLED
    for url in own_files(folder.labelled_files()):
        with suppress(DamagedFileError), open_parquet(url) as parquet:  # which a run sets aside
            if {*LABELLED.names} <= {*parquet.schema_arrow.names}:
                schema, carried = parquet.schema_arrow, ()
                break
    numbers = [f.name for f in schema if types.is_floating(f.type) or types.is_integer(f.type)]
    places |= dict.fromkeys([*numbers, *carried], "")
    for name in names:
        if name not in places and not (schema is LABELLED and EXTRA_SCORE_COLUMNS.fullmatch(name)):
            raise ConfigError(
                f"where: no column {name!r} of numbers in labelled files or earlier scores"
                f"{did_you_mean(name, places)}; there are {', '.join(sorted(places))}"
            )
    return {name: places.get(name, "") for name in names}


def narrow_columns(folder: OutputFolder, labelled: str, places: Mapping[str, str]) -> pa.Table:
    """data_id and the named columns of one labelled file, from it and its tables, as float64.

    Raises DamagedFileError for a table of other rows.
    """
    own = [name for name, place in places.items() if not place]
    with open_parquet(labelled) as parquet, readable(labelled):
        table = parquet.read(columns=["data_id", *own]).replace_schema_metadata()
    tables: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        if place:
            tables[place].append(name)
    for place, names in tables.items():
        url = folder.score_file(place, labelled)
        with open_parquet(url) as parquet, readable(url):
            beside = parquet.read(columns=["data_id", *names])
        if beside["data_id"] != table["data_id"]:
            raise DamagedFileError(url, "its rows are not those of the labelled file")
        for name in names:
            table = table.append_column(name, beside[name])
    schema = pa.schema([("data_id", pa.string()), *((name, pa.float64()) for name in places)])
    return table.select(schema.names).cast(schema)


def limits_of(
    folder: OutputFolder, labelled: Sequence[str], where: Sequence[Bound], places: Mapping[str, str]
) -> dict[str, Limits]:
    """Between which values the windows of some files are scored.

    Quantiles are ranks among all of these windows that have a value, as in `selection/where.py`, but
    that of equal values all are let through.
    """
    drawn = {bound.column: places[bound.column] for bound in where if bound.quantiles}
    values: dict[str, np.ndarray] = {}
    if drawn:
        tables = parallel(lambda url: narrow_columns(folder, url, drawn), labelled)
        values = {
            name: np.sort(np.concatenate([t[name].drop_null().to_numpy() for t in tables]))
            for name in drawn
        }
    limits: dict[str, Limits] = {}
    for bound in where:
        before = limits.get(bound.column, (None, None))
        low, high = [before[0], bound.min], [before[1], bound.max]
        if bound.quantiles and len(some := values[bound.column]):
            first, last = (math.floor(share * len(some) + 0.5) for share in bound.quantiles)
            low.append(float(some[min(first, len(some) - 1)]))
            high.append(float(some[max(last - 1, min(first, len(some) - 1))]))
        limits[bound.column] = (
            max((v for v in low if v is not None), default=None),
            min((v for v in high if v is not None), default=None),
        )
    return limits


def with_limits(
    output: str, record: TableRecord, where: Sequence[Bound], places: Mapping[str, str]
) -> TableRecord:
    """The record with limits for every category that has labelled files; those it had stay."""
    if not where:
        return record
    folder, files = OutputFolder(output), defaultdict(list)
    for url in own_files(folder.labelled_files()):
        files[category_of(url)].append(url)
    new = {
        category: limits_of(folder, urls, where, places)
        for category, urls in files.items()
        if category not in record.limits
    }
    return TableRecord(
        record.name, record.parts, record.columns, record.model, {**record.limits, **new}
    )


def within(table: pa.Table, limits: Mapping[str, Limits]) -> np.ndarray:
    """Which rows are within all limits, (rows,) bool; one without a value is not."""
    inside = np.ones(len(table), bool)
    for name, (low, high) in limits.items():
        values = table[name].to_numpy()  # null as NaN, which is within nothing
        inside &= values >= (-np.inf if low is None else low)
        inside &= values <= (np.inf if high is None else high)
    return inside
