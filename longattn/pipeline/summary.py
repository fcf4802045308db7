"""What a run did, in numbers: `summary.json`, and the table that a command prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longattn.config import Config
from longattn.corpus.records import Split
from longattn.resume.markers import read_markers
from longattn.resume.remaining import Remaining
from longattn.selection import CategorySelection
from longattn.text import without_secrets


@dataclass(frozen=True)
class RunSummary:
    """What a run did; `summary.json` holds the same."""

    output: str
    fingerprint: str
    categories: dict[str, dict[str, Any]]
    stages: dict[str, dict[str, float]]
    splits: dict[str, int]
    faults: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def summarise(
    config: Config,
    fingerprint: str,
    splits: list[Split],
    left: Remaining,
    windows: dict[str, int],
    scored: dict[str, float],
    state: dict[str, Any],
    selection: dict[str, CategorySelection],
    select_seconds: float,
    seconds: float,
) -> RunSummary:
    """Totals of the whole folder by category, from the markers; rates of this run by stage."""
    markers = read_markers(config.output)
    this_run = {split.id for split in left.splits}
    categories: dict[str, dict[str, Any]] = {}
    read = {"documents": 0, "bytes": 0, "tokens": 0, "seconds": 0.0}
    for split in splits:
        counts = markers[split.id].counts
        total = categories.setdefault(split.category, {"quarantine": {}})
        for name, value in counts.items():
            if name == "bad":
                for reason, n in value.items():
                    total["quarantine"][reason] = total["quarantine"].get(reason, 0) + n
            elif name != "seconds":
                total[name] = total.get(name, 0) + value
        if split.id in this_run:
            read = {name: value + counts[name] for name, value in read.items()}
    for category, total in categories.items():  # some may be of files that are gone or changed
        total["windows"] = windows.get(category, 0)
    for category, chosen in selection.items():
        categories.setdefault(category, {"quarantine": {}}).update(chosen.to_dict())
    return RunSummary(
        output=without_secrets(config.output),
        fingerprint=fingerprint,
        categories=categories,
        stages={
            "window": _rate(read),
            "score": _rate(scored),
            "select": {"seconds": select_seconds},
        },
        splits={"all": len(splits), "read": len(left.splits), "done before": left.finished},
        faults={"actor restarts": state["restarts"], "splits tried again": state["retries"]},
        seconds=seconds,
    )


def _rate(stage: dict[str, float]) -> dict[str, float]:
    """A stage's totals over all its actors, with tokens a second of one actor."""
    rate = stage["tokens"] / stage["seconds"] if stage["seconds"] else 0.0
    return {**stage, "tokens_per_second": rate}
