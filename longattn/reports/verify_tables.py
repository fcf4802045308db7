"""What `verify` checks of score tables: their files, rows and ids, and a few numbers again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longattn.reports.verify_rows import footer_findings, statistics_findings
from longattn.reports.verify_scores import OTHER_TOLERANCE, TOLERANCE
from longattn.resume.score_tables import (
    TableRecord,
    narrow_columns,
    read_table_record,
    within,
)
from longattn.scoring.further_scores import FurtherScorer, weights_fingerprint
from longattn.settings.scores import MEASURES, Score, head_columns
from longattn.storage.digests import RowDigest
from longattn.storage.files import absolute, list_files
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import file_metadata, is_own_file, open_parquet, own_files
from longattn.windows.measures import repetition

log = logging.getLogger("longattn")

ROUNDING = 1e-12  # relative, of a mean that is taken in another order


def score_table_findings(folder: OutputFolder, scores: int) -> Iterator[str]:
    """Findings on all score tables of a folder.

    Args:
        scores: how many windows of each score, drawn at random, to score again.
    """
    labelled = own_files(folder.labelled_files())
    names = folder.score_names()
    below = folder.score_table("")
    strangers = {
        url.removeprefix(absolute(below)).strip("/").partition("/")[0]
        for url in list_files(below, ".parquet")
    } - {*names}
    for name in sorted(strangers):
        yield f"{folder.score_table(name)}: tables of a score without a record"
    records = []
    for name in names:
        try:
            records.append(read_table_record(folder.url, name))
        except ValueError as error:
            yield str(error)
            yield from _without_record(folder, name)
    lies = {column: of.name for of in records if of is not None for column in of.columns}
    for record in records:
        if record is None:
            continue
        yield from _of_score(folder, record, labelled, lies)
        if scores and record.model is not None:
            yield from _scored_again(folder, record, labelled, scores)


def _of_score(
    folder: OutputFolder, record: TableRecord, labelled: Sequence[str], lies: Mapping[str, str]
) -> Iterator[str]:
    """Findings on one score; `lies` says of which score a column is, those of labelled files left out."""
    wanted = {absolute(folder.score_file(record.name, url)): url for url in labelled}
    there = set(folder.score_files(record.name))
    for url in sorted(there - wanted.keys()):
        yield f"{url}: a table whose labelled file is not there"
    missing = [url for table, url in wanted.items() if table not in there]
    if missing:
        yield (
            f"{folder.score_table(record.name)}: {len(missing)} labelled files without a table, as "
            f"{missing[0]}"
        )
    places = {column: lies.get(column, "") for of in record.limits.values() for column in of}
    for table, url in wanted.items():
        if table in there:
            try:
                for finding in _file(folder, record, table, url, places):
                    yield f"{table}: {finding}"
            except Exception as error:  # noqa: BLE001 - broken files make readers raise anything
                yield f"{table}: cannot be checked: {type(error).__name__}: {str(error)[:200]}"


def _without_record(folder: OutputFolder, name: str) -> Iterator[str]:
    """Findings on the tables of a score whose record is damaged: what each says of itself."""
    for url in folder.score_files(name):
        try:
            with open_parquet(url) as parquet:
                metadata = file_metadata(parquet)
                yield from (f"{url}: {finding}" for finding in _seals(parquet, metadata, []))
        except Exception as error:  # noqa: BLE001 - broken files make readers raise anything
            yield f"{url}: cannot be checked: {type(error).__name__}: {str(error)[:200]}"


def _seals(
    parquet: pq.ParquetFile, metadata: Mapping[str, Any], groups: list[pa.Table]
) -> Iterator[str]:
    """Whether a table is what its footer tells of; its row groups are added to `groups`."""
    yield from (f.partition(" ")[2] for f in footer_findings(parquet, metadata))
    digest = RowDigest()
    for group in range(parquet.num_row_groups):
        rows = parquet.read_row_group(group, use_threads=False).replace_schema_metadata()
        yield from (f.partition(" ")[2] for f in statistics_findings(parquet, group, rows))
        digest.add(rows)
        groups.append(rows)
    if digest.hex != metadata.get("digest"):
        yield "its rows are not those its footer tells of"


def _file(
    folder: OutputFolder, record: TableRecord, url: str, labelled: str, places: dict[str, str]
) -> Iterator[str]:
    groups: list[pa.Table] = []
    with open_parquet(url) as parquet:
        if not is_own_file(parquet):
            yield "not written by longattn"
            return
        metadata = file_metadata(parquet)
        if parquet.schema_arrow.names != ["data_id", *record.columns]:
            yield f"columns {parquet.schema_arrow.names}, not those of the score"
            return
        if metadata.get("fingerprint") != record.fingerprint:
            yield f"fingerprint {metadata.get('fingerprint')}, not {record.fingerprint}"
        yield from _seals(parquet, metadata, groups)
    table = pa.concat_tables(groups)
    further = ["input_ids"] if record.columns == MEASURES else []
    with open_parquet(labelled) as parquet:
        windows = parquet.read(columns=["data_id", *further])
    if windows["data_id"] != table["data_id"]:
        yield "its ids are not those of the labelled file, in their order"
        return
    valid = table[record.columns[0]].is_valid().to_numpy()
    if metadata.get("scored") != int(valid.sum()):
        yield f"{int(valid.sum())} windows scored, its footer tells of {metadata.get('scored')}"
    for name in record.columns:
        column = table[name]
        if (column.is_valid().to_numpy() != valid).any():
            yield f"{name} is null in other rows than {record.columns[0]}"
        values = column.combine_chunks()
        flat = pc.list_flatten(values) if pa.types.is_list(values.type) else values
        if not np.isfinite(flat.drop_null().to_numpy(zero_copy_only=False)).all():
            yield f"{name} must be finite"
    if record.columns[-2:] == head_columns(record.name):
        yield from _of_heads(record, table.filter(pa.array(valid)))
    limits = record.limits.get(category_of(labelled), {})
    if limits:
        inside = within(narrow_columns(folder, labelled, places), limits)
        if (valid & ~inside).any():
            yield f"{int((valid & ~inside).sum())} windows scored that the limits leave out"
    if further:
        ids = [np.array(row) for row in windows["input_ids"].to_pylist()]
        again = [repetition(ids_l) for ids_l, one in zip(ids, valid, strict=True) if one]
        if again != table["repetition"].drop_null().to_pylist():
            yield "repetition is not that of its windows' ids"


def _of_heads(record: TableRecord, rows: pa.Table) -> Iterator[str]:
    """Findings on scores of heads, whose means the other columns of the score are."""
    single, layered = record.columns[:2], record.columns[2:4]
    for mean, of_layers, of_heads in zip(single, layered, head_columns(record.name), strict=True):
        metadata = rows.schema.field(of_heads).metadata or {}
        try:
            layers, heads = json.loads(metadata[b"shape"])
            numbered = len(json.loads(metadata[b"layers"])) == layers
            heads_nlh = np.array(rows[of_heads].to_pylist()).reshape(len(rows), layers, heads)
            layers_nl = np.array(rows[of_layers].to_pylist()).reshape(len(rows), layers)
        except (KeyError, ValueError, TypeError):
            numbered = False
        if not numbered:
            yield f"{of_heads}: its lists are not of the shape and layers that its metadata tell of"
        elif not (
            np.allclose(heads_nlh.mean(2), layers_nl, rtol=ROUNDING, atol=0)
            and np.allclose(heads_nlh.mean((1, 2)), rows[mean].to_numpy(), rtol=ROUNDING, atol=0)
        ):
            yield f"{of_heads}: {mean} and {of_layers} are not its means"


def _scored_again(
    folder: OutputFolder, record: TableRecord, labelled: Sequence[str], scores: int
) -> Iterator[str]:
    """Windows whose score is another one now."""
    parts = record.parts
    model = record.model or ""
    if weights_fingerprint(model) != parts.weights:
        yield f"{model}: its weights are no longer those of the score {record.name}"
        return
    settings = {"name": record.name, "kind": parts.kind, "model": model, "dtype": parts.dtype}
    settings |= {k: v for k, v in parts.settings.items() if k in ("short", "layers")}
    score = Score.check(settings, record.name)
    try:
        scorer = FurtherScorer(score, parts)
    except ValueError as error:  # of a GPU's dtype where there is none, or too large here
        log.warning("score %s is not computed again: %s", record.name, error)
        return
    rng = np.random.default_rng()
    tolerance, column = TOLERANCE.get(parts.dtype or "", OTHER_TOLERANCE), record.columns[0]
    for url in rng.choice(labelled, min(scores, len(labelled)), replace=False).tolist():
        table = folder.score_file(record.name, url)
        with open_parquet(table) as parquet:
            stored = parquet.read(columns=["data_id", *record.columns])
        places = np.flatnonzero(stored[column].is_valid().to_numpy())
        if not len(places):
            continue
        row = pa.array([int(rng.choice(places))])
        with open_parquet(url) as parquet:
            window = parquet.read(columns=["data_id", *scorer.inputs]).take(row)
        again = scorer.columns(window)
        was, now = stored[column].take(row)[0].as_py(), again[column][0]
        if not abs(now - was) <= tolerance * max(1.0, abs(was)):
            yield f"{table}: {window['data_id'][0]}: {column} was {was:.6g} and is now {now:.6g}"
        for name in {*head_columns(record.name)} & {*record.columns}:
            off = np.abs(np.array(stored[name].take(row)[0].as_py()) - np.array(again[name][0]))
            if not off.max() <= tolerance:
                yield f"{table}: {window['data_id'][0]}: {name} is now {off.max():.1e} away in a head"
