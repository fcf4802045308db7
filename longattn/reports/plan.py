"""What a run would give and cost, estimated from a sample before anything is written.

Of each category some files, taken by a hash, are read up to a budget of stored bytes, and their
documents go through the run's own cutter: the counts are the run's, times the share that was read.
What was read to its end is exact. A document whose tokens were not counted has as many as its bytes
say, by the category's tokens a byte.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from longattn.config import SCORER_BATCH, Config, Keep
from longattn.corpus.apart import require_apart
from longattn.corpus.counts import ENOUGH_RECORDS, Counts
from longattn.corpus.first_look import check_sources, column_types
from longattn.corpus.parts import sample_part
from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Reason, Split
from longattn.corpus.sources import list_splits
from longattn.models import require_reachable
from longattn.reports.plan_scores import ScoreCost, score_costs
from longattn.resume.fingerprint import read_run_record
from longattn.resume.remaining import find_remaining
from longattn.scoring.settings import ScoreSettings
from longattn.selection.columns import require_selectable
from longattn.selection.kept_heads import kept_choices
from longattn.settings.reference import settings_in_force
from longattn.storage.output_folder import OutputFolder, require_folder
from longattn.storage.tables import parquet_writer
from longattn.text import counted, counted_are, without_secrets
from longattn.windows.cutting import WindowCutter, WindowRow, sliding_windows, window_table
from longattn.windows.tokenizer import load_tokenizer

log = logging.getLogger("longattn")

READ_BYTES = 192 << 20  # stored bytes read of all categories together
FILES = 32  # of a category that are looked into
# Text of a category that is tokenized: a second or two with fastokens, 20 s with `tokenizers`.
TEXT_BYTES = {"fastokens": 192 << 20, "tokenizers": 16 << 20}
SAMPLE_ROWS = 64  # windows of a category written aside to learn their size as Parquet
ALONE_BYTES = 2 << 30  # a file of this size that one actor must read alone is warned of
SHOWN = 3  # files that are named
FEW_WINDOWS = 30  # below, mean and deviation of a category say little
MEASURE_SECONDS = 3.0
CUT_OFF = (Reason.TRUNCATED_ARCHIVE, Reason.NOT_JSON, Reason.BAD_ROW)  # where the bytes read end


@dataclass(frozen=True)
class CategoryPlan:
    """What is there, what was read of it, and what a run would make of it."""

    files: int
    bytes: int
    """As stored."""
    read: float
    """Share of the stored bytes that was looked at; 1: the numbers below are exact."""
    documents: int
    long: int
    """Documents that give a window."""
    windows: int
    error: float
    """Standard error of `windows` over it, from the documents that were read; 0 where exact."""
    tokens: int
    """Of all documents long enough to be tokenized."""
    labelled_bytes: int
    kept: int
    kept_tokens: int
    selected_bytes: int
    bad: int
    cutting_seconds: float
    """Of one window actor: reading, tokenizing, cutting."""
    unread: dict[str, str] = field(default_factory=dict)
    """Files of which nothing could be read, as far as was looked, and why."""


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


def plan(
    config: Config,
    overrides: Sequence[str] = (),
    *,
    windows_per_second: float | None = None,
    read_bytes: int = READ_BYTES,
    check: bool = True,
) -> Plan:
    """Estimate a run. Nothing is written but temporary files on this machine.

    Args:
        config: the settings.
        overrides: the `field=value` among them, to tell where a setting comes from.
        windows_per_second: of one scorer; measured on this machine's device by default.
        read_bytes: stored bytes to read at most, over all categories.
        check: whether to measure if what ranks tells native windows from foils.

    Raises:
        ValueError: what a run refuses in its first seconds.
        OSError: the storage failed.
    """
    require_folder(config.output)
    require_apart(config.sources, config.output)
    require_selectable(config)
    splits = list_splits(config.sources)
    check_sources(splits, config.sources)
    column_types(splits)
    require_reachable(config.scorer.model)
    if config.scorer.model != "builtin":
        from longattn.scoring.checkpoint import open_checkpoint  # 4 s

        ScoreSettings.of(config).bos(open_checkpoint(config.scorer.model))
    files: dict[str, list[Split]] = {}
    for (category, *_), parts in _by_file(splits).items():
        files.setdefault(category, []).append(parts)
    categories = {}
    rows: list[WindowRow] = []
    for name, whole in sorted(files.items()):
        sample = _Sample(config, name, whole, read_bytes // len(files))
        categories[name] = sample.estimate(config.select.keep_of(name))
        rows += sample.rows[:1]
    if windows_per_second is None:
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
        _provenance(config, overrides),
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


# --- sampling ------------------------------------------------------------------------------------


class _Sample:
    """Documents of one category, cut as a run cuts them."""

    def __init__(self, config: Config, name: str, files: list[Split], budget: int) -> None:
        self.name, self.files, self.window = name, files, config.window.tokens
        self.tokenizer = load_tokenizer(config.scorer.model)
        samples = {source.category: source.sample for source in config.sources}
        taken = samples[name]
        self.share = taken.fraction if taken else 1.0
        self.cutter = WindowCutter(self.tokenizer, self.window, config.min_distance, samples)
        self.counts = Counts()
        self.rows: list[WindowRow] = []
        self.documents: list[tuple[int, int]] = []  # bytes and windows of each
        self.unread: dict[str, str] = {}  # files of which nothing could be read, and why
        self.uncounted: list[int] = []  # bytes of documents that were not tokenized
        self.bytes = sum(file.file_size for file in files)
        self.read = 0.0  # stored bytes that the counts stand for
        self.seconds = 0.0
        started = time.perf_counter()
        chosen = sorted(files, key=lambda file: file.id)[:FILES]
        for i, file in enumerate(chosen):
            left = budget - self.read
            self._look(file, max(int(left) // (len(chosen) - i), 1 << 16), config.max_record_bytes)
        self.seconds = time.perf_counter() - started

    def _look(self, file: Split, budget: int, max_record_bytes: int) -> None:
        seen: set[tuple[str, str]] = set()
        most = TEXT_BYTES[self.tokenizer.backend]
        with sample_part(file, budget) as (split, stored):
            records, cut, good, why = 0, False, False, ""
            for record in read_split(split, max_record_bytes=max_record_bytes):
                if isinstance(record, BadRecord):
                    why = why or f"{record.reason}: {record.detail}"
                    if record.reason in CUT_OFF and stored < file.file_size and not split.is_part:
                        cut = True
                        break
                    self.counts.bad[record.reason] += record.records
                    records += 1
                    continue
                good = True
                if self.counts.bytes < most:
                    self._cut(record.text.encode(), file, seen)
                else:
                    self.uncounted.append(len(record.text.encode()))
                records += 1
        if why and not good:
            self.unread[without_secrets(file.path)] = why
        # The record that the end of the bytes cuts through counts as an average one.
        self.read += stored * records / (records + cut) if records else stored

    def _cut(self, text: bytes, file: Split, seen: set[tuple[str, str]]) -> None:
        before = self.counts.windows
        try:
            for row in self.cutter.cut(text, self.name, file.path, self.counts, seen):
                if len(self.rows) < SAMPLE_ROWS:
                    self.rows.append(row)
            self.documents.append((len(text), self.counts.windows - before))
        except ValueError:
            self.counts.bad[Reason.NOT_TOKENIZED] += 1

    def estimate(self, keep: Keep) -> CategoryPlan:
        counts, scale = self.counts, self.bytes / self.read if self.read else 0.0
        density = counts.tokens / counts.bytes if counts.bytes else 0.0
        lengths = [round(n * density) for n in self.uncounted]
        long = counts.documents - counts.too_short - counts.duplicates
        windows: float = counts.windows
        for tokens in lengths:
            spans = len(sliding_windows(tokens, self.window))
            long, windows = long + bool(spans), windows + spans * self.share
        windows = round(windows * scale)
        kept = _kept(keep, windows, self.window)
        row_bytes = _row_bytes(self.rows)
        return CategoryPlan(
            files=len(self.files),
            bytes=self.bytes,
            read=min(1.0, self.read / self.bytes) if self.bytes else 1.0,
            documents=round((counts.documents + len(lengths)) * scale),
            long=round(long * scale),
            windows=windows,
            error=_ratio_error(self.documents) * math.sqrt(max(0.0, 1 - self.read / self.bytes))
            if windows
            else 0.0,
            tokens=round((counts.tokens + sum(lengths)) * scale),
            labelled_bytes=round(windows * row_bytes),
            kept=kept,
            kept_tokens=kept * self.window,
            selected_bytes=round(kept * row_bytes),
            bad=round(counts.bad.total() * scale),
            cutting_seconds=self.seconds * scale * (1 + sum(self.uncounted) / max(counts.bytes, 1)),
            unread=self.unread,
        )


def _ratio_error(documents: list[tuple[int, int]]) -> float:
    """Relative standard error of windows a byte, the documents being drawn at random."""
    size_d, windows_d = np.array(documents, np.float64).T
    if not windows_d.sum():
        return 0.0
    residual_d = windows_d - size_d * (windows_d.sum() / size_d.sum())
    return float(np.sqrt(np.square(residual_d).sum()) / windows_d.sum())


def _kept(keep: Keep, windows: int, window: int) -> int:
    if keep.fraction is not None:
        return math.floor(keep.fraction * windows + 0.5)
    return min(windows, keep.count if keep.count is not None else (keep.tokens or 0) // window)


def _row_bytes(rows: list[WindowRow]) -> float:
    """Bytes of a window in a labelled file, by writing some aside; their scores are a thousandth."""
    if not rows:
        return 0.0
    table = window_table(rows).drop_columns(["split", "fingerprint"])
    with tempfile.TemporaryDirectory(prefix="longattn-") as folder:
        path = Path(folder, "rows.parquet")
        with parquet_writer(path, table.schema, {}) as writer:
            writer.write_table(table)
        return path.stat().st_size / len(rows)


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
        if told.windows and told.long < told.documents / 2:
            yield (
                f"{name}: {1 - told.long / told.documents:.0%} of the documents are shorter than a "
                f"window of {config.window.tokens} tokens and give nothing"
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
