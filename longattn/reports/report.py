"""The report of a run: one HTML file that shows what the selection did, from what the folder holds.

Reads the narrow columns of labelled and selected files, and whole rows only for the excerpts. What
grows with the corpus is binned or sampled before it goes into the page, which says so.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import TemplateError

from longattn.config import Select
from longattn.reports.blindness import recorded_check
from longattn.reports.comparison import compared_selections
from longattn.reports.page import render
from longattn.reports.report_figures import (
    CategoryFigures,
    FunnelRow,
    Overlap,
    excerpts,
    quarantined,
    repetition,
    sample,
)
from longattn.reports.report_windows import (
    labelled_by_category,
    mean_heads,
    read_windows,
    selected_ids,
    window_length,
)
from longattn.reports.rule import cleared, heads_told
from longattn.reports.score_columns import costs, further_figures
from longattn.reports.verdict import last_selection
from longattn.resume.origin import Origin, require_origin, unfinished
from longattn.resume.score_tables import table_records
from longattn.selection.kept_heads import kept_choices
from longattn.selection.selection_record import SelectionRecord
from longattn.storage.digests import json_checksum
from longattn.storage.files import parallel, write_bytes
from longattn.storage.output_folder import OutputFolder
from longattn.storage.page_seal import with_seal
from longattn.storage.records import read_record
from longattn.storage.tables import own_files
from longattn.text import without_secrets

# Windows looked at, over all categories; of more, whole files are taken by their names, which are
# hashes. 1 M windows take 4 s.
MAX_ROWS = 4_000_000
PAGE_POINTS = 20_000  # windows whose scores go into the page, over all categories
HEAD_ROWS = 20_000  # windows behind the heat map of heads, over all categories


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
    selection = SelectionRecord.read(folder, name)
    if selection is None:
        raise ValueError(f"{output}: nothing was selected here yet; `longattn select` comes first")
    select, chosen = selection.select, selection.categories
    files = labelled_by_category(output)
    columns = selection.columns(folder, [url for of in files.values() for url in of])
    ids = parallel(selected_ids, own_files(folder.selected_files(name)))
    kept_ids = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    windows = {
        name: read_windows(urls, MAX_ROWS // len(files), kept_ids, select, columns)
        for name, urls in sorted(files.items())
    }
    points = PAGE_POINTS // max(len(chosen), 1)
    figures = [
        CategoryFigures.of(name, of, points, chosen[name].threshold if name in chosen else None)
        for name, of in windows.items()
    ]
    read = summary.get("categories", {})
    funnel = [
        FunnelRow.of(name, read.get(name, {}), chosen.get(name))
        for name in sorted({*windows, *read})
    ]
    further = {
        name: further_figures(
            folder,
            of.table,
            {"LDS": of.lds, "DS": of.ds},
            of.kept,
            sample(len(of.ds), PAGE_POINTS),
        )
        for name, of in windows.items()
    }
    plain = Select(
        name=select.name, alpha=select.alpha, standardize=select.standardize, keep=select.keep
    )
    rule, by_lds = select.record(), select == plain
    ranked_by = "LDS" if select.rank_by == "lds" else select.rank_by
    null = uniform_ds(parts.window, parts.min_distance) if parts else None
    totals = {
        key: sum(getattr(of, key) for of in chosen.values())
        for key in ("windows", "kept", "kept_tokens")
    }
    share = totals["kept"] / totals["windows"] if totals["windows"] else 0.0
    data = {
        "categories": figures,
        "select": {**rule, "fraction": share},
        "by_lds": by_lds,
        "ranked_by": ranked_by,
        "cleared": cleared(select),
        "has_threshold": select.overlap != "prefer_distinct",
        "window": parts.window if parts else window_length(windows.values()),
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
        unfinished=unfinished(output),
        parts=_parts(origin),
        min_distance=parts.min_distance if parts else None,
        fingerprint=origin.fingerprint,
        settings=_flat({key: value for key, value in settings.items() if key != "sources"}),
        sources=settings.get("sources", []),
        select=rule,
        by_lds=by_lds,
        ranked_by=ranked_by,
        null=null,
        funnel=funnel,
        any_sampled=any(row.sampled_out for row in funnel),
        keep=str(select.keep),
        selection_name=name,
        where=[str(bound) for bound in select.where],
        own_categories=sorted(select.categories),
        heads_told=heads_told(
            select, columns, kept_choices(folder, select) if select.chooses_heads else {}, windows
        ),
        compared=compared_selections(folder),
        checks=recorded_check(folder, select),
        column_of_rank=select.rank_by,
        repetition={name: repetition(of) for name, of in windows.items()},
        further=further,
        costs=costs(table_records(output), summary.get("scores", {})),
        command=f"longattn inspect {shlex.quote(without_secrets(output))}",
        documents=sum(of.get("documents", 0) for of in read.values()) if read else None,
        totals=totals,
        overlap=[Overlap.of(name, of) for name, of in windows.items()],
        excerpts={name: list(excerpts(of)) for name, of in windows.items()},
        quarantine=quarantined(folder),
        looked_at=sum(of.windows for of in figures),
        total=totals["windows"],
        points=sum(min(of.windows, points) for of in figures),
    )


def _parts(origin: Origin) -> dict[str, Any]:
    """What decides the scores, as far as it is known; the model where no settings name it."""
    if origin.parts is None:
        return {}
    return ({} if origin.is_run else {"model": origin.model}) | origin.parts.to_dict()


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
