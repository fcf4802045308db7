"""Reads one split of a corpus: every line or row becomes a Record or a BadRecord, none is lost.

What the bytes hold is never trusted: bad content is reported and reading goes on, in memory bounded
by `max_record_bytes`. What the storage fails to give is an OSError, for the caller to try again.
"""

from __future__ import annotations

from collections.abc import Iterator

from longattn.corpus.jsonl import Broken, decompressed, jsonl_lines, parsed_line
from longattn.corpus.parquet import parquet_rows
from longattn.corpus.records import BadRecord, Record, Split, open_listed, stored_bytes


def read_split(split: Split, *, max_record_bytes: int = 512 << 20) -> Iterator[Record | BadRecord]:
    """Every record of a split, in the order of the file.

    Blank lines are no records. Lines end with "\\n" only. A line that orjson refuses is tried once
    more with Python's json, which takes what its own writer writes: NaN, Infinity, and lone
    surrogates in columns that are not asked for. Nested deeper than that can follow is not_json.
    A Parquet row group without a text column of strings, or broken in the middle, gives one
    BadRecord that tells the number of rows; a broken archive, or a Parquet file without a good
    footer, one that tells the stored bytes.

    Args:
        split: from `list_splits`.
        max_record_bytes: cap on a line, or on a Parquet value. A longer one is skipped and reported.

    Raises:
        OSError: the storage failed; reading the split again may work.
        ValueError: the file is not the one that was listed.
    """
    with open_listed(split) as file:
        if split.format == "parquet":
            yield from parquet_rows(file, split, max_record_bytes)
            return
        stop = split.file_size if split.stop is None else split.stop
        pieces: Iterator[bytes | Broken] = stored_bytes(file, split, max(split.start - 1, 0), stop)
        if split.compression:
            pieces = decompressed(pieces, split.compression, split.file_size)
        end = None if split.compression else stop
        for item in jsonl_lines(pieces, split.start, end, max_record_bytes):
            if isinstance(item, BadRecord):
                yield item
                continue
            record = parsed_line(*item, split.text_column)
            del item  # a 50 MB line would live on beside its text
            if record is not None:
                yield record
