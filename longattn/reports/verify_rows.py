"""What `verify` checks of labelled and selected files, row by row and then as sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fastparquet import ParquetFile
from tokenizers import Tokenizer

from longattn.config import Sample
from longattn.models import model_folder
from longattn.reports.verify_content import content_findings, ids_of_text_differ
from longattn.resume.origin import Origin
from longattn.resume.remaining import row_spans
from longattn.selection.score_table import batches
from longattn.storage.digests import RowDigest, row_hashes
from longattn.storage.files import filesystem
from longattn.storage.output_folder import category_of, selection_of
from longattn.storage.tables import (
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    SELECTED,
    carried_fields,
    content_name,
    file_metadata,
    is_own_file,
    open_parquet,
    with_schema,
)
from longattn.windows.ids import is_sampled
from longattn.windows.recurrence import far_recurrence
from longattn.windows.tokenizer import DocumentTokenizer, load_tokenizer

SCALARS = [
    "data_id",
    "document_id",
    "window_index",
    "token_start",
    "token_stop",
    "recurrence",
    "recurrence_rarity",
    "recurrence_pairs",
    "ds",
    "variance",
]
SCHEMAS = {"labelled": LABELLED, "selected": SELECTED}
SHOWN = 5  # of many findings of one kind in one file
HEADS = 1e-6  # of a mean over heads that are stored in float32, relative to the largest


class WindowTables:
    """A database of what labelled and selected files hold."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.urls: dict[str, list[str]] = {"labelled": [], "selected": []}  # by `file`
        for kind in self.urls:
            connection.execute(
                f"CREATE TABLE {kind} (data_id VARCHAR, category VARCHAR, document_id VARCHAR, "
                "window_index INTEGER, token_start BIGINT, low UBIGINT, high UBIGINT, lds DOUBLE, "
                "file INTEGER, row INTEGER, selection VARCHAR)"
            )

    def insert(self, kind: str, url: str, rows: pa.Table, hashes: np.ndarray) -> None:
        """Add the rows of a file: `SCALARS`, and `lds` of selected ones."""
        n = len(rows)
        places = {
            "category": pa.array([category_of(url)] * n),
            "file": pa.array(np.full(n, len(self.urls[kind]), np.int32)),
            "row": pa.array(np.arange(n, dtype=np.int32)),
            "low": pa.array(hashes[:, 0]),
            "high": pa.array(hashes[:, 1]),
            "selection": pa.array([selection_of(url) or ""] * n, pa.string()),
        }
        self.urls[kind].append(url)
        for name, column in places.items():
            rows = rows.append_column(name, column)
        if "lds" not in rows.column_names:
            rows = rows.append_column("lds", pa.nulls(n, pa.float64()))
        names = (
            "data_id, category, document_id, window_index, token_start, low, high, lds, file, row, "
            "selection"
        )
        self.connection.register("found", rows)
        self.connection.execute(f"INSERT INTO {kind} SELECT {names} FROM found")
        self.connection.unregister("found")

    def counts(self, kind: str) -> Counter[str]:
        """Rows by category."""
        query = f"SELECT category, count(*) FROM {kind} GROUP BY category"
        return Counter(dict(self.connection.execute(query).fetchall()))

    def repeated(self, kinds: Sequence[str]) -> Iterator[str]:
        """Windows that are there twice, in `labelled` or `selected`."""
        for kind in kinds:
            urls = self.urls[kind]
            repeats: Counter[int] = Counter()
            for rows in batches(
                self.connection,
                f"SELECT data_id, file FROM {kind} WHERE hash(data_id, selection) IN (SELECT "
                f"hash(data_id, selection) FROM {kind} GROUP BY ALL HAVING count(*) > 1) "
                "QUALIFY row_number() OVER (PARTITION BY data_id, selection ORDER BY file, row) > 1 "
                "ORDER BY file, data_id",
            ):
                for data_id, file in zip(
                    *(rows[c].to_pylist() for c in ("data_id", "file")), strict=True
                ):
                    repeats[file] += 1
                    if repeats[file] <= SHOWN:
                        yield f"{urls[file]}: {data_id}: there more than once"
            yield from (
                f"{urls[file]}: {n - SHOWN} more of these (twice)"
                for file, n in repeats.items()
                if n > SHOWN
            )

    def lineage(self) -> Iterator[str]:
        """Windows of one document whose order is not that of their tokens."""
        found = self.connection.execute(
            "SELECT data_id, file FROM (SELECT *, lag(token_start) OVER one AS before FROM labelled "
            "WINDOW one AS (PARTITION BY category, document_id ORDER BY window_index)) "
            "WHERE token_start <= before OR (window_index = 0) <> (token_start = 0) "
            f"ORDER BY file, data_id LIMIT {SHOWN}"
        ).fetchall()
        for data_id, file in found:
            yield f"{self.urls['labelled'][file]}: {data_id}: its tokens are not where its index says"


