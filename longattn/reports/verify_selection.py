"""What `verify` checks of the selection: its rows, figures and files against scores and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longattn.config import Select
from longattn.reports.verify_records import RecordChecks
from longattn.reports.verify_rows import WindowTables
from longattn.selection.select_windows import choose_windows
from longattn.storage.digests import json_checksum
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import file_metadata, open_parquet


def selection_findings(
    folder: OutputFolder, tables: WindowTables, select: Select, records: RecordChecks
) -> Iterator[str]:
    """Findings on what was selected."""
    stored = records.selection or {}
    yield from _files(folder, tables, stored)
    connection = tables.connection
    (strange,) = connection.execute(
        "SELECT count(*) FROM windows WHERE "
        "coalesce(NOT (isfinite(ds) AND isfinite(variance) AND isfinite(rank)), true)"
    ).fetchone() or (0,)
    if strange:
        yield f"{folder.url}: {strange} windows have no finite scores: what they select is not known"
        return
    chosen = choose_windows(tables.scores, select, folder.url)
    yield from _rows(folder.selected, tables)
    right = {name: of.to_dict() for name, of in chosen.items()}
    yield from _figures(folder.record("selection"), stored.get("categories"), right)
    summary = records.summary or {}
    if "selection" in summary:
        if summary["selection"] != json_checksum(stored):
            yield f"{folder.record('summary')}: it tells of another selection.json"
        keys = {key for of in right.values() for key in of}
        told = {
            name: {key: of[key] for key in keys & of.keys()}
            for name, of in summary["categories"].items()
            if "kept" in of
        }
        yield from _figures(folder.record("summary"), told, right)
    elif summary and any("kept" in of for of in summary["categories"].values()):
        yield f"{folder.record('summary')}: figures of a selection that it does not name"


def _files(folder: OutputFolder, tables: WindowTables, stored: dict[str, Any]) -> Iterator[str]:
    """Whether the selected files are those of selection.json, and of its settings."""
    listed, found = (
        sorted(url.rpartition("/selected/")[2] for url in urls)  # the folder may have moved
        for urls in (stored.get("files", []), folder.selected_files())
    )
    for name in sorted({*listed} - {*found}):
        yield f"{folder.selected}/{name}: not there, though selection.json lists it"
    for name in sorted({*found} - {*listed}):
        yield f"{folder.selected}/{name}: the selected files are not those of selection.json"
    digests = set()
    for url in tables.urls["labelled"]:
        with open_parquet(url) as parquet:
            digests.add(file_metadata(parquet).get("digest"))
    for url in tables.urls["selected"]:
        with open_parquet(url) as parquet:
            metadata = file_metadata(parquet)
        if metadata.get("select") != stored.get("select"):
            yield f"{url}: its footer tells of other settings than selection.json"
        if not digests.issuperset(metadata.get("labelled", [])):
            yield f"{url}: its footer tells of labelled files that are not there"


def _rows(selected: str, tables: WindowTables) -> Iterator[str]:
    """The rows of the selected files against the view `kept` and the labelled rows."""
    connection = tables.connection
    for query, what in (
        ("FROM kept ANTI JOIN selected USING (data_id)", "should be selected and are not"),
        ("FROM selected ANTI JOIN kept USING (data_id)", "should not be selected"),
        (
            "FROM selected JOIN kept USING (data_id) WHERE selected.lds IS DISTINCT FROM kept.lds",
            "have another LDS",
        ),
        (
            "FROM selected JOIN labelled USING (category, data_id) WHERE selected.low <> labelled.low "
            "OR selected.high <> labelled.high",
            "have other values than the labelled ones",
        ),
    ):
        n, first = connection.execute(f"SELECT count(*), min(data_id) {query}").fetchone() or (
            0,
            "",
        )
        if n:
            yield f"{selected}: {n} windows {what}: {first} ..."


def _figures(url: str, told: Any, right: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Counts, moments and thresholds of each category against those of the rows."""
    if not isinstance(told, dict) or told.keys() != right.keys():
        yield f"{url}: it does not tell of the categories {', '.join(right)}"
        return
    for category, figures in right.items():
        for name, value in figures.items():
            if told[category].get(name) != value:
                yield (
                    f"{url}: category {category}: {name} {told[category].get(name)}, "
                    f"the rows give {value}"
                )
