"""What a format is handed, and what it must say of itself.

An export is cut into parts: files of about one size, each with the sequences that a trainer sees, one
after another. A sequence is a window, or some short documents packed into one. A new format is a
subclass of `Format` in a module of its own, named in `registry.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longattn.storage.files import join


class TokenSequence(NamedTuple):
    """What a trainer is to see at once."""

    data_id: str
    category: str
    ids: NDArray[np.integer]
    documents: NDArray[np.int64]
    """(documents, 2): where in `ids` each begins and ends; tokens outside of them are padding."""


@dataclass(frozen=True)
class Part:
    """Sequences of one part, in order."""

    ids: NDArray[np.integer]
    """(tokens,) of all sequences, one after another."""
    begins: NDArray[np.int64]
    """(sequences + 1,): where each begins in `ids`, and the end."""
    documents: NDArray[np.int64]
    """(documents, 2): where in `ids` each begins and ends."""
    data_ids: Sequence[str]
    """(sequences,)"""
    categories: Sequence[str]
    """(sequences,)"""
    padded: bool = False
    """Whether some sequence of the export has tokens outside of its documents."""

    def sequences(self) -> Iterator[TokenSequence]:
        first = np.searchsorted(self.documents[:, 0], self.begins)
        for i, (data_id, category) in enumerate(zip(self.data_ids, self.categories, strict=True)):
            start, stop = self.begins[i], self.begins[i + 1]
            documents = self.documents[first[i] : first[i + 1]] - start
            yield TokenSequence(data_id, category, self.ids[start:stop], documents)


class Group(NamedTuple):
    """Parts that a trainer is given together: a category, or all of them where they are shuffled."""

    name: str
    """Empty where all categories are in it."""
    prefixes: list[str]
    """URLs of its parts, without suffix."""
    sequences: list[int]
    """Of each part."""


class Format(ABC):
    """How one trainer wants its files."""

    name: ClassVar[str]
    reading: ClassVar[str]
    """What its files hold and how they are read, in one line for people; {dtype}: of ids."""
    part_bytes: ClassVar[int]
    """A part is full once its ids take this many bytes."""
    suffixes: ClassVar[tuple[str, ...]]
    """Of the files of a part, in the order in which they appear: who finds the last finds all."""
    mask_suffix: ClassVar[str] = ""
    """Of a further file, before the last, where sequences are padded."""
    ids_suffix: ClassVar[str] = ""
    """Of the file that holds nothing but ids: it is written without this format's help."""
    padded: ClassVar[bool] = False
    """Whether each sequence must be of one length, because the trainer cuts a file into such."""
    index: ClassVar[str] = ""
    """Name of a file beside the parts of a group, written when all of them are there."""

    @abstractmethod
    def dtype(self, vocab_size: int) -> np.dtype:
        """Of the ids of a vocabulary."""

    @abstractmethod
    def write_part(self, part: Part, prefix: str) -> None:
        """Make the files of a part appear, each whole, but for that of `ids_suffix`."""

    def prefix(self, group: str, number: int) -> str:
        """Name of a part below the folder of the format, without suffix."""
        return f"{group or 'shuffled'}-{number:05d}"

    def index_url(self, folder: str, group: Group) -> str:
        """Where the file `index` of a group is."""
        return join(folder, group.name, self.index) if group.name else join(folder, self.index)

    def write_index(self, folder: str, group: Group) -> None:  # noqa: B027 - few have one
        """Make the file `index` of a group appear."""

    def outputs(self, folder: str, groups: Sequence[Group]) -> list[str]:
        """What the trainer is given: by default the path of each part's last file."""
        last = self.suffixes[-1]
        return [prefix + last for group in groups for prefix in group.prefixes]