class RowChecks:
    """What the rows of files are compared with."""

    def __init__(self, origin: Origin, samples: Mapping[str, Any], inexact: set[str]) -> None:
        self.origin, self.samples, self.inexact = origin, samples, inexact
        self.compared = LABELLED
        """What a selected row and its labelled one have both: with the user's own columns."""
        self.decoder: Tokenizer | None = None
        self.encoder: DocumentTokenizer | None = None

    def open_tokenizer(self) -> Iterator[str]:
        """Findings on the checkpoint's tokenizer."""
        model, parts = self.origin.model or "", self.origin.parts
        try:
            self.decoder = Tokenizer.from_file(str(model_folder(model) / "tokenizer.json"))
            encoder = load_tokenizer(model)
        except Exception as error:  # noqa: BLE001 - the library raises plain Exception
            yield f"{model}: no tokenizer, so content was not compared: {error}"
            return
        if parts and encoder.fingerprint != parts.tokenizer:
            self.decoder = None
            yield f"{model}: its tokenizer is not the one that made the windows"
        elif encoder.slow_because is None and self.origin.is_run:
            self.encoder = encoder

    def find_columns(self, urls: Iterable[str]) -> Iterator[str]:
        """Look for the user's own columns in all files; what cannot be read is found later."""
        schemas = []
        for url in urls:
            try:
                with open_parquet(url) as parquet:
                    schemas.append(parquet.schema_arrow)
            except (OSError, ValueError):
                continue
        self.compared = pa.schema([*LABELLED, *carried_fields(schemas)])
        yield from ()

    def file(self, kind: str, url: str, tables: WindowTables) -> Iterator[str]:
        """Findings on one file; its rows go into the tables."""
        wrong: Counter[str] = Counter()
        for finding in self._file(kind, url, tables):
            what, _, line = finding.partition(" ")
            wrong[what] += 1
            if wrong[what] <= SHOWN:
                yield f"{url}: {line}"
        yield from (
            f"{url}: {n - SHOWN} more of these ({k})" for k, n in wrong.items() if n > SHOWN
        )

    def _file(self, kind: str, url: str, tables: WindowTables) -> Iterator[str]:
        """Findings: a word for their kind, then the line."""
        names, category = SCHEMAS[kind].names, category_of(url)
        with open_parquet(url) as parquet:
            if not is_own_file(parquet):
                yield "foreign not written by longattn"
                return
            metadata = file_metadata(parquet)
            found = parquet.schema_arrow.remove_metadata()
            carried = {field.name for field in carried_fields([found])}
            own = pa.schema(
                [
                    field
                    for field in found
                    if not EXTRA_SCORE_COLUMNS.fullmatch(field.name) and field.name not in carried
                ]
            )
            if own != SCHEMAS[kind]:
                yield f"columns columns {own.names}, not {names}, or other types"
                return
            yield from footer_findings(parquet, metadata)
            if (metadata.get("fingerprint") or None) != self.origin.fingerprint:
                yield (
                    f"fingerprint fingerprint {metadata.get('fingerprint')}, "
                    f"not {self.origin.fingerprint}"
                )
            digest, hashes = RowDigest(), []
            narrow: list[pa.Table] = []
            columns = [*SCALARS, "source", *(["lds"] if kind == "selected" else [])]
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, use_threads=False).replace_schema_metadata()
                yield from statistics_findings(parquet, group, table)
                digest.add(table)
                hashes.append(row_hashes(with_schema(table, self.compared)))
                narrow.append(table.select(columns))
                if kind == "labelled":  # a selected row is to equal its labelled one
                    yield from chain.from_iterable(
                        self._row(row, category) for row in table.to_pylist()
                    )
            if digest.hex != metadata.get("digest"):
                yield "digest its rows are not those its footer tells of"
        rows = pa.concat_tables(narrow) if narrow else found.empty_table().select(columns)
        named = [rows[name] for name in (["data_id", "lds"] if kind == "selected" else ["data_id"])]
        if content_name(*named) != url.rpartition("/")[2]:
            yield "name its name is not that of its windows"
        if kind == "labelled" and self.origin.is_run:
            yield from self._spans(rows, metadata)
        yield from _by_other_eyes(url, rows.drop_columns(["source"]))
        all_hashes = np.concatenate(hashes) if hashes else np.empty((0, 2), np.uint64)
        tables.insert(kind, url, rows, all_hashes)

    def _row(self, row: dict[str, Any], category: str) -> Iterator[str]:
        data_id, ids, parts = row["data_id"], row["input_ids"], self.origin.parts
        if row["category"] != category:
            yield f"category {data_id}: category {row['category']!r} in the folder of {category!r}"
        named = f"{category}-{row['document_id']}-{row['window_index']}"
        if self.origin.is_run and data_id != named:
            yield f"id {data_id}: not the id of its category, document and window"
        length = parts.window if parts else len(ids)
        placed = row["token_start"] is not None and row["token_stop"] is not None
        tokens = row["token_stop"] - row["token_start"] if placed or self.origin.is_run else length
        if not len(ids) == tokens == length:
            yield (
                f"length {data_id}: {len(ids)} ids for tokens {row['token_start']} to "
                f"{row['token_stop']}, windows have {length}"
            )
        if not np.isfinite([row["ds"], row["variance"]]).all():
            yield f"score {data_id}: ds {row['ds']}, variance {row['variance']}"
        for name in ("ds", "variance"):
            heads = np.array(row[f"{name}_heads"] or [np.nan], np.float64)
            if not abs(heads.mean() - row[name]) <= HEADS * abs(heads).max():
                yield f"heads {data_id}: {name} is not the mean of its heads"
        sample = Sample.model_validate(self.samples[category]) if category in self.samples else None
        if not is_sampled(data_id, sample):
            yield f"sample {data_id}: not in the sample of its category"
        try:
            array = np.array(ids, np.int32)
            if self.origin.is_run and parts:  # else the steps may have had other distances
                shares = far_recurrence(array, parts.min_distance)._asdict()
                yield from (
                    f"recurrence {data_id}: {name} {row[name]}, its ids give {value}"
                    for name, value in shares.items()
                    if row[name] != value
                )
            if self.decoder is not None and (self.origin.is_run or row["content"] is not None):
                yield from content_findings(row, self.decoder)
            encoder = None if category in self.inexact else self.encoder
            if encoder and ids_of_text_differ(array, row["content"], encoder):
                yield f"ids {data_id}: its ids are not those of its content"
        except Exception as error:  # noqa: BLE001 - ids that no tokenizer has
            yield f"ids {data_id}: cannot be checked: {type(error).__name__}: {str(error)[:100]}"

    def _spans(self, rows: pa.Table, metadata: Mapping[str, Any]) -> Iterator[str]:
        """Whether the splits that a footer tells of are those of the rows."""
        told = metadata.get("runs", [])
        splits = [span[0] for span in told for _ in range(span[2])]
        if len(splits) != len(rows):
            yield f"rows {len(rows)} rows, its footer tells of {len(splits)} under splits"
        elif row_spans(splits, rows["source"].to_pylist(), rows["data_id"].to_pylist()) != told:
            yield "spans its footer tells of other ids, documents or sources than its rows"


