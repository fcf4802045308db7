"""The report of a run: one HTML file that shows what the selection did, from what the folder holds.

Reads the narrow columns of labelled and selected files, and whole rows only for the excerpts. What
grows with the corpus is binned or sampled before it goes into the page, which says so.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import TemplateError
from numpy.typing import NDArray

from longattn.config import Select
from longattn.reports.blindness import recorded_check
from longattn.reports.comparison import compared_selections
from longattn.reports.page import packed, render
from longattn.reports.repetition import Repetition
from longattn.reports.report_windows import (
    Windows,
    content_of_row,
    labelled_by_category,
    mean_heads,
    read_windows,
    selected_ids,
    window_length,
)
from longattn.reports.rule import cleared, heads_told
from longattn.reports.score_columns import Histogram, costs, further_figures, histogram
from longattn.reports.verdict import last_selection
from longattn.resume.origin import Origin, require_origin
from longattn.resume.score_tables import table_records
from longattn.selection.columns import columns_of
from longattn.selection.kept_heads import heads_of
from longattn.storage.digests import json_checksum
from longattn.storage.files import list_files, parallel, write_bytes
from longattn.storage.output_folder import OutputFolder
from longattn.storage.page_seal import with_seal
from longattn.storage.records import read_record
from longattn.storage.tables import open_parquet, own_files
from longattn.text import without_secrets

# Windows looked at, over all categories; of more, whole files are taken by their names, which are
# hashes. 1 M windows take 4 s.
MAX_ROWS = 4_000_000
PAGE_POINTS = 20_000  # windows whose scores go into the page, over all categories
HEAD_ROWS = 20_000  # windows behind the heat map of heads, over all categories
EXCERPT = 700  # characters of either end of a window
QUARANTINE_ROWS = 200_000


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


@dataclass(frozen=True)
class Quarantined:
    """Records of a category that were put aside for one reason."""

    category: str
    reason: str
    count: int
    examples: list[dict[str, Any]]
    """Up to three of their rows."""


def uniform_ds(length: int, min_distance: int) -> float:
    """DS of attention spread evenly over the past: the value that every score is read against.

    sum over rows n of (n - k + 1) / (n + 1), over L; 0.4034 at k = L / 4.
    """
    rows = np.arange(min_distance, length)
    return float(((rows - min_distance + 1) / (rows + 1)).sum() / length)


def write_report(output: str) -> str:
    """Write `<output>/report.html`; returns its URL.

    Raises ValueError where no run has written here, nothing was labelled, or its records are not what
    a run writes.
    """
    folder = OutputFolder(output)
    try:
        page = report_page(output)
    except (ArithmeticError, AttributeError, LookupError, TypeError, TemplateError) as error:
        raise ValueError(
            f"{without_secrets(output)}: its records make no report ({type(error).__name__}: {error}); "
            "`longattn verify` tells what of them is damaged"
        ) from error
    names = [*("run", "selection", "summary", "rates", "heads", "check")]
    names += [f"selections/{name}" for name in folder.selections() if name]
    of = {name: read_record(folder.record(name)) for name in names}
    told = {name: json_checksum(record) for name, record in of.items() if record is not None}
    write_bytes(folder.report, with_seal(page, told).encode())
    return folder.report


def report_page(output: str) -> str:
    """The page of `write_report` as text."""
    origin, folder = require_origin(output), OutputFolder(output)
    parts = origin.parts
    summary = read_record(folder.record("summary")) or {}
    name = last_selection(folder)
    selection = read_record(folder.selection_record(name))
    if selection is None:
        raise ValueError(f"{output}: nothing was selected here yet; `longattn select` comes first")
    select = selection["select"]
    settings_of = Select.model_validate(select)
    files = labelled_by_category(output)
    heads = heads_of(selection["heads"]) if "heads" in selection else None
    urls = [url for of in files.values() for url in of]
    columns = columns_of(folder, settings_of, urls, heads)
    ids = parallel(selected_ids, own_files(folder.selected_files(name)))
    kept_ids = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    categories = {
        name: read_windows(urls, MAX_ROWS // len(files), kept_ids, select, columns)
        for name, urls in sorted(files.items())
    }
    told = summary.get("categories", {})
    names = sorted({*categories, *told})
    chosen = selection["categories"]
    funnel = [_funnel(name, told.get(name, {}), chosen.get(name, {})) for name in names]
    window = parts.window if parts else window_length(categories.values())
    null = uniform_ds(parts.window, parts.min_distance) if parts else None
    total = sum(c["windows"] for c in chosen.values())
    figures = [_figures(name, categories[name], chosen) for name in sorted(categories)]
    further = {
        name: further_figures(
            folder,
            of.table,
            {"LDS": of.lds, "DS": of.ds},
            of.kept,
            _sample(len(of.ds), PAGE_POINTS),
        )
        for name, of in sorted(categories.items())
    }
    plain = Select(
        **{key: select[key] for key in ("name", "alpha", "standardize", "keep") if key in select}
    )
    by_lds = settings_of == plain
    data = {
        "categories": figures,
        "select": {**select, "fraction": _kept_fraction(chosen)},
        "by_lds": by_lds,
        "ranked_by": _name_of_rank(select),
        "cleared": cleared(settings_of),
        "has_threshold": select.get("overlap") != "prefer_distinct",
        "window": window,
        "output": shlex.quote(without_secrets(output)),
        "funnel": funnel,
        "null": null,
        "further": [of.histograms for of in further.values()],
        "heads": {
            n: mean_heads(urls, HEAD_ROWS // len(files)) for n, urls in sorted(files.items())
        },
        "rates": (read_record(folder.record("rates")) or {}).get("samples", []),
    }
    settings = origin.config.to_dict() if origin.config else {}
    return render(
        "report.html",
        script="report.js",
        data=data,
        title=f"Selection of {summary.get('output', output)}",
        summary=summary,
        unknown=origin.unknown,
        parts=_told_parts(origin),
        min_distance=parts.min_distance if parts else None,
        fingerprint=origin.fingerprint,
        settings=_flat({key: value for key, value in settings.items() if key != "sources"}),
        sources=settings.get("sources", []),
        select=select,
        by_lds=by_lds,
        null=null,
        funnel=funnel,
        any_sampled=any(row["sampled_out"] for row in funnel),
        keep=str(settings_of.keep),
        selection_name=name,
        where=[str(bound) for bound in settings_of.where],
        own_categories=sorted(settings_of.categories),
        heads_told=heads_told(
            settings_of, columns, read_record(folder.record("heads")), categories
        ),
        compared=compared_selections(folder),
        checks=recorded_check(folder, settings_of),
        column_of_rank=settings_of.rank_by,
        ranked_by=_name_of_rank(select),
        repetition={name: _repetition(windows) for name, windows in categories.items()},
        further=further,
        costs=costs(table_records(output), summary.get("scores", {})),
        command=f"longattn inspect {shlex.quote(without_secrets(output))}",
        totals=_totals(told, chosen),
        overlap=[{"category": name, **_overlap(categories[name])} for name in sorted(categories)],
        excerpts={name: _excerpts(categories[name]) for name in sorted(categories)},
        quarantine=_quarantine(output),
        looked_at=sum(len(c.ds) for c in categories.values()),
        total=total,
        points=sum(min(c.windows, _share(chosen)) for c in figures),
    )


def _told_parts(origin: Origin) -> dict[str, Any]:
    """What decides the scores, as far as it is known; the model where no settings name it."""
    if origin.parts is None:
        return {}
    return ({} if origin.is_run else {"model": origin.model}) | origin.parts.to_dict()


# --- reading -------------------------------------------------------------------------------------


def _quarantine(output: str) -> list[Quarantined]:
    """Reasons by category with how often, and up to three examples of each."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for url in list_files(OutputFolder(output).quarantine, ".parquet"):
        if counts.total() > QUARANTINE_ROWS:
            break
        with open_parquet(url) as parquet:
            for row in parquet.read().to_pylist():
                key = (row["category"], row["reason"])
                counts[key] += 1
                if len(examples[key]) < 3:
                    examples[key].append(row)
    return [Quarantined(*key, n, examples[key]) for key, n in sorted(counts.items())]


