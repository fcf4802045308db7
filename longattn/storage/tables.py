"""The columns of every Parquet file that a run writes, and how they are written and read.

Parquet is read and written through fsspec with read-ahead off. With s3fs's default cache, one
narrow column of a 524 MB file fetched 1489 MB; without it, 0.08 MB.

Each page has a checksum, which every reader here compares. Under the key `longattn` of its footer a
file has a sealed JSON object (`digests.py`): `rows`, `digest` of its whole rows, and what its writer
adds: the fingerprint of the scores, of which splits the rows are, the settings of the selection.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longattn.storage.digests import RowDigest, sealed, unsealed
from longattn.storage.files import filesystem, staged, storage_errors
from longattn.text import without_secrets

WINDOWS = pa.schema(
    [
        ("data_id", pa.string()),
        ("content", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("category", pa.string()),
        ("source", pa.string()),
        ("document_id", pa.string()),
        ("window_index", pa.int32()),
        ("token_start", pa.int64()),
        ("token_stop", pa.int64()),
        ("recurrence", pa.float64()),
        ("recurrence_rarity", pa.float64()),
        ("recurrence_pairs", pa.float64()),
    ]
)
LABELLED = pa.schema(
    [
        *WINDOWS,
        ("ds", pa.float64()),
        ("variance", pa.float64()),
        ("ds_heads", pa.list_(pa.float32())),
        ("variance_heads", pa.list_(pa.float32())),
    ]
)
EXTRA_SCORE_COLUMNS = re.compile(r"(ds|variance)_k\d+")
"""Labelled files may have more: scores at further distances."""
SELECTED = LABELLED.append(pa.field("lds", pa.float64()))
QUARANTINE = pa.schema(
    [
        ("category", pa.string()),
        ("source", pa.string()),
        ("position", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)

INTERNAL = ("split", "fingerprint", "scored_on")  # columns between the stages
_OWN = re.compile("|".join([*SELECTED.names, EXTRA_SCORE_COLUMNS.pattern, *INTERNAL, "scored_by"]))


def is_own(name: str) -> bool:
    """Whether a column of windows is ours: of the schemas, a further score, or between the stages."""
    return _OWN.fullmatch(name) is not None


def carried_fields(schemas: Iterable[pa.Schema]) -> list[pa.Field]:
    """The columns of the user's in tables of windows: those that are not ours and hold single values."""
    fields = {field.name: field for schema in schemas for field in schema}
    return [
        field.remove_metadata()
        for name, field in sorted(fields.items())
        if not is_own(name)
        and not pa.types.is_nested(field.type)
        and not isinstance(field.type, pa.BaseExtensionType)
    ]


