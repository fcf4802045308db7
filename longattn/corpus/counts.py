"""What became of the records of a corpus, and when too many of them are bad to go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ENOUGH_RECORDS, ENOUGH_BYTES = 1000, 1 << 30  # of which one that is bad does not decide


@dataclass
class ReadTotals:
    """How much was read, and how much of it could not be used."""

    stored: int = 0  # bytes of all splits, also of those not read yet
    records: int = 0
    lost_bytes: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, counts: Mapping[str, Any]) -> None:
        """Of a split: its `Counts` as a mapping."""
        self.records += counts["records"]
        self.lost_bytes += counts.get("lost_bytes", 0)
        self.bad.update(counts["bad"])

    def too_bad(self, most: float) -> str:
        """Why a run must stop where this fraction of records, or of bytes, may be bad; or ""."""
        bad = self.bad.total()
        enough = self.records >= ENOUGH_RECORDS
        broken = self.lost_bytes > most * self.stored and (enough or self.stored >= ENOUGH_BYTES)
        if not broken and not (enough and bad > most * self.records):
            return ""
        told = ", ".join(f"{reason} {n}" for reason, n in self.bad.most_common())
        lost = f", {self.lost_bytes:,} bytes in broken files" if self.lost_bytes else ""
        return (
            f"{bad} of {self.records} records are bad ({told}){lost}, over max_bad_fraction "
            f"{most}; they are in quarantine/"
        )


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
