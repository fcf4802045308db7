"""What became of the records of a corpus, and when too many of them are bad to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from longattn.corpus.records import BadRecord
from longattn.text import counted_are

ENOUGH_RECORDS, ENOUGH_BYTES = 1000, 1 << 30  # of which one that is bad does not decide


@dataclass
class Counts:
    """What became of the records of a split."""

    records: int = 0
    documents: int = 0
    too_short: int = 0
    duplicates: int = 0
    inexact: int = 0  # documents whose ids a forced cut may have changed
    windows: int = 0
    sampled_out: int = 0
    tokens: int = 0  # of the documents that were tokenized
    bytes: int = 0
    lost_bytes: int = 0  # stored ones, after which a file is broken
    seconds: float = 0.0
    bad: Counter[str] = field(default_factory=Counter)
    unread: int = 0  # splits that have records, none of which could be used
    first_bad: str = ""  # of one split: why its first bad record is one

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Counts:
        """Raises KeyError, TypeError or ValueError for what `to_dict` does not give."""
        counts = cls(**{**values, "bad": Counter(values["bad"])})
        numbers = {**vars(counts), **counts.bad}
        for name in numbers.keys() - {"bad", "first_bad"}:
            if not isinstance(numbers[name], (int, float)) or not numbers[name] >= 0:
                raise ValueError(f"{name} {numbers[name]!r:.40}: no count")
        return counts

    def to_dict(self) -> dict[str, Any]:
        values = {**vars(self), "bad": dict(self.bad)}
        if not self.first_bad:
            del values["first_bad"]
        return values

    def add_bad(self, bad: BadRecord) -> None:
        """Count a record that could not be used, or what stands for several."""
        self.records += bad.records
        self.bad[bad.reason] += bad.records
        self.lost_bytes += bad.lost_bytes
        self.first_bad = self.first_bad or f"{bad.reason}: {bad.detail}"

    def end(self) -> None:
        """The split is read to its end."""
        self.unread = int(0 < self.records == self.bad.total())

    def add(self, other: Counts) -> None:
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def subtract(self, other: Counts) -> None:
        """Take back what `add` of it added."""
        for name in SUMMED:
            setattr(self, name, getattr(self, name) - getattr(other, name))


SUMMED = [field.name for field in fields(Counts) if field.name != "first_bad"]


@dataclass
class ReadTotals:
    """How much was read, and how much of it could not be used."""

    stored: int = 0  # bytes of all splits, also of those not read yet
    records: int = 0
    lost_bytes: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    unread: dict[str, str] = field(default_factory=dict)
    """Files, or parts of them, of which nothing could be read, and why."""

    def add(self, counts: Counts, path: str = "") -> None:
        """Add what became of the records of a split of the file `path`."""
        if counts.unread and path:
            self.unread.setdefault(path, counts.first_bad)
        self.records += counts.records
        self.lost_bytes += counts.lost_bytes
        self.bad.update(counts.bad)

    def subtract(self, counts: Counts) -> None:
        """Take back what `add` of them, without a path, added."""
        self.records -= counts.records
        self.lost_bytes -= counts.lost_bytes
        self.bad = self.bad - counts.bad

    def unread_lines(self, most: int = 10) -> list[str]:
        """A line for each file of which nothing could be read; of more, how many."""
        files = sorted(self.unread.items())
        lines = [f"{path}: nothing could be read: {why}" for path, why in files[:most]]
        if len(files) > most:
            lines.append(f"of {len(files) - most:,} more files nothing could be read")
        return lines

    def too_bad(self, most: float) -> str:
        """Why a run must stop where this fraction of records, or of bytes, may be bad; or ""."""
        bad = self.bad.total()
        enough = self.records >= ENOUGH_RECORDS
        broken = self.lost_bytes > most * self.stored and (enough or self.stored >= ENOUGH_BYTES)
        if not broken and not (enough and bad > most * self.records):
            return ""
        reasons = ", ".join(f"{reason} {n}" for reason, n in self.bad.most_common())
        lost = f", {self.lost_bytes:,} bytes in broken files" if self.lost_bytes else ""
        return (
            f"{bad} of {counted_are(self.records, 'record')} bad ({reasons}){lost}, over max_bad_fraction "
            f"{most}; they are in quarantine/"
        )
