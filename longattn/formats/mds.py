"""Mosaic Data Shards, the format of mosaicml-streaming, which ProLong's trainer and its forks read.

A shard: the number of samples (uint32), where each begins and the last ends (uint32 each), then the
samples. A sample: the length of each of its values that has no fixed one (uint32), then the values, in
order of their names. `index.json` beside the shards, written last, lists them. MDS, version 2.

Fields: `input_ids` (int32), `indices` (int32, a row of start and stop for each document, as ProLong's
collator takes them), `domain` (the category), `length` (of `input_ids`), `data_id`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longattn.formats.part import Format, Group, Part, TokenSequence
from longattn.storage.files import list_files, staged, write_bytes

_ENCODINGS = {
    "data_id": "str",
    "domain": "str",
    "indices": "ndarray:int32",
    "input_ids": "ndarray:int32",
    "length": "int",
}
"""In order of name, as they lie in a sample."""
_LENGTH_BYTES = 8  # of an `int`, the one value of fixed size


class MDS(Format):
    """`mds/<category>/shard.<part>.mds` and `index.json`; shuffled, all in `mds/` itself."""

    name = "mds"
    reading = (
        "each folder is a stream of mosaicml-streaming, `StreamingDataset(local=...)`, with "
        "input_ids, indices (start and stop of each document), domain, length, data_id"
    )
    part_bytes = 64 << 20  # what a training node fetches at a time
    suffixes = (".mds",)
    index = "index.json"

    def dtype(self, vocab_size: int) -> np.dtype:
        return np.dtype("<i4")

    def prefix(self, group: str, number: int) -> str:
        return f"{group}/shard.{number:05d}" if group else f"shard.{number:05d}"

    def write_part(self, part: Part, prefix: str) -> None:
        heads = [_head(sequence) for sequence in part.sequences()]
        sizes = [
            len(head) + sequence.ids.nbytes + _LENGTH_BYTES
            for head, sequence in zip(heads, part.sequences(), strict=True)
        ]
        before = 4 * (len(sizes) + 2)
        begins = np.cumsum([before, *sizes], dtype=np.int64)
        with staged(prefix + ".mds") as path, path.open("wb") as file:
            file.write(struct.pack("<I", len(sizes)) + begins.astype("<u4").tobytes())
            for head, sequence in zip(heads, part.sequences(), strict=True):
                file.write(head)
                file.write(sequence.ids.data)
                file.write(struct.pack("<q", len(sequence.ids)))

    def write_index(self, folder: str, group: Group) -> None:
        url = self.index_url(folder, group)
        sizes = list_files(url.rpartition("/")[0], ".mds")
        shards = [
            _shard(f"{prefix.rpartition('/')[2]}.mds", sizes[f"{prefix}.mds"], sequences)
            for prefix, sequences in zip(group.prefixes, group.sequences, strict=True)
        ]
        text = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
        write_bytes(url, text.encode())

    def outputs(self, folder: str, groups: Sequence[Group]) -> list[str]:
        """The folders, each a stream of mosaicml-streaming."""
        return [self.index_url(folder, group).rpartition("/")[0] for group in groups]


def _head(sequence: TokenSequence) -> bytes:
    """All of a sample before the ids themselves."""
    texts = [sequence.data_id.encode(), sequence.category.encode()]
    shapes = [_shape(sequence.documents), _shape(sequence.ids)]
    indices = shapes[0] + sequence.documents.astype("<i4").tobytes()
    sizes = [*map(len, texts), len(indices), len(shapes[1]) + sequence.ids.nbytes]
    return struct.pack(f"<{len(sizes)}I", *sizes) + b"".join([*texts, indices, shapes[1]])


def _shape(array: NDArray[Any]) -> bytes:
    """How many axes, and their lengths, in the smallest unsigned numbers that hold them all."""
    width = next(n for n in range(4) if max(array.shape) < 1 << (8 << n))
    lengths = np.array(array.shape, f"<u{1 << width}")
    return bytes([len(array.shape) << 2 | width]) + lengths.tobytes()


def _shard(basename: str, size: int, samples: int) -> dict[str, Any]:
    return {
        "column_encodings": list(_ENCODINGS.values()),
        "column_names": list(_ENCODINGS),
        "column_sizes": [_LENGTH_BYTES if name == "length" else None for name in _ENCODINGS],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "raw_data": {"basename": basename, "bytes": size, "hashes": {}},
        "samples": samples,
        "size_limit": MDS.part_bytes,
        "version": 2,
        "zip_data": None,
    }