# --- what the page shows -------------------------------------------------------------------------


def _figures(name: str, windows: Windows, chosen: Mapping[str, Any]) -> CategoryFigures:
    sample = _sample(len(windows.ds), _share(chosen))
    few = windows.rows(sample)
    return CategoryFigures(
        name=name,
        windows=len(windows.ds),
        kept=int(windows.kept.sum()),
        scale={"ds": Scale.of(windows.ds), "variance": Scale.of(windows.variance)},
        threshold=chosen.get(name, {}).get("threshold"),
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


def _share(chosen: Mapping[str, Any]) -> int:
    """Windows of one category whose scores go into the page."""
    return PAGE_POINTS // max(len(chosen), 1)


def _sample(n: int, size: int) -> NDArray[np.int64]:
    """Positions of at most `size` of `n` windows in order of data_id: the same ones in every report."""
    if n <= size:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, size, replace=False))


def _name_of_rank(select: Mapping[str, Any]) -> str:
    """What the windows are ranked by, as people call it."""
    rank_by = select.get("rank_by", "lds")
    return "LDS" if rank_by == "lds" else str(rank_by)


def _kept_fraction(chosen: Mapping[str, Any]) -> float:
    windows = sum(c["windows"] for c in chosen.values())
    return sum(c["kept"] for c in chosen.values()) / windows if windows else 0.0