def footer_findings(parquet: pq.ParquetFile, metadata: Mapping[str, Any]) -> Iterator[str]:
    """Findings on a footer that need no row: a word for their kind, then the line."""
    if "checksum" not in _stored(parquet):
        yield "footer its footer has lost its checksum"
    if metadata.get("rows") != parquet.metadata.num_rows:
        yield f"rows {parquet.metadata.num_rows} rows, its footer tells of {metadata.get('rows')}"
    groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    if sum(groups) != parquet.metadata.num_rows:
        yield f"rows {parquet.metadata.num_rows} rows, {sum(groups)} in its row groups"


def _stored(parquet: pq.ParquetFile) -> str:
    return str((parquet.metadata.metadata or {}).get(b"longattn", b""))


def statistics_findings(parquet: pq.ParquetFile, group: int, table: pa.Table) -> Iterator[str]:
    """Minima, maxima and counts of a row group that readers leave out rows by."""
    if len(table) != parquet.metadata.row_group(group).num_rows:
        yield f"rows row group {group} has {len(table)} rows, not as many as it tells of"
    for place in range(parquet.metadata.num_columns):
        chunk = parquet.metadata.row_group(group).column(place)
        name, statistics = chunk.path_in_schema, chunk.statistics
        if statistics is None or name not in table.column_names:
            continue
        extremes = pa.compute.min_max(table[name]).as_py()
        if statistics.has_min_max and (statistics.min, statistics.max) != (
            extremes["min"],
            extremes["max"],
        ):
            yield f"statistics row group {group}: extremes of {name} are not those of its rows"
        if statistics.has_null_count and statistics.null_count != table[name].null_count:
            yield f"statistics row group {group}: another number of nulls in {name}"


def _by_other_eyes(url: str, rows: pa.Table) -> Iterator[str]:
    fs, path = filesystem(url)
    again = ParquetFile(path, fs=fs).to_pandas(columns=rows.column_names)
    for name in rows.column_names:
        one, two = again[name], rows[name].to_pandas()
        there = one.notna().to_numpy()  # each reader has a null of its own
        values = (column.to_numpy()[there] for column in (one, two))
        if not (np.array_equal(there, two.notna().to_numpy()) and np.array_equal(*values)):
            yield f"reader column {name} reads otherwise with fastparquet"
