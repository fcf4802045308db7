"""Further scores for people: how each is distributed, how they agree, what `where` saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.resume.score_tables import TableRecord, table_records
from longattn.settings.scores import single_values
from longattn.storage.files import READERS, parallel
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import open_parquet

Floats = NDArray[np.float64]
BINS = 48


@dataclass(frozen=True)
class Histogram:
    """Counts of kept and dropped windows between edges."""

    edges: list[float]
    kept: list[int]
    dropped: list[int]


@dataclass(frozen=True)
class ColumnFigures:
    """Of a column of a score table; None where no window has a number."""

    scored: int
    mean: float | None
    deviation: float | None


@dataclass(frozen=True)
class FurtherFigures:
    """The further scores of the windows of a category."""

    histograms: dict[str, Histogram]
    columns: dict[str, ColumnFigures]
    agreement: dict[str, dict[str, float | None]]
    """Rank correlation of each column with each."""


@dataclass(frozen=True)
class ScoreCosts:
    """What a further score took, as far as the summaries of runs tell."""

    name: str
    kind: str
    model: str | None
    dtype: str | None
    own_ids: bool
    """Whether its model has its own ids of the text."""
    each: float | None
    """Seconds a window."""
    scored: int | None
    windows: int | None
    saved: float | None
    """Seconds that `where` saved."""


def score_columns(folder: OutputFolder, windows: pa.Table) -> dict[str, Floats]:
    """Columns of all score tables for some windows, NaN where there is no number.

    Args:
        windows: with `url` and `row` of each in its labelled file.
    """
    urls = windows["url"].cast(pa.string()).combine_chunks().dictionary_encode()
    names, of = urls.dictionary.to_pylist(), urls.indices.to_numpy()
    rows = windows["row"].to_numpy()
    order = np.argsort(of, kind="stable")
    bounds = np.searchsorted(of[order], np.arange(len(names) + 1))
    found: dict[str, Floats] = {}
    for record in table_records(folder.url):
        scalars = single_values(record.parts.kind, record.columns)
        columns = {name: np.full(len(windows), np.nan) for name in scalars}
        tables = [folder.score_file(record.name, url) for url in names]
        for start in range(0, len(tables), READERS):
            some = parallel(partial(_table, names=scalars), tables[start : start + READERS])
            for place, table in enumerate(some, start):
                mine = order[bounds[place] : bounds[place + 1]]
                if table is not None:
                    for name in scalars:
                        columns[name][mine] = table[name].to_numpy()[rows[mine]]
        found |= columns
    return found


def _table(url: str, names: Sequence[str]) -> pa.Table | None:
    try:
        with open_parquet(url) as parquet:
            return parquet.read(columns=list(names))
    except FileNotFoundError:  # not computed yet
        return None


def further_figures(
    folder: OutputFolder,
    windows: pa.Table,
    scores: Mapping[str, Floats],
    kept: NDArray[np.bool_],
    sample: NDArray[np.int64],
) -> FurtherFigures:
    """Of each column of a score table its distribution, and how they agree with each other.

    Args:
        windows: as `score_columns` takes them.
        scores: of the labelled files, to compare with.
        kept: which windows were.
        sample: places of the windows that are compared.
    """
    columns = score_columns(folder, windows)
    histograms, figures = {}, {}
    for name, values in columns.items():
        there = ~np.isnan(values)
        some = values[there]
        if not len(some):
            figures[name] = ColumnFigures(0, None, None)
            continue
        figures[name] = ColumnFigures(len(some), float(some.mean()), float(some.std()))
        histograms[name] = histogram(some, kept[there])
    compared = {name: values[sample] for name, values in {**scores, **columns}.items()}
    return FurtherFigures(histograms, figures, agreement(compared) if columns else {})


def histogram(values: Floats, kept: NDArray[np.bool_]) -> Histogram:
    """Of those of some values that are numbers, in up to BINS bins."""
    there = np.isfinite(values)
    values, kept = values[there], kept[there]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low == high:
        low, high = low - abs(low) * 0.01 - 1e-12, high + abs(high) * 0.01 + 1e-12
    edges = np.linspace(low, high, min(BINS, max(8, int(math.sqrt(len(values)) * 2))) + 1)
    kept_b, dropped_b = (np.histogram(values[of], edges)[0].tolist() for of in (kept, ~kept))
    return Histogram(edges.tolist(), kept_b, dropped_b)


def rank_correlation(a_n: Floats, b_n: Floats) -> float | None:
    """Spearman's, over the windows that have both; None of fewer than three, or a constant."""
    both = ~(np.isnan(a_n) | np.isnan(b_n))
    if both.sum() < 3:
        return None
    a, b = (ranks(x[both]) for x in (a_n, b_n))
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else None


def ranks(values: Floats) -> Floats:
    """From 0, ties at their mean rank."""
    _, of, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return ((last - count + last - 1) / 2)[of]


def agreement(columns: Mapping[str, Floats]) -> dict[str, dict[str, float | None]]:
    """Rank correlations of each column with each."""
    return {a: {b: rank_correlation(columns[a], columns[b]) for b in columns} for a in columns}


def costs(
    records: Sequence[TableRecord], work: Mapping[str, Mapping[str, Any]]
) -> list[ScoreCosts]:
    """Of each score: what its model is, how many windows have a number, and what `where` saved.

    Args:
        work: by score, what the summaries of its runs add up to.
    """
    told = []
    for record in records:
        of = work.get(record.name, {})
        scored, windows, seconds = (of.get(key) for key in ("scored", "windows", "seconds"))
        each = seconds / scored if scored and seconds else None
        told.append(
            ScoreCosts(
                name=record.name,
                kind=record.parts.kind,
                model=record.model,
                dtype=record.parts.dtype,
                own_ids=record.parts.tokenizer is not None,
                each=each,
                scored=scored,
                windows=windows,
                saved=each * (windows - scored) if each and windows and scored < windows else None,
            )
        )
    return told
