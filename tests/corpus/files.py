"""Files of made-up corpora for the tests, and short ways to read them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Record, Split
from longattn.corpus.sources import list_splits

ROWS = [{"text": f"document {i} " + "word é " * (i % 7), "n": i} for i in range(40)]
TEXTS = [str(row["text"]) for row in ROWS]


@dataclass
class Source:
    path: str
    category: str = "book"
    text_column: str = "text"
    columns: tuple[str, ...] = ()


def jsonl(rows: list) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def parquet(table: pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def splits_of(path: Path | str, **options) -> list[Split]:
    return list_splits([Source(str(path))], **options)


def read(path: Path | str, *, split_bytes: int = 1 << 28, **options) -> list[Record | BadRecord]:
    splits = splits_of(path, split_bytes=split_bytes)
    return [item for split in splits for item in read_split(split, **options)]


def texts(items: list[Record | BadRecord]) -> list[str]:
    return [item.text for item in items if isinstance(item, Record)]


def reasons(items: list[Record | BadRecord]) -> list[str]:
    return [str(item.reason) for item in items if isinstance(item, BadRecord)]


def names(splits: list[Split]) -> list[str]:
    return [Path(split.path).name for split in splits]
