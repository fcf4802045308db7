"""What the page of a report shows of each category: counts, histograms, overlaps, excerpts, quarantine."""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.reports.page import packed
from longattn.reports.repetition import Repetition
from longattn.reports.report_windows import Windows, content_of_row
from longattn.reports.score_columns import Histogram, histogram
from longattn.selection.selection_record import CategorySelection
from longattn.storage.files import list_files
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import open_parquet

EXCERPT = 700  # characters of either end of a window
QUARANTINE_ROWS = 200_000
OF_READING = ("records", "documents", "too_short", "duplicates", "sampled_out")
OF_SELECTION = (
    *("windows", "kept", "kept_tokens", "ds_mean", "ds_std", "du_mean", "du_std", "threshold"),
)


@dataclass(frozen=True)
class Scale:
    """What standardizes a score: of all windows, also where the page holds a sample."""

    mean: float
    deviation: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Scale:
        return cls(*(float(of(values)) for of in (np.mean, np.std, np.min, np.max)))


@dataclass(frozen=True)
class CategoryFigures:
    """Histograms of all windows of a category, and a sample of their scores for the live figures."""

    name: str
    windows: int
    kept: int
    scale: dict[str, Scale]
    threshold: float | None
    histograms: dict[str, Histogram]
    sampled: dict[str, dict[str, str]]
    """Arrays as `packed` gives them."""

    @classmethod
    def of(
        cls, name: str, windows: Windows, points: int, threshold: float | None
    ) -> CategoryFigures:
        """Of all windows, with the scores of so many of them at most."""
        scored = windows.rows(np.flatnonzero(np.isfinite(windows.ds)))
        few = scored.rows(sample(len(scored.ds), points))
        return cls(
            name=name,
            windows=len(windows.ds),
            kept=int(windows.kept.sum()),
            scale={"ds": Scale.of(scored.ds), "variance": Scale.of(scored.variance)},
            threshold=threshold,
            histograms={
                "ds": histogram(windows.ds, windows.kept),
                "variance": histogram(windows.variance, windows.kept),
                "ranked": histogram(windows.ranked, windows.kept),
            },
            sampled={
                "ds": packed(few.ds.astype(np.float32)),
                "variance": packed(few.variance.astype(np.float32)),
                "kept": packed(few.kept.astype(np.uint8)),
            },
        )


@dataclass(frozen=True)
class FunnelRow:
    """What became of the records, documents and windows of a category; None: not known."""

    category: str
    records: int | None
    bad: int | None
    documents: int | None
    too_short: int | None
    duplicates: int | None
    sampled_out: int | None
    long: int | None
    """Documents that gave windows."""
    windows: int | None
    kept: int | None
    kept_tokens: int | None
    ds_mean: float | None
    ds_std: float | None
    du_mean: float | None
    du_std: float | None
    threshold: float | None
    out: dict[str, int]
    """What each bound alone takes out."""

    @classmethod
    def of(
        cls, category: str, read: Mapping[str, Any], chosen: CategorySelection | None
    ) -> FunnelRow:
        """From what `summary.json` says of a category, and what its selection does."""
        long = None
        if "documents" in read:
            long = read["documents"] - read["too_short"] - read.get("duplicates", 0)
        return cls(
            category=category,
            bad=sum(read.get("quarantine", {}).values()) if read else None,
            long=long,
            out=chosen.out if chosen else {},
            **{name: read.get(name) for name in OF_READING},
            **{name: getattr(chosen, name, None) for name in OF_SELECTION},
        )


@dataclass(frozen=True)
class Overlap:
    """Tokens that more than one of the kept windows of a document hold."""

    category: str
    documents: int
    kept: int
    overlapping: int
    """Kept windows that share tokens with the one before."""
    tokens: int
    unique: int

    @classmethod
    def of(cls, category: str, windows: Windows) -> Overlap:
        kept = windows.table.filter(pa.array(windows.kept))
        kept = kept.sort_by([("document_id", "ascending"), ("token_start", "ascending")])
        documents = kept["document_id"].to_numpy()
        starts, stops = kept["token_start"].to_numpy(), kept["token_stop"].to_numpy()
        same = documents[1:] == documents[:-1]
        shared = np.maximum(0, stops[:-1] - starts[1:]) * same
        tokens = int((stops - starts).sum())
        return cls(
            category=category,
            documents=len(np.unique(documents)),
            kept=len(kept),
            overlapping=int((shared > 0).sum()),
            tokens=tokens,
            unique=tokens - int(shared.sum()),
        )


@dataclass(frozen=True)
class Excerpt:
    """A window at an end of the order, or where kept and dropped meet, with its text."""

    what: str
    window: Mapping[str, Any]
    """Its row of the narrow columns."""
    lds: float
    ranked: float
    length: int
    """Characters of its text."""
    start: str
    end: str

    @property
    def quoted_id(self) -> str:
        return shlex.quote(self.window["data_id"])


@dataclass(frozen=True)
class Quarantined:
    """Records of a category that were put aside for one reason."""

    category: str
    reason: str
    count: int
    examples: list[dict[str, Any]]
    """Up to three of their rows."""


def sample(n: int, size: int) -> NDArray[np.int64]:
    """Positions of at most `size` of `n` windows in order of data_id: the same ones in every report."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, size, replace=False))


def repetition(windows: Windows) -> Repetition | None:
    """How much the windows of a category repeat; None where that was not stored."""
    pairs = windows.table["recurrence_pairs"].fill_null(math.nan).to_numpy()
    return Repetition.of(pairs, windows.kept)


def excerpts(windows: Windows) -> Iterator[Excerpt]:
    """The highest and lowest window, and the two where kept and dropped meet, with their text."""
    order = np.lexsort((np.arange(len(windows.ranked)), -windows.ranked))
    order = order[np.isfinite(windows.ranked[order])]
    kept, dropped = order[windows.kept[order]], order[~windows.kept[order]]
    picks = [
        ("highest", order[:1]),
        ("lowest kept", kept[-1:]),
        ("highest dropped", dropped[:1]),
        ("lowest", order[-1:]),
    ]
    for what, position in picks:
        if not len(position):
            continue
        row = windows.table.slice(int(position[0]), 1).to_pylist()[0]
        text = content_of_row(row["url"], row["row"])
        yield Excerpt(
            what,
            window=row,
            lds=float(windows.lds[position[0]]),
            ranked=float(windows.ranked[position[0]]),
            length=len(text),
            start=text[:EXCERPT],
            end=text[-EXCERPT:] if len(text) > EXCERPT else "",
        )


def quarantined(folder: OutputFolder) -> list[Quarantined]:
    """Reasons by category with how often, and up to three examples of each."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for url in list_files(folder.quarantine, ".parquet"):
        if counts.total() > QUARANTINE_ROWS:
            break
        with open_parquet(url) as parquet:
            for row in parquet.read().to_pylist():
                key = (row["category"], row["reason"])
                counts[key] += 1
                if len(examples[key]) < 3:
                    examples[key].append(row)
    return [Quarantined(*key, n, examples[key]) for key, n in sorted(counts.items())]
