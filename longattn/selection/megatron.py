"""The selected windows in the pre-tokenized format of Megatron-LM: pairs of `.bin` and `.idx`.

`.bin` holds the token ids of one window after another, `.idx` where each begins; a window is a
sequence and a document of its own. Layout: IndexedDataset of megatron-core, version 1. No
end-of-document token is added: a window is a part of a document, and ends where it was cut.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from longattn.storage.files import join, list_files, remove, staged
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import open_parquet, own_files

_HEADER = b"MMIDIDX\x00\x00"
_VERSION = 1
_DTYPE_CODES = {"uint16": 8, "int32": 4}  # of megatron-core's DType
_UINT16_VOCABULARY = 65500  # below it, megatron-core takes uint16


def export_megatron(
    path: str, vocab_size: int, *, name: str | None = None, part_bytes: int = 4 << 30
) -> list[str]:
    """Write `<path>/selected` as `<path>/megatron/<category>-<part>.bin` and `.idx`.

    Parts keep what is staged locally for an object store bounded; rows are in the order of the
    selected files. Files of an earlier export that are not written again are removed.

    Args:
        path: the output folder of a run.
        vocab_size: of the tokenizer; ids are uint16 below 65500, else int32, as Megatron has it.
        name: of the selection; its files go to `<path>/megatron/<name>`.
        part_bytes: a part is full once its ids take this many bytes.

    Returns:
        The paths without suffix, as `--data-path` of Megatron takes them.

    Raises:
        ValueError: nothing was selected, or an id outside the vocabulary.
    """
    folder = OutputFolder(path)
    files = own_files(folder.selected_files(name))
    target = join(folder.megatron, name) if name else folder.megatron
    if not files:
        raise ValueError(f"{folder.selection(name)}: no selected windows to export")
    dtype = np.dtype("uint16" if vocab_size < _UINT16_VOCABULARY else "int32").newbyteorder("<")
    prefixes = []
    for of_category, urls in groupby(files, key=lambda url: url.rpartition("/")[0]):
        category = of_category.rpartition("/")[2]
        windows = _windows(list(urls), vocab_size)
        first, part = next(windows, None), 0
        while first is not None:
            prefix = join(target, f"{category}-{part:05d}")
            prefixes.append(prefix)
            with staged(prefix + ".bin") as local, local.open("wb") as file:
                lengths, first = _write(file, first, windows, dtype, part_bytes)
            with staged(prefix + ".idx") as local:  # last: who finds it finds the ids
                _write_index(local, lengths, dtype)
            part += 1
    wanted = {prefix + suffix for prefix in prefixes for suffix in (".bin", ".idx")}
    for suffix in (".idx", ".bin"):
        for url in list_files(target, suffix).keys() - wanted:
            if name or "/" not in url[len(target) + 1 :]:  # else of a selection with a name
                remove(url)
    return prefixes


def _windows(urls: list[str], vocab_size: int) -> Iterator[NDArray[np.int32]]:
    for url in urls:
        with open_parquet(url) as parquet:
            for group in range(parquet.num_row_groups):
                column = parquet.read_row_group(group, columns=["input_ids"])["input_ids"]
                for ids in column:
                    ids_l = ids.values.to_numpy()
                    if len(ids_l) and not 0 <= ids_l.min() <= ids_l.max() < vocab_size:
                        raise ValueError(
                            f"{url}: ids from {ids_l.min()} to {ids_l.max()}; the vocabulary has "
                            f"0 to {vocab_size - 1}"
                        )
                    yield ids_l


def _write(
    file: BinaryIO,
    window: NDArray[np.int32] | None,
    windows: Iterator[NDArray[np.int32]],
    dtype: np.dtype,
    part_bytes: int,
) -> tuple[list[int], NDArray[np.int32] | None]:
    """Fill one `.bin`; returns the lengths of its windows, and the first window of the next part."""
    lengths: list[int] = []
    while window is not None and file.tell() < part_bytes:
        file.write(window.astype(dtype).tobytes())
        lengths.append(len(window))
        window = next(windows, None)
    return lengths, window


def _write_index(path: Path, lengths: list[int], dtype: np.dtype) -> None:
    sizes = np.array(lengths, "<i4")
    starts = np.cumsum([0, *lengths[:-1]], dtype="<i8") * dtype.itemsize
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    code = _DTYPE_CODES[dtype.name]
    header = _HEADER + struct.pack("<QBQQ", _VERSION, code, len(sizes), len(documents))
    path.write_bytes(b"".join([header, sizes.tobytes(), starts.tobytes(), documents.tobytes()]))
