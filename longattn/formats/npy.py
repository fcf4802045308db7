"""Token files as OLMo-core and dolma have them: `.npy` with ids and nothing else, bounds beside.

`.npy` is what `numpy.memmap` reads: no header. `.csv.gz` has a line for each document: start and stop in
the file, data_id of its sequence, category, number of its sequence in the file. Sequences are padded to
the window, so that a trainer that cuts a file into windows gets each whole; where some are, `.mask` has a
byte a token, 1 for those that are of a document (OLMo-core's `label_mask_paths`).
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence

import numpy as np

from longattn.formats.part import Format, Group, Part
from longattn.storage.files import staged, write_bytes


class Npy(Format):
    """`npy/<category>-<part>.npy`, `.csv.gz` and, where there is padding, `.mask`."""

    name = "npy"
    reading = (
        "each .npy holds token ids and no header, `numpy.memmap(file, {dtype})`; beside it .csv.gz "
        "has start, stop, data_id, category, sequence of each document, .mask, where there is "
        "padding, a byte a token"
    )
    part_bytes = 1 << 30
    suffixes = (".npy", ".csv.gz")
    ids_suffix = ".npy"
    mask_suffix = ".mask"
    padded = True

    def dtype(self, vocab_size: int) -> np.dtype:
        return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")

    def write_part(self, part: Part, prefix: str) -> None:
        if part.padded:
            with staged(prefix + self.mask_suffix) as path, path.open("wb") as file:
                for sequence in part.sequences():
                    mask = np.zeros(len(sequence.ids), np.bool_)
                    for start, stop in sequence.documents:
                        mask[start:stop] = True
                    file.write(mask.data)
        lines = io.StringIO(newline="")
        sequence_of = np.searchsorted(part.begins, part.documents[:, 0], side="right") - 1
        csv.writer(lines, lineterminator="\n").writerows(
            (start, stop, part.data_ids[number], part.categories[number], number)
            for (start, stop), number in zip(
                part.documents.tolist(), sequence_of.tolist(), strict=True
            )
        )
        write_bytes(prefix + ".csv.gz", gzip.compress(lines.getvalue().encode(), mtime=0))

    def outputs(self, folder: str, groups: Sequence[Group]) -> list[str]:
        return [prefix + ".npy" for group in groups for prefix in group.prefixes]
