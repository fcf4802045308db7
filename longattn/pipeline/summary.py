"""What a run did, in numbers: `summary.json` holds it, and the commands print a table of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from longattn.config import Config
from longattn.corpus.counts import Counts
from longattn.corpus.records import Split
from longattn.resume.markers import digest_of, read_markers
from longattn.resume.remaining import Remaining
from longattn.selection.selection_record import CategorySelection
from longattn.storage.digests import json_checksum
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record
from longattn.text import without_secrets

if TYPE_CHECKING:
    from longattn.pipeline.execution import Outcome


@dataclass(frozen=True)
class CategorySummary:
    """One category of the whole folder: what became of its records, and what was selected."""

    counts: Counts
    windows: int
    """Labelled, also from files that are gone or have changed since."""
    selection: CategorySelection | None
    """None where nothing was selected in this run."""

    @property
    def quarantine(self) -> dict[str, int]:
        """Records that could not be used, by reason."""
        return dict(self.counts.bad)

    def to_dict(self) -> dict[str, Any]:
        """One flat mapping; what was selected is missing where nothing was."""
        counts = self.counts.to_dict()
        del counts["bad"], counts["seconds"]
        selection = self.selection.to_dict() if self.selection else {}
        return {**counts, "quarantine": self.quarantine, "windows": self.windows, **selection}


@dataclass(frozen=True)
class StageRate:
    """What all actors of a stage did in this run."""

    documents: int = 0
    windows: int = 0
    bytes: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of one actor."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, float]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class RunSummary:
    """What a run did; `summary.json` holds `to_dict()`."""

    output: str
    fingerprint: str
    categories: dict[str, CategorySummary]
    window: StageRate
    score: StageRate
    splits: dict[str, int]
    faults: dict[str, int]
    select_seconds: float = 0.0
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)
    """What executors and checks have to say beside: the dtype, files left out, ..."""
    tables_written: Mapping[str, int] = field(default_factory=dict)
    """Of each further score, the tables that this run wrote; no part of summary.json."""

    def timed(self, *, select: float, total: float) -> RunSummary:
        return replace(self, select_seconds=select, seconds=total)

    def to_dict(self) -> dict[str, Any]:
        return {
            "output": self.output,
            "fingerprint": self.fingerprint,
            "categories": {name: c.to_dict() for name, c in self.categories.items()},
            "stages": {
                "window": self.window.to_dict(),
                "score": self.score.to_dict(),
                "select": {"seconds": self.select_seconds},
            },
            "splits": self.splits,
            "faults": self.faults,
            "seconds": self.seconds,
            **self.extra,
        }


def summarise(
    config: Config,
    fingerprint: str,
    splits: list[Split],
    remaining: tuple[Remaining, Remaining],
    outcome: Outcome | None,
    selection: Mapping[str, CategorySelection],
) -> RunSummary:
    """Totals of the whole folder by category, from the markers; rates of this run by stage.

    Args:
        remaining: before the execution and after it.
        outcome: of the execution; None where nothing remained.
    """
    before, after = remaining
    markers = read_markers(config.output)
    this_run = {split.id for split in before.splits}
    totals: dict[str, Counts] = {}
    read = Counts()
    for split in splits:
        counts = markers[split.id].counts
        totals.setdefault(split.category, Counts()).add(counts)
        if split.id in this_run:
            read.add(counts)
    categories = {
        name: CategorySummary(
            totals.get(name, Counts()), after.windows.get(name, 0), selection.get(name)
        )
        for name in sorted({*totals, *selection})
    }
    scored = outcome.progress.scored if outcome else None
    return RunSummary(
        output=without_secrets(config.output),
        fingerprint=fingerprint,
        categories=categories,
        window=StageRate(
            documents=read.documents,
            windows=read.windows,
            bytes=read.bytes,
            tokens=read.tokens,
            seconds=read.seconds,
        ),
        score=StageRate(windows=scored.windows, tokens=scored.tokens, seconds=scored.seconds)
        if scored
        else StageRate(),
        splits={"all": len(splits), "read": len(before.splits), "done before": before.finished},
        faults={
            "actor restarts": outcome.registry.restarts if outcome else 0,
            "splits tried again": outcome.registry.retries if outcome else 0,
        },
    )


def proofs(folder: OutputFolder, splits: list[Split]) -> dict[str, Any]:
    """What `verify` holds a summary against: the markers and samples that it is of."""
    listed = {split.id for split in splits}
    markers = read_markers(folder.url)
    return {
        "other_splits": sorted(markers.keys() - listed),
        "markers": digest_of(markers[name] for name in markers.keys() & listed),
        "samples": json_checksum(read_record(folder.record("samples"))),
    }
