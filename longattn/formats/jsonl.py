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

# Of random ids below 128256, on one core: level 1 takes 3.0 bytes an id, 3 as many in twice the time.
_LEVEL = 1


class JSONL(Format):
    """`jsonl/<category>-<part>.jsonl.zst`."""

    name = "jsonl"
    part_bytes = 256 << 20
    suffixes = (".jsonl.zst",)

    def dtype(self, vocab_size: int) -> np.dtype:
        return np.dtype("<i4")

    def write_part(self, part: Part, prefix: str) -> None:
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
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
