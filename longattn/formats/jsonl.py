"""JSON Lines, zstd: `data_id`, `category`, `length`, `documents`, `input_ids` of a sequence in each line.

`documents` has start and stop of each document in `input_ids`; tokens outside of them are padding. The
text of a window is in the selected Parquet files.
"""

from __future__ import annotations

import numpy as np
import orjson
import zstandard

from longattn.formats.part import Format, Part
from longattn.storage.files import staged

# Digits repeat in short runs that are not worth a look: with matches of 7 bytes and more, found by a table
# that stays in the cache, in a window of one block, one core takes 1.3 to 1.4 times what level 1 does, and
# the files are as small (1.1 bytes an id of real text; 2.2 of ids drawn one by one). Level -20 takes 1.3
# times as much again, and makes 2.2 times the bytes.
_ZSTD = zstandard.ZstdCompressionParameters.from_level(
    1, strategy=zstandard.STRATEGY_FAST, min_match=7, hash_log=12, target_length=0, window_log=17
)


class JSONL(Format):
    """`jsonl/<category>-<part>.jsonl.zst`."""

    name = "jsonl"
    reading = (
        "each line of the .jsonl.zst files is an object: data_id, category, length, documents "
        '(start and stop of each in input_ids), input_ids; `datasets.load_dataset("json", '
        "data_files=...)`, or zstd and json, read them"
    )
    part_bytes = 64 << 20
    suffixes = (".jsonl.zst",)

    def dtype(self, vocab_size: int) -> np.dtype:
        return np.dtype("<i4")

    def write_part(self, part: Part, prefix: str) -> None:
        compressor = zstandard.ZstdCompressor(compression_params=_ZSTD)
        with (
            staged(prefix + ".jsonl.zst") as path,
            path.open("wb") as file,
            compressor.stream_writer(file, closefd=False) as lines,
        ):
            for sequence in part.sequences():
                row = {
                    "data_id": sequence.data_id,
                    "category": sequence.category,
                    "length": len(sequence.ids),
                    "documents": sequence.documents.tolist(),
                    "input_ids": sequence.ids,
                }
                option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
                lines.write(orjson.dumps(row, option=option))
