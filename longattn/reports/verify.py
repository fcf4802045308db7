"""`longattn verify`: reads a whole output back, and checks all that it says of itself.

By other eyes than the writer's where there are some: fastparquet reads the ids, positions and
scores that pyarrow wrote, the tokenizers library decodes the ids. What the files say goes into a
database (`longattn.selection.database`), where sets are compared, so memory stays bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from fastparquet import ParquetFile
from tokenizers import Tokenizer

from longattn.config import Select
from longattn.models import model_folder
from longattn.resume.fingerprint import require_run_record
from longattn.resume.markers import IdSet, read_markers
from longattn.resume.remaining import labelled_files
from longattn.selection.database import database
from longattn.selection.score_table import ScoreTable, batches
from longattn.selection.select_windows import choose_windows
from longattn.storage.files import filesystem, read_json
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import (
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    SELECTED,
    carried_fields,
    file_metadata,
    open_parquet,
)

SCALARS = [
    "data_id", "document_id", "window_index", "token_start", "token_stop",
    "recurrence", "recurrence_rarity", "recurrence_pairs", "ds", "variance",
]  # fmt: skip
CHOSEN = ["data_id", "category", "ds", "variance", "lds"]
SHOWN = 5  # of many findings of one kind in one file


@dataclass
class _Files:
    """What the files of one folder are compared with, and where their rows go."""

    tokenizer: Tokenizer | None
    window: int
    fingerprint: str
    insert: Callable[[pa.Table], None]
    urls: list[str] = field(default_factory=list)  # by `file`


def verify(output: str) -> Iterator[str]:
    """Findings, one line each; none means that all holds.

    Every file opens and has the columns it should; ids are unique; numbers of rows equal the
    markers and the summary; windows have the stated length; content equals the decoded ids; the
    selected set is exactly what the stored scores and settings select, its rows those of the
    labelled set; one fingerprint throughout. Memory: `memory` of the default `Select`, and one file.

    Raises ValueError where no run has written.
    """
    record, places = require_run_record(output), OutputFolder(output)
    model = record.model
    tokenizer = None
    try:
        tokenizer = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        yield f"{model}: no tokenizer, so content was not compared: {error}"
    stored = read_json(places.record("selection"))
    select = Select.model_validate(stored["select"]) if stored else Select()
    with database(select.memory) as connection:
        table = ScoreTable(connection)
        connection.execute(
            "CREATE TABLE chosen (data_id VARCHAR, category VARCHAR, ds DOUBLE, variance DOUBLE, "
            "lds DOUBLE, file INTEGER, row INTEGER)"
        )

        def insert_labelled(rows: pa.Table) -> None:
            rank = rows["ds" if select.rank_by == "lds" else select.rank_by]
            table.insert(rows.append_column("rank", rank))

        def insert_selected(rows: pa.Table) -> None:
            connection.register("rows", rows.select([*CHOSEN, "file", "row"]))
            connection.execute("INSERT INTO chosen BY NAME FROM rows")
            connection.unregister("rows")

        for name, schema, urls, insert in (
            ("windows", LABELLED, places.labelled_files(), insert_labelled),
            ("chosen", SELECTED, places.selected_files(), insert_selected),
        ):
            files = _Files(tokenizer, record.parts.window, record.fingerprint, insert)
            for url in urls:
                try:
                    yield from _file(url, schema.names, files)
                except Exception as error:  # noqa: BLE001 - a broken file makes readers raise anything
                    yield f"{url}: cannot be read: {type(error).__name__}: {str(error)[:200]}"
            yield from _repeated(table, name, files.urls)
        counts = connection.execute("SELECT category, count(*) FROM windows GROUP BY category")
        labelled = Counter({table.categories[of]: rows for of, rows in counts.fetchall()})
        yield from _ledger(output, labelled.total())
        yield from _summary(output, labelled)
        if stored is not None:
            yield from _selection(output, table, select)
            yield from _listed(output, stored["files"])
        elif places.selected_files():
            yield f"{output}: selected files, and no selection.json that tells how they came about"


def _file(url: str, names: list[str], files: _Files) -> Iterator[str]:
    fs, path = filesystem(url)
    category = category_of(url)
    with open_parquet(url) as parquet:
        metadata = file_metadata(parquet)
        carried = [field.name for field in carried_fields([parquet.schema_arrow])]
        there = [
            name
            for name in parquet.schema_arrow.names
            if not EXTRA_SCORE_COLUMNS.fullmatch(name) and name not in carried
        ]
        if there != names:
            yield f"{url}: columns {there}, not {names}"
            return
        if metadata.get("fingerprint") != files.fingerprint:
            yield f"{url}: fingerprint {metadata.get('fingerprint')}, not {files.fingerprint}"
        told = sum(rows for _, _, rows, *_ in metadata.get("runs", []))
        if "runs" in metadata and told != parquet.metadata.num_rows:
            yield f"{url}: {parquet.metadata.num_rows} rows, its footer tells of {told}"
        wrong: Counter[str] = Counter()
        for finding in chain.from_iterable(
            _rows(parquet.read_row_group(group).to_pylist(), category, files)
            for group in range(parquet.num_row_groups)
        ):
            kind = finding.partition(" ")[0]
            wrong[kind] += 1
            if wrong[kind] <= SHOWN:
                yield f"{url}: {finding.partition(' ')[2]}"
        yield from (
            f"{url}: {n - SHOWN} more of these ({k})" for k, n in wrong.items() if n > SHOWN
        )
        narrow = parquet.read(columns=SCALARS).to_pandas()
    columns = [*SCALARS, *(["lds"] if "lds" in names else [])]
    again = ParquetFile(path, fs=fs).to_pandas(columns=columns)
    for name in SCALARS:
        one, two = again[name].to_numpy(), narrow[name].to_numpy()
        if not np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
            yield f"{url}: column {name} reads otherwise with fastparquet"
    places = {"file": np.int32(len(files.urls)), "row": np.arange(len(again), dtype=np.int32)}
    files.urls.append(url)
    files.insert(
        pa.Table.from_pandas(again.assign(category=category, **places), preserve_index=False)
    )


def _rows(rows: list[dict[str, Any]], category: str, files: _Files) -> Iterator[str]:
    """Findings on rows: a word for their kind, then the line."""
    for row in rows:
        name, length = row["data_id"], len(row["input_ids"])
        if name != f"{category}-{row['document_id']}-{row['window_index']}":
            yield f"id {name}: not the id of its category, document and window"
        if not length == row["token_stop"] - row["token_start"] == files.window:
            yield (
                f"length {name}: {length} ids for tokens {row['token_start']} to "
                f"{row['token_stop']}, windows have {files.window}"
            )
        if not np.isfinite([row["ds"], row["variance"]]).all():
            yield f"score {name}: ds {row['ds']}, variance {row['variance']}"
        if files.tokenizer is not None:
            decoded = files.tokenizer.decode(row["input_ids"], skip_special_tokens=False)
            # A character cut by the window's edge is left out of content.
            told = row["content"].strip("\ufffd")
            if decoded.strip("\ufffd") not in (told, told.removeprefix(" ")):
                yield f"content {name}: content is not what its ids decode to"


def _repeated(table: ScoreTable, name: str, urls: list[str]) -> Iterator[str]:
    """Windows that are there twice, in the table `windows` or `chosen`."""
    found = batches(
        table.connection,
        f"SELECT data_id, file FROM {name} WHERE hash(data_id) IN "
        f"(SELECT hash(data_id) FROM {name} GROUP BY hash(data_id) HAVING count(*) > 1) "
        "QUALIFY row_number() OVER (PARTITION BY data_id ORDER BY file, row) > 1 "
        "ORDER BY file, data_id",
    )
    repeats: Counter[int] = Counter()
    for rows in found:
        for data_id, file in zip(
            *(rows[of].to_pylist() for of in ("data_id", "file")), strict=True
        ):
            repeats[file] += 1
            if repeats[file] <= SHOWN:
                yield f"{urls[file]}: {data_id}: there more than once"
    yield from (
        f"{urls[file]}: {n - SHOWN} more of these (twice)"
        for file, n in repeats.items()
        if n > SHOWN
    )


def _ledger(output: str, labelled: int) -> Iterator[str]:
    under: dict[str, IdSet] = {}
    try:
        files = labelled_files(output)
    except (OSError, ValueError):  # told before
        return
    for file in files:
        for span in file.row_spans:
            under.setdefault(span.split, IdSet()).merge(span.rows, span.ids)
    for marker in read_markers(output).values():
        given = under.get(marker.split, IdSet())
        if (given.count, given.hex) != (marker.windows, marker.ids):
            what = "other windows" if given.count == marker.windows else f"{given.count} windows"
            yield f"{marker.path}: its marker tells of {marker.windows} windows, labelled are {what}"
    if sum(file.rows for file in files) != labelled:
        yield f"{output}: footers tell of {sum(f.rows for f in files)} rows, read were {labelled}"


def _summary(output: str, labelled: Counter[str]) -> Iterator[str]:
    summary = read_json(OutputFolder(output).record("summary"))
    if summary is None:
        yield f"{output}: no summary: its run is not finished"
        return
    for category, told in summary["categories"].items():
        if told.get("windows", 0) != labelled[category]:
            yield (
                f"{output}: category {category} has {labelled[category]} labelled windows, "
                f"the summary tells of {told.get('windows', 0)}"
            )


def _selection(output: str, table: ScoreTable, select: Select) -> Iterator[str]:
    """The table `chosen`, of what the selected files hold, against what the scores select."""
    connection = table.connection
    ((strange,),) = connection.execute(
        "SELECT count(*) FROM windows WHERE "
        "coalesce(NOT (isfinite(ds) AND isfinite(variance) AND isfinite(rank)), true)"
    ).fetchall()
    if strange:
        yield f"{output}: {strange} windows have no finite scores: what they select is not known"
        return
    try:
        choose_windows(table, select, output)
    except ValueError as error:
        yield str(error)
        return
    for one, other, what in (
        ("kept", "chosen", "should be selected and are not"),
        ("chosen", "kept", "should not be selected"),
    ):
        n, first = connection.execute(
            f"SELECT count(*), min(data_id) FROM {one} ANTI JOIN {other} USING (data_id)"
        ).fetchall()[0]
        if n:
            yield f"{output}: {n} windows {what}: {first} ..."
    n, first, lds, right = connection.execute(
        "SELECT count(*), min(data_id), arg_min(chosen.lds, data_id), arg_min(kept.lds, data_id) "
        "FROM chosen JOIN kept USING (data_id) WHERE chosen.lds IS DISTINCT FROM kept.lds"
    ).fetchall()[0]
    if n:
        yield f"{output}: {n} windows have another LDS: {first} {lds}, not {right}"
    ((n,),) = connection.execute(
        "SELECT count(*) FROM chosen JOIN windows USING (data_id) WHERE chosen.ds IS DISTINCT FROM "
        "windows.ds OR chosen.variance IS DISTINCT FROM windows.variance"
    ).fetchall()
    if n:
        yield f"{output}: {n} selected windows have other scores than the labelled ones"


def _listed(output: str, files: list[str]) -> Iterator[str]:
    listed, found = (
        sorted(url.rpartition("/selected/")[2] for url in urls)  # the folder may have moved
        for urls in (files, OutputFolder(output).selected_files())
    )
    if listed != found:
        yield f"{output}: the selected files are not those of selection.json"