def with_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, null where the table has none."""
    for wanted in schema:
        if wanted.name not in table.column_names:
            table = table.append_column(wanted, pa.nulls(len(table), wanted.type))
    return table.select(schema.names).cast(schema)


METADATA_KEY = b"longattn"
FOOTER_KINDS = {
    "rows": int,
    "digest": str,
    "fingerprint": str,
    "runs": list,
    "split": str,
    "scored_on": str,
}
ROWS_PER_GROUP = 64  # about 16 MB of 32K-token windows: what a reader of whole rows holds


@dataclass
class TableWriter:
    """Writes tables into one Parquet file, and the digest of their rows into its footer."""

    schema: pa.Schema
    _parquet: pq.ParquetWriter
    digest: RowDigest = field(default_factory=RowDigest)

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:
        """Add the rows of a table of just this schema."""
        self.digest.add(table)
        self._parquet.write_table(table, row_group_size=row_group_size)


@contextmanager
def parquet_writer(
    path: Path, schema: pa.Schema, metadata: Mapping[str, Any]
) -> Iterator[TableWriter]:
    """A writer of files that pyarrow, pandas, fastparquet, DuckDB and `datasets` all open.

    zstd level 3; ids plain (on real text smaller and faster than dictionary or delta encoding);
    data page v1 and no byte-stream split, which fastparquet cannot read.
    """
    schema = schema.remove_metadata()
    with pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=["category", "source", "document_id", "reason"],
        data_page_version="1.0",
        write_statistics=["data_id", "ds", "variance", "window_index", "lds", "recurrence"],
        write_page_checksum=True,
    ) as parquet:
        writer = TableWriter(schema, parquet)
        yield writer
        told = {**metadata, "rows": writer.digest.rows, "digest": writer.digest.hex}
        footer = json.dumps(sealed(told), sort_keys=True)
        parquet.add_key_value_metadata({METADATA_KEY: footer.encode()})


def write_table(url: str, table: pa.Table, metadata: Mapping[str, Any]) -> int:
    """Make one Parquet file appear whole; `metadata` goes under the key `longattn` of its footer.

    Returns its size in bytes.
    """
    with staged(url) as path:
        with parquet_writer(path, table.schema, metadata) as writer:
            writer.write_table(table.replace_schema_metadata(), row_group_size=ROWS_PER_GROUP)
        return path.stat().st_size


@contextmanager
def open_parquet(url: str, dictionaries: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    """A file whose pages are compared with their checksums as they are read.

    Args:
        dictionaries: columns of strings that are read as dictionaries, where the file has them.

    Raises OSError where the storage fails, DamagedFileError for what is no Parquet file.
    """
    fs, path = filesystem(url)
    with storage_errors(url):
        file = fs.open(path, "rb")
    with file:
        with readable(url):
            footer = pq.read_metadata(file)
            parquet = pq.ParquetFile(
                file,
                metadata=footer,
                read_dictionary=[name for name in dictionaries if name in footer.schema.names],
                page_checksum_verification=True,
            )
        with parquet:
            yield parquet


class DamagedFileError(ValueError):
    """A stored file that is not what was written; the line names it."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(without_secrets(f"{url}: {why}"))
        self.url = url
        self.why = without_secrets(why)


@contextmanager
def readable(url: str) -> Iterator[None]:
    """Around reading a Parquet file: an OSError or, of what is broken in it, a DamagedFileError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        why = " ".join(f"cannot be read: {error}".split())
        # Of broken pages Arrow raises plain OSErrors, with no number as a system's have.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise OSError(without_secrets(f"{url}: {why}")) from error
        raise DamagedFileError(url, why) from error


def read_row(url: str, row: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """One row of a file by its number; of the file, only its row group is read."""
    with open_parquet(url) as parquet:
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if row < size:
                table = parquet.read_row_group(group, columns=columns).slice(row, 1)
                return dict(table.to_pylist()[0])
            row -= size
    raise ValueError(f"{url}: it has no such row")


def is_own_file(parquet: pq.ParquetFile) -> bool:
    """Whether a file was written by `write_table`."""
    return METADATA_KEY in (parquet.metadata.metadata or {})


def own_files(urls: Iterable[str]) -> list[str]:
    """Those of some Parquet files that are not another program's; what cannot be read stays in.

    Reads the footer of each that is not named as labelled and selected files are.
    """
    return [url for url in urls if is_content_name(url) or _may_be_own(url)]


def _may_be_own(url: str) -> bool:
    try:
        with open_parquet(url) as parquet:
            return is_own_file(parquet)
    except ValueError:
        return True


def file_metadata(parquet: pq.ParquetFile) -> dict[str, Any]:
    """What `write_table` put into the footer; empty for a file of another writer.

    Raises ValueError where it is not what was put there.
    """
    text = (parquet.metadata.metadata or {}).get(METADATA_KEY)
    if text is None:
        return {}
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its footer is damaged: {error}") from None
    told = unsealed(stored, "its footer")
    for name in told.keys() & FOOTER_KINDS.keys():
        if not isinstance(told[name], FOOTER_KINDS[name]):
            raise ValueError(f"its footer is damaged: {name} {told[name]!r:.40}")
    return told


def content_name(*columns: pa.ChunkedArray | pa.Array) -> str:
    """A file name that is a hash of the values inside the file, so that a retry overwrites itself."""
    digest = blake2b(digest_size=16)
    for column in columns:
        digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest() + ".parquet"


def is_content_name(url: str) -> bool:
    """Whether a file is named as `content_name` names them."""
    return re.fullmatch(r"[0-9a-f]{32}\.parquet", url.rpartition("/")[2]) is not None
