"""What a run would give and cost, estimated from a sample before anything is written.

What is there is told first, then what a sample of it says (`plan_sample.py`), then what was measured.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from longattn.config import SCORER_BATCH, Config
from longattn.corpus.apart import require_apart
from longattn.corpus.counts import ENOUGH_RECORDS
from longattn.corpus.first_look import check_sources, column_types
from longattn.corpus.records import Split
from longattn.corpus.sources import list_splits
from longattn.models import require_reachable
from longattn.reports.plan_sample import CategoryPlan, Sample
from longattn.reports.plan_scores import ScoreCost, score_costs
from longattn.resume.fingerprint import read_run_record
from longattn.resume.remaining import find_remaining
from longattn.scoring.settings import ScoreSettings
from longattn.selection.columns import require_selectable
from longattn.selection.kept_heads import kept_choices
from longattn.settings.reference import settings_in_force
from longattn.storage.files import warn_if_slow
from longattn.storage.output_folder import OutputFolder, require_folder
from longattn.text import counted, counted_are, without_secrets
from longattn.windows.cutting import WindowRow
from longattn.windows.tokenizer import load_tokenizer

log = logging.getLogger("longattn")

READ_BYTES = 192 << 20  # stored bytes read of all categories together
ALONE_BYTES = 2 << 30  # a file of this size that one actor must read alone is warned of
SHOWN = 3  # files that are named
FEW_WINDOWS = 30  # below, mean and deviation of a category say little
MEASURE_SECONDS = 3.0


@dataclass(frozen=True)
class Plan:
    """What `longattn plan` shows; `to_dict` is its --json."""

    output: str
    categories: dict[str, CategoryPlan]
    settings: list[tuple[str, Any, str]]
    """Field, value, and where it comes from: default, file or --set."""
    windows_per_second: float
    """Of one scorer."""
    rate_from: str
    """The device that was measured, or "stated"."""
    scorers: tuple[int, ...]
    """Numbers of scorers that the wall time is told for."""
    window_actors: int | None
    """At most; null: as many as it takes."""
    done: str
    """What of it an earlier run has done; empty where there was none."""
    scores: list[ScoreCost] = field(default_factory=list)
    """Of the further scores of the config."""
    checks: dict[str, str] = field(default_factory=dict)
    """What the ranking column tells on each category, where that was measured."""
    heads: dict[str, str] = field(default_factory=dict)
    """Of `select.heads: auto`, what was chosen for each category, or that it will be."""
    warnings: list[str] = field(default_factory=list)

    @property
    def windows(self) -> int:
        return sum(c.windows for c in self.categories.values())

    @property
    def device_hours(self) -> float:
        """Hours of one scorer."""
        return self.windows / self.windows_per_second / 3600

    @property
    def nothing(self) -> str:
        """Why a run would end without a window; empty where it is not known that it would."""
        categories = self.categories.values()
        if any(c.windows or (c.documents and c.read < 1) for c in categories):
            return ""
        unread = [f"{path}: {why}" for c in categories for path, why in c.unread.items()]
        return "; ".join(unread[:SHOWN]) or "each of its documents is shorter than a window"

    def wall_seconds(self, scorers: int) -> float:
        """Of a run on this many scorers: the slower of scoring and cutting, which overlap."""
        cutting = sum(c.cutting_seconds for c in self.categories.values())
        cutting /= self.window_actors or math.inf
        return max(self.device_hours * 3600 / scorers, cutting)

    def to_dict(self) -> dict[str, Any]:
        wall = {str(n): self.wall_seconds(n) for n in sorted(set(self.scorers))}
        return {**asdict(self), "device_hours": self.device_hours, "wall_seconds": wall}


class PlanWatcher:
    """What is told of a plan while it is made; here, nothing is done with it."""

    def settings(self, settings: Sequence[tuple[str, Any, str]]) -> None:
        """The settings in force, as `Plan.settings`: known before anything is read."""

    def files(self, files: Mapping[str, Sequence[Split]]) -> None:
        """The files of each category: known at once."""

    def counts(self, categories: Mapping[str, CategoryPlan]) -> None:
        """What a sample of each category says: known before anything is scored."""


def plan(
    config: Config,
    overrides: Sequence[str] = (),
    *,
    windows_per_second: float | None = None,
    read_bytes: int = READ_BYTES,
    check: bool = True,
    watcher: PlanWatcher | None = None,
) -> Plan:
    """Estimate a run. Nothing is written but temporary files on this machine.

    Args:
        config: the settings.
        overrides: the `field=value` among them, to tell where a setting comes from.
        windows_per_second: of one scorer; measured on this machine's device by default.
        read_bytes: stored bytes to read at most, over all categories.
        check: whether to measure if what ranks tells native windows from foils.
        watcher: is told what is known, step by step.

    Raises:
        ValueError: what a run refuses in its first seconds.
        OSError: the storage failed.
    """
    require_folder(config.output)
    require_apart(config.sources, config.output)
    splits = list_splits(config.sources)
    check_sources(splits, config.sources)
    require_selectable(config, column_types(splits, sources=config.sources))
    require_reachable(config.scorer.model)
    files: dict[str, list[Split]] = {}
    for (category, *_), parts in sorted(_by_file(splits).items()):
        files.setdefault(category, []).append(parts)
    watcher = watcher or PlanWatcher()
    settings = _provenance(config, overrides)
    watcher.settings(settings)
    watcher.files(files)
    if config.scorer.model != "builtin":
        from longattn.scoring.checkpoint import open_checkpoint  # 4 s

        ScoreSettings.of(config).bos(open_checkpoint(config.scorer.model))
    categories = {}
    rows: list[WindowRow] = []
    for name, whole in files.items():
        with warn_if_slow(f"reading a sample of {name} (--read BYTES takes a smaller one)"):
            sample = Sample(config, name, whole, read_bytes // len(files))
        categories[name] = sample.estimate(config.select.keep_of(name))
        rows += sample.rows[:1]
    watcher.counts(categories)
    if windows_per_second is None:
        log.info("measuring the scorer on this machine; --windows-per-second N leaves that out")
        rate, device = _measured(config, rows[0]["input_ids"] if rows else np.zeros(0, np.int32))
    else:
        rate, device = windows_per_second, "stated"
    windows = sum(category.windows for category in categories.values())
    scores = score_costs(config, rows[0] if rows and device != "stated" else None, device, windows)
    smallest, largest = config.workers.score
    scorers: tuple[int, ...] = (1,)
    if device != "cpu":
        scorers = (smallest, largest) if largest else (smallest, 8 * smallest, 64 * smallest)
    done = ""
    if read_run_record(config.output) is not None:
        finished = find_remaining(
            config.output, splits, max_record_bytes=config.max_record_bytes
        ).finished
        done = f"{finished} of {counted_are(len(splits), 'split')} labelled already; the numbers are of all"
    result = Plan(
        without_secrets(config.output),
        categories,
        settings,
        rate,
        device,
        scorers,
        config.workers.window[1],
        done,
        scores,
        heads=_heads(config),
    )
    if check:
        from longattn.reports.blindness import check_ranking

        log.info("measuring whether what ranks tells anything here; --no-check leaves that out")
        told = check_ranking(config)
        result.checks.update({name: of.line() for name, of in told.items()})
    result.warnings.extend(_warnings(config, files, result))
    return result


def _by_file(splits: Iterable[Split]) -> dict[tuple[str, str, str], Split]:
    """Whole files of a listing, by category, path and column."""
    files = {}
    for split in splits:
        plain = split.format == "jsonl" and not split.compression
        files[split.category, split.path, split.text_column] = replace(
            split, start=0, stop=split.file_size if plain else None
        )
    return files


# --- rate, settings, warnings --------------------------------------------------------------------


def _measured(config: Config, ids: np.ndarray) -> tuple[float, str]:
    """Windows a second of one scorer on this machine, and its device."""
    from longattn.scoring.window_scorer import WindowScorer  # 7 s, for who states no rate

    scorer = WindowScorer(ScoreSettings.of(config))
    device = scorer.scorer.device.type
    if not len(ids):  # no window at all: how fast does not matter
        ids = np.zeros(config.window.tokens, np.int32)
    size = config.scorer.batch or SCORER_BATCH["cuda"] if device == "cuda" else 1
    ids_bl = np.repeat(ids[None].astype(np.int64), size, 0)
    if device == "cuda":
        scorer.score(ids_bl)  # compiles its kernel
    windows, started = 0, time.perf_counter()
    while not windows or time.perf_counter() - started < MEASURE_SECONDS:
        scorer.score(ids_bl)
        windows += len(ids_bl)
    return windows / (time.perf_counter() - started), device


def _heads(config: Config) -> dict[str, str]:
    """What heads `auto` chose for each category, and why; what it will choose is not known."""
    if not config.select.chooses_heads:
        return {}
    kept = kept_choices(OutputFolder(config.output), config.select)
    coming = {"why": "a head will be chosen when the run is scored"}
    return {source.category: kept.get(source.category, coming)["why"] for source in config.sources}


def _provenance(config: Config, overrides: Sequence[str]) -> list[tuple[str, Any, str]]:
    """Every setting in force but the sources, with where it comes from."""
    given = [override.partition("=")[0] for override in overrides]
    return [
        (path, without_secrets(value) if path in ("output", "scorer.model") else value, origin)
        for path, value, origin in settings_in_force(config, given)
        if not path.startswith("sources.") and not (path.startswith("select.") and value is None)
    ]


def _warnings(config: Config, files: dict[str, list[Split]], result: Plan) -> Iterator[str]:
    if slow := load_tokenizer(config.scorer.model).slow_warning:
        yield slow
    if config.select.bound_columns() or config.select.per_document:
        yield "what select.where and per_document take out is not estimated: `kept` is the most"
    if partly := [name for name, told in result.categories.items() if told.read < 1]:
        yield (
            f"{', '.join(partly)}: documents that repeat one another are left out only among those read: "
            "a run finds all of them, and then gives fewer windows"
        )
    for name, told in result.categories.items():
        for path, why in list(told.unread.items())[:SHOWN]:
            yield f"{name}: {path}: nothing could be read: {why}"
        if len(told.unread) > SHOWN:
            yield f"{name}: of {len(told.unread) - SHOWN:,} more of the files read nothing could be"
        if not told.windows and told.documents:
            yield f"{name}: no document gives a window of {config.window.tokens} tokens"
        elif told.windows < FEW_WINDOWS:
            yield (
                f"{name}: about {counted_are(told.windows, 'window')} too few for a z-score within the "
                f"category ({FEW_WINDOWS} or more are wanted)"
            )
        own = told.documents - told.repeated
        if told.windows and told.long < own / 2:
            yield (
                f"{name}: {1 - told.long / own:.0%} of the documents are shorter than a "
                f"window of {config.window.tokens} tokens and give nothing"
            )
        if told.repeated:
            yield (
                f"{name}: {told.repeated:,} of {counted(told.documents, 'document')} repeat others and are "
                "left out, as a run does; none of their windows is counted"
            )
        if told.bad > config.max_bad_fraction * (told.bad + told.documents):
            bad = counted(told.bad, "bad record")
            few = told.bad + told.documents < ENOUGH_RECORDS
            goes_on = f", which ends a run of {ENOUGH_RECORDS:,} records or more" if few else ""
            yield f"{name}: about {bad}, over max_bad_fraction {config.max_bad_fraction}{goes_on}"
        keep = config.select.keep_of(name)
        wanted = keep.tokens or (keep.count or 0) * config.window.tokens
        if wanted > told.windows * config.window.tokens:
            yield f"{name}: select.keep wants more than there is: everything will be kept"
        for file in files[name]:
            if file.compression and file.file_size > ALONE_BYTES:
                minutes = told.cutting_seconds * file.file_size / told.bytes / 60
                yield (
                    f"{name}: {without_secrets(file.path)} cannot be split: one actor reads its "
                    f"{file.file_size / 1e9:.1f} GB alone, about {minutes:.0f} minutes"
                )
