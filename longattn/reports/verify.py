"""`longattn verify`: reads a whole output back, and checks all that it says of itself.

By other eyes than the writer's where there are some: fastparquet reads the ids, positions and
scores that pyarrow wrote, the tokenizers library decodes the ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from fastparquet import ParquetFile
from tokenizers import Tokenizer

from longattn.config import Select
from longattn.models import model_folder
from longattn.resume.fingerprint import require_run_record
from longattn.resume.markers import IdSet, read_markers
from longattn.resume.remaining import labelled_files
from longattn.selection import kept, ranked
from longattn.storage.files import filesystem, join, list_files, read_json
from longattn.storage.output_folder import FOLDER
from longattn.storage.tables import (
    EXACT,
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    SELECTED,
    file_metadata,
    open_parquet,
)
from longattn.windows.ids import hash_key

SCALARS = [
    "data_id", "document_id", "window_index", "token_start", "token_stop",
    "recurrence", "recurrence_rarity", "recurrence_pairs", "ds", "variance",
]  # fmt: skip
SHOWN = 5  # of many findings of one kind in one file


@dataclass
class _Seen:
    """What the files read so far hold."""

    tokenizer: Tokenizer | None
    window: int
    fingerprint: str
    ids: set[bytes] = field(default_factory=set)
    tables: list[pd.DataFrame] = field(default_factory=list)


def verify(output: str) -> Iterator[str]:
    """Findings, one line each; none means that all holds.

    Every file opens and has the columns it should; ids are unique; numbers of rows equal the
    markers and the summary; windows have the stated length; content equals the decoded ids; the
    selected set is exactly what the stored scores and settings select, its rows those of the
    labelled set; one fingerprint throughout. Memory: the scalar columns of all windows.

    Raises ValueError where no run has written.
    """
    claim = require_run_record(output)
    model = yaml.safe_load(claim["config"] or "{}").get("scorer", {}).get("model", "builtin")
    tokenizer = None
    try:
        tokenizer = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception
        yield f"{model}: no tokenizer, so content was not compared: {error}"
    sets = {}
    for folder, schema in (("labelled", LABELLED), ("selected", SELECTED)):
        seen = _Seen(tokenizer, claim["parts"]["window"], claim["fingerprint"])
        for url in list_files(join(output, folder), ".parquet"):
            try:
                yield from _file(url, schema.names, seen)
            except Exception as error:  # noqa: BLE001 - a broken file makes readers raise anything
                yield f"{url}: cannot be read: {type(error).__name__}: {str(error)[:200]}"
        names = [*SCALARS, "category", "url", *(["lds"] if folder == "selected" else [])]
        empty = pd.DataFrame({name: [] for name in names})
        sets[folder] = pd.concat(seen.tables) if seen.tables else empty
    yield from _ledger(output, sets["labelled"])
    yield from _summary(output, sets["labelled"])
    yield from _selection(output, sets["labelled"], sets["selected"])


def _file(url: str, names: list[str], seen: _Seen) -> Iterator[str]:
    fs, path = filesystem(url)
    category = url.rpartition("/category=")[2].partition("/")[0]
    with open_parquet(url) as parquet:
        metadata = file_metadata(parquet)
        there = [
            name for name in parquet.schema_arrow.names if not EXTRA_SCORE_COLUMNS.fullmatch(name)
        ]
        if there != names:
            yield f"{url}: columns {there}, not {names}"
            return
        if metadata.get("fingerprint") != seen.fingerprint:
            yield f"{url}: fingerprint {metadata.get('fingerprint')}, not {seen.fingerprint}"
        told = sum(rows for _, _, rows, *_ in metadata.get("runs", []))
        if "runs" in metadata and told != parquet.metadata.num_rows:
            yield f"{url}: {parquet.metadata.num_rows} rows, its footer tells of {told}"
        wrong: Counter[str] = Counter()
        for finding in chain.from_iterable(
            _rows(parquet.read_row_group(group).to_pylist(), category, seen)
            for group in range(parquet.num_row_groups)
        ):
            kind = finding.partition(" ")[0]
            wrong[kind] += 1
            if wrong[kind] <= SHOWN:
                yield f"{url}: {finding.partition(' ')[2]}"
        yield from (
            f"{url}: {n - SHOWN} more of these ({k})" for k, n in wrong.items() if n > SHOWN
        )
        scalars = [*SCALARS, *(name for name in EXACT if name in parquet.schema_arrow.names)]
        narrow = parquet.read(columns=scalars).to_pandas()
    columns = [*scalars, *(["lds"] if "lds" in names else [])]
    again = ParquetFile(path, fs=fs).to_pandas(columns=columns)
    for name in scalars:
        one, two = again[name].to_numpy(), narrow[name].to_numpy()
        if not np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
            yield f"{url}: column {name} reads otherwise with fastparquet"
    seen.tables.append(again.assign(category=category, url=url))


def _rows(rows: list[dict[str, Any]], category: str, seen: _Seen) -> Iterator[str]:
    """Findings on rows: a word for their kind, then the line."""
    for row in rows:
        name, length = row["data_id"], len(row["input_ids"])
        if hash_key(name) in seen.ids:
            yield f"twice {name}: there more than once"
        seen.ids.add(hash_key(name))
        if name != f"{category}-{row['document_id']}-{row['window_index']}":
            yield f"id {name}: not the id of its category, document and window"
        if not length == row["token_stop"] - row["token_start"] == seen.window:
            yield (
                f"length {name}: {length} ids for tokens {row['token_start']} to "
                f"{row['token_stop']}, windows have {seen.window}"
            )
        if not np.isfinite([row["ds"], row["variance"]]).all():
            yield f"score {name}: ds {row['ds']}, variance {row['variance']}"
        if seen.tokenizer is not None:
            decoded = seen.tokenizer.decode(row["input_ids"], skip_special_tokens=False)
            # A character cut by the window's edge is left out of content.
            told = row["content"].strip("\ufffd")
            if decoded.strip("\ufffd") not in (told, told.removeprefix(" ")):
                yield f"content {name}: content is not what its ids decode to"


def _ledger(output: str, labelled: pd.DataFrame) -> Iterator[str]:
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
    if sum(file.rows for file in files) != len(labelled):
        yield f"{output}: footers tell of {sum(f.rows for f in files)} rows, read were {len(labelled)}"


def _summary(output: str, labelled: pd.DataFrame) -> Iterator[str]:
    summary = read_json(join(output, FOLDER, "summary.json"))
    if summary is None:
        yield f"{output}: no summary: its run is not finished"
        return
    there = labelled["category"].value_counts()
    for category, told in summary["categories"].items():
        if told.get("windows", 0) != there.get(category, 0):
            yield (
                f"{output}: category {category} has {there.get(category, 0)} labelled windows, "
                f"the summary tells of {told.get('windows', 0)}"
            )


def _selection(output: str, labelled: pd.DataFrame, selected: pd.DataFrame) -> Iterator[str]:
    stored = read_json(join(output, FOLDER, "selection.json"))
    if stored is None:
        if len(selected):
            yield f"{output}: selected files, and no selection.json that tells how they came about"
        return
    select = Select.model_validate(stored["select"])
    wanted: dict[str, float] = {}
    for _, rows in labelled.drop_duplicates("data_id").groupby("category", sort=True):
        rows = rows.sort_values("data_id")
        lds, order_by = ranked(pa.Table.from_pandas(rows, preserve_index=False), select)
        tokens = (rows["token_stop"] - rows["token_start"]).to_numpy()
        ids = rows["data_id"].to_numpy()
        wanted |= {ids[i]: float(lds[i]) for i in kept(order_by, tokens, select.keep)}
    there = dict(zip(selected["data_id"], selected["lds"], strict=True))
    if missing := sorted(wanted.keys() - there.keys()):
        yield f"{output}: {len(missing)} windows should be selected and are not: {missing[0]} ..."
    if extra := sorted(there.keys() - wanted.keys()):
        yield f"{output}: {len(extra)} windows should not be selected: {extra[0]} ..."
    both = sorted(wanted.keys() & there.keys())
    if other := [name for name in both if wanted[name] != there[name]]:
        name = other[0]
        yield f"{output}: {len(other)} windows have another LDS: {name} {there[name]}, not {wanted[name]}"
    scores = labelled.drop_duplicates("data_id").set_index("data_id")[["ds", "variance"]]
    chosen = selected.set_index("data_id")[["ds", "variance"]]
    chosen = chosen[chosen.index.isin(scores.index)]
    if not chosen.equals(scores.loc[chosen.index]):
        yield f"{output}: selected windows have other scores than the labelled ones"
    told, found = (
        sorted(url.rpartition("/selected/")[2] for url in urls)  # the folder may have moved
        for urls in (stored["files"], list_files(join(output, "selected"), ".parquet"))
    )
    if told != found:
        yield f"{output}: the selected files are not those of selection.json"