def _funnel(name: str, told: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "category": name,
        "records": told.get("records"),
        "bad": sum(told.get("quarantine", {}).values()) if told else None,
        "documents": told.get("documents"),
        "too_short": told.get("too_short"),
        "duplicates": told.get("duplicates"),
        "sampled_out": told.get("sampled_out"),
        "long": told["documents"] - told["too_short"] - told.get("duplicates", 0)
        if "documents" in told
        else None,
        **{
            key: chosen.get(key)
            for key in (
                "windows",
                "kept",
                "kept_tokens",
                "ds_mean",
                "ds_std",
                "du_mean",
                "du_std",
                "threshold",
            )
        },
        "out": chosen.get("out", {}),
    }


def _totals(told: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, int | None]:
    return {
        "documents": sum(c.get("documents", 0) for c in told.values()) if told else None,
        **{key: sum(c[key] for c in chosen.values()) for key in ("windows", "kept", "kept_tokens")},
    }


def _repetition(windows: Windows) -> Repetition | None:
    pairs = windows.table["recurrence_pairs"].fill_null(math.nan).to_numpy()
    return Repetition.of(pairs, windows.kept)


def _overlap(windows: Windows) -> dict[str, int]:
    """Of the kept windows of one document, the tokens that more than one of them holds."""
    kept = windows.table.filter(pa.array(windows.kept))
    kept = kept.sort_by([("document_id", "ascending"), ("token_start", "ascending")])
    documents = kept["document_id"].to_numpy()
    starts, stops = kept["token_start"].to_numpy(), kept["token_stop"].to_numpy()
    same = documents[1:] == documents[:-1]
    shared = np.maximum(0, stops[:-1] - starts[1:]) * same
    tokens = int((stops - starts).sum())
    return {
        "documents": len(np.unique(documents)),
        "kept": len(kept),
        "overlapping": int((shared > 0).sum()),
        "tokens": tokens,
        "unique": tokens - int(shared.sum()),
    }


def _excerpts(windows: Windows) -> list[dict[str, Any]]:
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
    shown = []
    for what, position in picks:
        if not len(position):
            continue
        row = windows.table.slice(int(position[0]), 1).to_pylist()[0]
        text = content_of_row(row["url"], row["row"])
        shown.append(
            {
                **row,
                "what": what,
                "lds": float(windows.lds[position[0]]),
                "length": len(text),
                "ranked": float(windows.ranked[position[0]]),
                "quoted_id": shlex.quote(row["data_id"]),
                "start": text[:EXCERPT],
                "end": text[-EXCERPT:] if len(text) > EXCERPT else "",
            }
        )
    return shown


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
