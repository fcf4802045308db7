"""Markers: what each split gave, written by the actor that read it to its end.

They lie in `_longattn/splits/*.json`, one file a task; each has a checksum of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from longattn.corpus.counts import Counts
from longattn.corpus.records import Reason, Split
from longattn.storage.digests import CHECKSUM, sealed, unsealed
from longattn.storage.files import join, list_files, parallel, read_json, remove, write_json
from longattn.storage.output_folder import OutputFolder
from longattn.windows.ids import hash_key


@dataclass
class IdSet:
    """How many ids, and the sum of their 128-bit hashes: equal for equal sets in any order.

    A lost id beside one that is there twice leaves the number as it was, but not the sum.
    """

    count: int = 0
    total: int = 0

    def add(self, data_id: str) -> None:
        self.count += 1
        self.total = (self.total + int.from_bytes(hash_key(data_id))) % 2**128

    def merge(self, count: int, total: str) -> None:
        self.count += count
        self.total = (self.total + int(total, 16)) % 2**128

    @property
    def hex(self) -> str:
        return f"{self.total:032x}"


@dataclass(frozen=True)
class Marker:
    """What one split gave, as written by the actor that read it to its end."""

    split: str
    path: str
    category: str
    windows: int  # labelled under this split; not those under an earlier version of its file
    ids: str  # IdSet.hex of them
    generation: int  # of the run; the marker of a later run replaces an earlier one
    waits_for: list[str]  # splits that cut documents which this one holds too
    counts: Counts = field(repr=False)
    largest: int = 0  # bytes that a record was allowed when one was over it; else 0

    @classmethod
    def of(
        cls,
        split: Split,
        counts: Counts,
        ids: IdSet,
        generation: int,
        waits_for: Iterable[str] = (),
        max_record_bytes: int = 0,
    ) -> Marker:
        """The marker of a split that has been read to its end."""
        largest = max_record_bytes if counts.bad[Reason.OVER_SIZE_CAP] else 0
        return cls(
            split.id,
            split.source,
            split.category,
            ids.count,
            ids.hex,
            generation,
            sorted(waits_for),
            counts,
            largest,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Marker:
        """Raises ValueError for what is no marker, or not what its checksum was taken of."""
        stored = unsealed(values, "marker")
        try:
            marker = cls(**{**stored, "counts": Counts.from_dict(stored["counts"])})
            names = [marker.split, marker.path, marker.category, *marker.waits_for]
            numbers = [marker.windows, marker.generation, marker.largest]
            if not all(isinstance(name, str) for name in names):
                raise TypeError("a name that is no text")
            if not all(isinstance(number, int) and number >= 0 for number in numbers):
                raise TypeError("a number that counts nothing")
            int(marker.ids, 16)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"marker: damaged: {error}") from None
        return marker

    def to_dict(self) -> dict[str, Any]:
        return sealed({**vars(self), "counts": self.counts.to_dict()})


def write_markers(output: str, markers: Sequence[Marker]) -> None:
    """Put the markers of one task as one file, named after its splits."""
    name = blake2b("".join(m.split for m in markers).encode(), digest_size=16).hexdigest()
    url = join(OutputFolder(output).markers, f"{name}.json")
    write_json(url, [m.to_dict() for m in markers])


def read_markers(output: str, damaged: dict[str, str] | None = None) -> dict[str, Marker]:
    """The latest marker of each split, by its id; of a damaged file none.

    `damaged` is given those files, with what is wrong with each.
    """
    found: list[Marker] = []
    files = list_files(OutputFolder(output).markers, ".json")
    for url, markers in zip(files, parallel(_read_file, files), strict=True):
        if isinstance(markers, str):
            if damaged is not None:
                damaged[url] = markers
        else:
            found += markers
    return {m.split: m for m in sorted(found, key=lambda m: m.generation)}


def _read_file(url: str) -> list[Marker] | str:
    """The markers of a file, or what is wrong with it."""
    try:
        values = read_json(url)
        if values is None:
            return []
        if not isinstance(values, list):
            return "damaged: a list of markers is required"
        return [Marker.from_dict(value) for value in values]
    except (ValueError, RecursionError) as error:
        return " ".join(str(error).split()).removeprefix(f"{url}: ").removeprefix("marker: ")


def digest_of(markers: Iterable[Marker]) -> str:
    """32 hex digits for a set of markers, in any order: the sum of hashes of all that they say."""
    given = IdSet()
    for marker in markers:
        given.add(marker.to_dict()[CHECKSUM])
    return given.hex


def forget(output: str, void: Collection[str]) -> None:
    """Take the markers of some splits out."""
    for url in list_files(OutputFolder(output).markers, ".json") if void else ():
        stored = read_json(url)
        kept = [value for value in stored if value["split"] not in void]
        if not kept:
            remove(url)
        elif len(kept) < len(stored):
            write_json(url, kept)
