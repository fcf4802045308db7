"""A look into some files before any work starts: is there text in the column that is asked for.

No single file decides: one that is empty, or holds nothing but nulls so far, says nothing.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import NamedTuple

import pyarrow as pa

from longattn.corpus.arrow import opened_arrow
from longattn.corpus.arrow_columns import Unreadable, column_path, column_type, text_problem
from longattn.corpus.columns import common_type, type_name, type_of
from longattn.corpus.parquet import opened_parquet
from longattn.corpus.reading import read_split
from longattn.corpus.records import Reason, Record, Split
from longattn.corpus.sources import Source
from longattn.storage.files import warn_if_slow
from longattn.text import did_you_mean

THREADS = 16  # requests under way at once
FOLDERS_CHECKED = 16  # of each category and column
FILES_CHECKED = 8  # of a folder, until one says something
LINES_CHECKED = 100  # of a file


class Finding(NamedTuple):
    """What a file says about its text column."""

    good: bool
    """There is text. False with no problem: the file does not say."""
    problem: str = ""


def check_sources(splits: Iterable[Split], sources: Sequence[Source] = ()) -> None:
    """Refuses a text column that is not there, or holds no strings, before any work starts.

    Looks into one file of each folder, of up to 16 folders for each category and column, and into up
    to 7 more of a folder until one has text: at the schema of Parquet or Arrow, else at records up
    to the first good one among the first 100. A folder is refused when a file says that the column
    is not there, and none has text in it.

    Args:
        splits: of all files.
        sources: those that they are of, whose setting a refusal names.

    Raises:
        ValueError: names the setting, the file, the column and the columns that are there.
        OSError: the storage failed.
    """
    folders = list(_folders(splits))
    with warn_if_slow("looking into the sources"), ThreadPoolExecutor(THREADS) as pool:
        for folder, problem in zip(folders, pool.map(_problem_of, folders), strict=True):
            if problem:
                raise ValueError(f"{_setting(folder[0], sources)}{problem}")


def _setting(split: Split, sources: Sequence[Source]) -> str:
    """The setting that says which column of a split is read; nothing where that is not known."""
    names = [
        f"sources.{i}.text_column"
        for i, source in enumerate(sources)
        if (source.category, source.text_column) == (split.category, split.text_column)
    ]
    return f"{' or '.join(names)}: " if names else ""


def column_types(
    splits: Iterable[Split],
    known: Mapping[str, str] | None = None,
    sources: Sequence[Source] = (),
) -> dict[str, str]:
    """The type of each column that goes with the documents, over all sources.

    Looks at the files that `check_sources` looks at: at schemas, else at their first 100 records.

    Args:
        known: types of columns that are decided; they stay.
        sources: those that the splits are of, whose setting a refusal names.

    Raises:
        ValueError: a column is in no file; names the setting, and what those that ask for it have.
        OSError: the storage failed.
    """
    decided = dict(known or {})
    asking = [split for split in splits if split.columns]
    wanted = {name for split in asking for name, _ in split.columns} - decided.keys()
    if not wanted:
        return decided
    places = [split for folder in _folders(asking) for split in folder]
    with warn_if_slow("looking into the sources"), ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(partial(_types_in, wanted=wanted), places))
    kinds: dict[str, list[str]] = defaultdict(list)
    for types in seen:
        for name, kind in types.items():
            kinds[name].append(kind)
    for name in sorted(wanted):
        if name not in kinds and places:
            asked = [
                (split, types)
                for split, types in zip(places, seen, strict=True)
                if name in dict(split.columns)
            ]
            of_lines = filter(None, (_columns_without(split, name) for split, _ in asked))
            there = sorted({*chain(*(types for _, types in asked)), *next(of_lines, ())})
            also = f"; there are {', '.join(map(repr, there[:12]))}" if there else ""
            also = did_you_mean(name, there) + also
            asking_for = [i for i, of in enumerate(sources) if name in getattr(of, "columns", ())]
            setting = " or ".join(f"sources.{i}.columns" for i in asking_for) or "sources.columns"
            raise ValueError(f"{setting}: {name!r} is in none of the files looked at{also}")
        decided[name] = common_type(kinds[name]) or "string"
    return decided


def _columns_without(split: Split, name: str) -> list[str]:
    """Columns of a file, as the refusal of a text column tells them that is not among them."""
    return re.findall("'([^']+)'", _look(replace(split, text_column=name)).problem)


def with_types(splits: Iterable[Split], types: Mapping[str, str]) -> list[Split]:
    """The splits with the types of their columns."""
    cache = {}
    typed = []
    for split in splits:
        if split.columns not in cache:
            cache[split.columns] = tuple((name, types[name]) for name, _ in split.columns)
        typed.append(replace(split, columns=cache[split.columns]) if split.columns else split)
    return typed


def _folders(splits: Iterable[Split]) -> Iterator[list[Split]]:
    """Some files of some folders of each category and column, of each format in turn."""
    folders: dict[tuple[str, str, str], dict[str, list[Split]]] = {}
    number: Counter[tuple[str, str]] = Counter()
    for split in splits:
        kind = (split.category, split.text_column)
        place = (*kind, split.path.rpartition("/")[0])
        if place not in folders:
            if number[kind] == FOLDERS_CHECKED:
                continue
            number[kind] += 1
            folders[place] = defaultdict(list)
        some = folders[place][split.format]
        if len(some) < FILES_CHECKED and (not some or some[-1].path != split.path):
            some.append(split)
    for by_format in folders.values():
        columns = [iter(some) for some in by_format.values()]
        turns = (
            split for _ in range(FILES_CHECKED) for column in columns for split in islice(column, 1)
        )
        yield list(islice(turns, FILES_CHECKED))


def _problem_of(files: Sequence[Split]) -> str:
    """Why no file of a folder has text in its column, if one says so and none has."""
    refused: tuple[Split, str] | None = None
    for split in files:
        good, problem = _look(split)
        if good:
            return ""
        refused = refused or ((split, problem) if problem else None)
    if not refused:
        return ""
    split, problem = refused
    meant = did_you_mean(split.text_column, re.findall("'([^']+)'", problem))
    return f"{split.source}: no text in column {split.text_column!r}: {problem}{meant}"


def _look(split: Split) -> Finding:
    if split.format in ("parquet", "arrow") and split.file_size:
        try:
            problem = text_problem(_schema(split), split.text_column)
        except Unreadable:
            pass  # it may be another kind of file
        else:
            if problem:
                return Finding(False, "" if problem[1] == "null" else problem[1])
            return Finding(True)
    problem_of_lines = ""
    for item in islice(read_split(split), LINES_CHECKED):
        if isinstance(item, Record):
            return Finding(True)
        missing = item.reason in (Reason.NO_TEXT_COLUMN, Reason.NOT_A_STRING)
        if missing and item.detail != "null" and not problem_of_lines:
            problem_of_lines = item.detail
    return Finding(False, problem_of_lines)


def _schema(split: Split) -> pa.Schema:
    if split.format == "parquet":
        with opened_parquet(split) as parquet:
            return parquet.schema_arrow
    with opened_arrow(split) as arrow:
        return arrow.schema


def _types_in(split: Split, wanted: Iterable[str]) -> dict[str, str]:
    """Types of the columns of a file: of the wanted ones, and of others that are there."""
    if split.format in ("parquet", "arrow") and split.file_size:
        try:
            schema = _schema(split)
        except Unreadable:
            return {}
        paths = {name: column_path(schema, name) for name in {*wanted, *schema.names}}
        return {name: type_name(column_type(schema, path)) for name, path in paths.items() if path}
    kinds: dict[str, list[str]] = defaultdict(list)
    for item in islice(read_split(split), LINES_CHECKED):
        if isinstance(item, Record):
            for name, value in item.extra.items():
                kinds[name].append(type_of(value))
    return {name: common_type(found) for name, found in kinds.items()}
