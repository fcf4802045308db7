"""`longattn verify`: reads a whole output back, and checks all that it says of itself.

By other eyes than the writer's where there are some: fastparquet reads the ids, positions and
scores that pyarrow wrote, the tokenizers library decodes the ids. What the files say goes into a
database (`longattn.selection.database`), where sets are compared, so memory stays bounded. What is
checked of rows stands in `verify_rows.py`, of records in `verify_records.py`, of the selection in
`verify_selection.py`; `verify_scores.py` scores some windows again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from longattn.config import Select
from longattn.reports.verify_records import RecordChecks
from longattn.reports.verify_rows import RowChecks, WindowTables
from longattn.reports.verify_scores import score_findings
from longattn.reports.verify_selection import selection_findings
from longattn.resume.fingerprint import RunRecord, read_run_record
from longattn.selection.database import database
from longattn.storage.output_folder import OutputFolder
from longattn.text import without_secrets


def verify(output: str, *, scores: int = 0) -> Iterator[str]:
    """Findings, one line each; none means that all holds.

    Of every file: it opens, its pages fit their checksums, its rows their digest, its footer and
    records their checksums. Of labelled windows: id, document, category, range and length; content
    is what the ids decode to and tokenizes to; recurrence; each there once. Of the rest: markers,
    summary, samples and quarantine against the rows; the selection, its figures and every column of
    its rows against what scores and settings select; one fingerprint; report and card against what
    they tell of. Memory: `memory` of the default `Select`, and a row group.

    Args:
        output: the output folder of a run.
        scores: how many windows, drawn at random, to score again.

    Raises:
        ValueError: no run has written there.
    """
    try:
        record = read_run_record(output)
    except ValueError as error:
        yield _one_line(str(error))
        return
    if record is None:
        raise ValueError(f"{without_secrets(output)}: no run has written here")
    for finding in _findings(output, record, scores):
        yield _one_line(finding)


def _findings(output: str, record: RunRecord, scores: int) -> Iterator[str]:
    folder = OutputFolder(output)
    records = RecordChecks(folder, record)
    yield from _guarded(records.read, output)
    rows = RowChecks(record, records.samples or {}, records.inexact)
    yield from _guarded(rows.open_tokenizer, record.model)
    select = records.select or Select()
    with database(select.memory) as connection:
        tables = WindowTables(connection, select.rank_by)
        every = [*folder.labelled_files(), *folder.selected_files()]
        yield from _guarded(lambda: rows.find_columns(every), output)
        for kind, urls in (
            ("labelled", folder.labelled_files()),
            ("selected", folder.selected_files()),
        ):
            for url in urls:
                yield from _guarded(partial(rows.file, kind, url, tables), url)
        yield from _guarded(tables.repeated, output)
        yield from _guarded(tables.lineage, folder.labelled)
        yield from _guarded(lambda: records.ledger(tables), output)
        yield from _guarded(lambda: records.summary_counts(tables), folder.record("summary"))
        yield from _guarded(records.quarantine, folder.quarantine)
        if records.selection is not None:
            yield from _guarded(
                lambda: selection_findings(folder, tables, select, records), folder.selected
            )
        elif tables.urls["selected"] and folder.record("selection") not in records.broken:
            yield f"{output}: selected files, and no selection.json that tells how they came about"
        yield from _guarded(records.report, folder.report)
        yield from _guarded(records.card, folder.card)
        if scores:
            yield from _guarded(lambda: score_findings(tables, record, scores), folder.labelled)


def _guarded(check: Callable[[], Iterator[str]], where: str) -> Iterator[str]:
    """Findings of a check; what it raises is one as well: broken files make readers raise anything."""
    try:
        yield from check()
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - Rust panics are no Exceptions
        yield f"{where}: cannot be checked: {type(error).__name__}: {str(error)[:200]}"


def _one_line(finding: str) -> str:
    """A finding without secrets, its control characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in without_secrets(finding)
    )
