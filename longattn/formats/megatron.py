"""The pre-tokenized format of Megatron-LM: pairs of `.bin` and `.idx`.

`.bin` holds the token ids of one window after another, `.idx` where each begins. Layout:
IndexedDataset of megatron-core, version 1. A document is a sequence of its own: a window, or one of the
short documents that are packed into one. No end-of-document token is added: a window is a part of a
document, and ends where it was cut.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from longattn.formats.part import Format, Group, Part
from longattn.storage.files import write_bytes

_HEADER = b"MMIDIDX\x00\x00"
_VERSION = 1
_DTYPE_CODES = {"uint16": 8, "int32": 4}  # of megatron-core's DType
_UINT16_VOCABULARY = 65500  # below it, megatron-core takes uint16


class Megatron(Format):
    """`megatron/<category>-<part>.bin` and `.idx`."""

    name = "megatron"
    reading = (
        "each prefix is for Megatron-LM's `--data-path`: its .bin holds the token ids, its .idx "
        "where each document begins (`IndexedDataset(prefix)`)"
    )
    part_bytes = 4 << 30
    suffixes = (".bin", ".idx")
    ids_suffix = ".bin"

    def dtype(self, vocab_size: int) -> np.dtype:
        return np.dtype("<u2" if vocab_size < _UINT16_VOCABULARY else "<i4")

    def write_part(self, part: Part, prefix: str) -> None:
        dtype = part.ids.dtype
        sizes = np.diff(part.documents).astype("<i4")
        starts = part.documents[:, 0].astype("<i8") * dtype.itemsize
        documents = np.arange(len(sizes) + 1, dtype="<i8")
        code = _DTYPE_CODES[dtype.name]
        header = _HEADER + struct.pack("<QBQQ", _VERSION, code, len(sizes), len(documents))
        index = b"".join([header, sizes.tobytes(), starts.tobytes(), documents.tobytes()])
        write_bytes(prefix + ".idx", index)

    def outputs(self, folder: str, groups: Sequence[Group]) -> list[str]:
        """The prefixes, as `--data-path` takes them."""
        return [prefix for group in groups for prefix in group.prefixes]
