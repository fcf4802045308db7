"""Markers: what each split gave, written by the actor that read it to its end.

They lie in `_longattn/splits/*.json`, one file a task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from longattn.corpus.records import Reason, Split
from longattn.storage.files import join, list_files, read_json, remove, write_json
from longattn.windows.ids import hash_key

if TYPE_CHECKING:
    from longattn.corpus.counts import Counts
from longattn.storage.files import parallel
from longattn.storage.output_folder import FOLDER


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
    """What one split gave, as put by the actor that read it to its end."""

    split: str
    path: str
    category: str
    windows: int  # labelled under this split; not those under an earlier version of its file
    ids: str  # IdSet.hex of them
    generation: int  # of the run; the marker of a later run replaces an earlier one
    waits_for: list[str]  # splits that cut documents which this one holds too
    counts: dict[str, Any] = field(repr=False)
    largest: int = 0  # bytes that a record was allowed when one was over it; else 0


def marker_of(
    split: Split,
    counts: Counts,
    ids: IdSet,
    generation: int,
    waits_for: Iterable[str] = (),
    max_record_bytes: int = 0,
) -> Marker:
    values = {**vars(counts), "bad": dict(counts.bad)}
    largest = max_record_bytes if counts.bad[Reason.OVER_SIZE_CAP] else 0
    return Marker(
        split.id, split.source, split.category, ids.count, ids.hex, generation, sorted(waits_for),
        values, largest,
    )  # fmt: skip


def write_markers(output: str, markers: Sequence[Marker]) -> None:
    """Put the markers of one task as one file, named after its splits."""
    name = blake2b("".join(m.split for m in markers).encode(), digest_size=16).hexdigest()
    write_json(join(output, FOLDER, "splits", f"{name}.json"), [asdict(m) for m in markers])


def read_markers(output: str) -> dict[str, Marker]:
    """The latest marker of each split, by its id."""
    files = list_files(join(output, FOLDER, "splits"), ".json")
    found = (Marker(**value) for values in parallel(read_json, files) for value in values or [])
    return {m.split: m for m in sorted(found, key=lambda m: m.generation)}


def forget(output: str, void: Collection[str]) -> None:
    """Take the markers of some splits out."""
    for url in list_files(join(output, FOLDER, "splits"), ".json") if void else ():
        there = read_json(url)
        kept = [value for value in there if value["split"] not in void]
        if not kept:
            remove(url)
        elif len(kept) < len(there):
            write_json(url, kept)
