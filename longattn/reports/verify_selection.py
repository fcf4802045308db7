"""What `verify` checks of the selection: its rows, figures and files against scores and settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longattn.reports.verify_records import RecordChecks
from longattn.reports.verify_rows import WindowTables
from longattn.selection.columns import columns_of
from longattn.selection.kept_heads import heads_of, kept_heads
from longattn.selection.score_table import ScoreTable
from longattn.selection.select_windows import choose_windows
from longattn.storage.digests import json_checksum
from longattn.storage.output_folder import OutputFolder, selection_of
from longattn.storage.tables import file_metadata, open_parquet
from longattn.text import counted


def selection_findings(
    folder: OutputFolder, tables: WindowTables, name: str | None, records: RecordChecks
) -> Iterator[str]:
    """Findings on what one selection kept: it is made again from the labelled files."""
    select, stored = records.selections[name]
    yield from _files(folder, tables, name, stored)
    heads = kept_heads(folder, select) if select.chooses_heads else None
    if heads is not None and heads_of(stored.get("heads", {})) != heads:
        yield f"{folder.selection_record(name)}: other heads than heads.json"
    for kind, of in (("VIEW", "ranked"), ("TABLE", "windows"), ("TABLE", "kept")):
        tables.connection.execute(f"DROP {kind} IF EXISTS {of}")
    sizes = folder.labelled_files()
    with ScoreTable(tables.connection, columns_of(folder, select, sizes, heads)) as table:
        table.insert_labelled(folder.url, sizes)
        chosen = choose_windows(table, select, folder.url)
    yield from _rows(folder.selection(name), tables, name)
    right = {category: of.to_dict() for category, of in chosen.items()}
    yield from _figures(folder.selection_record(name), stored.get("categories"), right)
    summary = records.summary or {}
    if "selection" in summary and summary.get("selection_name") == name:
        if summary["selection"] != json_checksum(stored):
            yield f"{folder.record('summary')}: it tells of another selection.json"
        keys = {key for of in right.values() for key in of}
        told = {
            category: {key: of[key] for key in keys & of.keys()}
            for category, of in summary["categories"].items()
            if "kept" in of
        }
        yield from _figures(folder.record("summary"), told, right)


def summary_findings(folder: OutputFolder, records: RecordChecks) -> Iterator[str]:
    """Findings on a summary that tells of a selection which is not there."""
    summary = records.summary or {}
    if "selection" not in summary:
        if any("kept" in of for of in summary.get("categories", {}).values()):
            yield f"{folder.record('summary')}: figures of a selection that it does not name"
        return
    name = summary.get("selection_name")
    if name not in records.selections and folder.selection_record(name) not in records.broken:
        yield f"{folder.record('summary')}: it tells of a selection that is not there"


def _files(
    folder: OutputFolder, tables: WindowTables, name_of: str | None, stored: dict[str, Any]
) -> Iterator[str]:
    """Whether the selected files are those of selection.json, and of its settings."""
    listed, found = (
        sorted(url.rpartition("/selected/")[2] for url in urls)  # the folder may have moved
        for urls in (stored.get("files", []), folder.selected_files(name_of))
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
        if selection_of(url) != name_of:
            continue
        with open_parquet(url) as parquet:
            metadata = file_metadata(parquet)
        if any(metadata.get(key) != stored.get(key) for key in ("select", "heads")):
            yield f"{url}: its footer tells of other settings than selection.json"
        if not digests.issuperset(metadata.get("labelled", [])):
            yield f"{url}: its footer tells of labelled files that are not there"


def _rows(selected: str, tables: WindowTables, name: str | None) -> Iterator[str]:
    """The rows of the files of one selection against the view `kept` and the labelled rows."""
    connection = tables.connection
    connection.execute(
        f"CREATE OR REPLACE VIEW chosen AS FROM selected WHERE selection = '{name or ''}'"
    )
    for query, what in (
        ("FROM kept ANTI JOIN chosen USING (data_id)", "should be selected and are not"),
        ("FROM chosen ANTI JOIN kept USING (data_id)", "should not be selected"),
        (
            "FROM chosen JOIN kept USING (data_id) WHERE chosen.lds IS DISTINCT FROM kept.lds",
            "have another LDS",
        ),
        (
            "FROM chosen JOIN labelled USING (category, data_id) WHERE chosen.low <> labelled.low "
            "OR chosen.high <> labelled.high",
            "have other values than the labelled ones",
        ),
    ):
        n, first = connection.execute(f"SELECT count(*), min(data_id) {query}").fetchone() or (
            0,
            "",
        )
        if n:
            yield f"{selected}: {counted(n, 'window')} {what}: {first} ..."


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
