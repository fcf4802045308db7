"""`longattn verify`: reads a whole output back, and checks all that it says of itself.

By other eyes than the writer's where there are some: fastparquet reads the ids, positions and
scores that pyarrow wrote, the tokenizers library decodes the ids. What the files say goes into a
database (`longattn.selection.database`), where sets are compared, so memory stays bounded. What is
checked of rows stands in `verify_rows.py`, of records in `verify_records.py`, of the selection in
`verify_selection.py`, of score tables in `verify_tables.py`; `verify_scores.py` scores some windows
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial

from longattn.config import Select
from longattn.reports.verify_records import RecordChecks
from longattn.reports.verify_rows import RowChecks, WindowTables
from longattn.reports.verify_scores import score_findings
from longattn.reports.verify_selection import selection_findings, summary_findings
from longattn.reports.verify_tables import score_table_findings
from longattn.resume.origin import Origin, read_origin
from longattn.resume.shards import is_sharded
from longattn.selection.database import database
from longattn.storage.output_folder import OutputFolder
from longattn.text import without_secrets

log = logging.getLogger("longattn")


def verify(output: str, *, scores: int = 0) -> Iterator[str]:
    """Findings, one line each; none means that all holds.

    Of every file: it opens, its pages fit their checksums, its rows their digest, its footer and
    records their checksums. Of labelled windows: id, document, category, range and length; content
    is what the ids decode to and tokenizes to; recurrence; each there once. Of the rest: markers,
    summary, samples and quarantine against the rows; the selection, its figures and every column of
    its rows against what scores and settings select; one fingerprint; score tables against the
    labelled files and their records; report and card against what they tell of. Memory: `memory` of the
    default `Select`, and a row group.

    Args:
        output: the output folder of a run.
        scores: how many windows, drawn at random, to score again.

    Of what `write_labelled` wrote without a run, as far as it says of itself; the log tells what is
    not known.

    Raises:
        ValueError: neither has written there.
    """
    try:
        origin = read_origin(output)
    except (ValueError, IsADirectoryError) as error:
        yield _one_line(str(error))
        return
    if origin is None:
        raise ValueError(f"{without_secrets(output)}: no run has written here")
    if origin.unknown:
        log.warning("%s was %s: none of that is checked", without_secrets(output), origin.unknown)
    for finding in _findings(output, origin, scores):
        yield _one_line(finding)


def _findings(output: str, origin: Origin, scores: int) -> Iterator[str]:
    folder = OutputFolder(output)
    records = RecordChecks(folder, origin)
    yield from _guarded(records.read, output)
    rows = RowChecks(origin, records.samples or {}, records.inexact)
    if origin.model is not None:
        yield from _guarded(rows.open_tokenizer, origin.model)
    selected = folder.all_selected_files()
    files = {
        "labelled": [*folder.labelled_files()],
        "selected": [url for urls in selected.values() for url in urls],
    }
    with database(Select().memory) as connection:
        tables = WindowTables(connection)
        every = [url for urls in files.values() for url in urls]
        yield from _guarded(lambda: rows.find_columns(every), output)
        for kind, urls in files.items():
            for url in urls:
                yield from _guarded(partial(rows.file, kind, url, tables), url)
        # Two shares may have labelled one document: `select` counts that, `summary_counts` looks.
        once = ["selected"] if is_sharded(output) else ["labelled", "selected"]
        yield from _guarded(lambda: tables.repeated(once), output)
        yield from _guarded(tables.lineage, folder.labelled)
        yield from _guarded(lambda: records.ledger(tables), output)
        yield from _guarded(lambda: records.summary_counts(tables), folder.record("summary"))
        yield from _guarded(records.quarantine, folder.quarantine)
        for name in {**selected, **records.selections}:
            where = folder.selection(name)
            if name in records.selections:
                check = partial(selection_findings, folder, tables, name, records)
                yield from _guarded(check, where)
            elif (record_url := folder.selection_record(name)) not in records.broken:
                file = record_url.rpartition("/")[2]
                yield f"{where}: selected files, and no {file} that tells how they came about"
        yield from _guarded(partial(summary_findings, folder, records), folder.record("summary"))
        yield from _guarded(records.report, folder.report)
        yield from _guarded(lambda: score_table_findings(folder, scores), folder.url)
        yield from _guarded(records.card, folder.card)
        if scores:
            yield from _guarded(lambda: score_findings(tables, origin, scores), folder.labelled)


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
