"""The stage of a run that reads documents, tokenizes them and cuts them into windows, on CPUs.

In: tasks, each naming some splits of one category. Does: reads a split record by record; a document
that is long enough, and no other split's, becomes windows. Out: tables of windows of about one size,
whatever the executor; a marker for each split that was read to its end; bad records in quarantine.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pyarrow as pa

from longattn.config import Sample
from longattn.corpus.counts import Counts
from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Reason, Record, Split, unpack_task
from longattn.pipeline.failures import FailureReport, failures_reported, no_failure_report
from longattn.resume.claims import (
    DEATHS,
    Begin,
    DeadlyDocument,
    DocumentRegistry,
    SplitReader,
    Stopping,
    was_restarted,
)
from longattn.resume.markers import IdSet, Marker, write_markers
from longattn.storage.files import exists, join, remove
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import QUARANTINE, write_table
from longattn.windows.cutting import WindowCutter, WindowRow, window_table
from longattn.windows.tokenizer import load_tokenizer

QUARANTINE_ROWS = 10_000  # bad records held before a quarantine file is written

# Calls to the registry and the monitor cost a millisecond on a cluster, and a small file not half of
# one: of small splits, so many are begun, and reported, in one call.
TOGETHER, TOGETHER_BYTES = 100, 1 << 20
REPORT_SECONDS = 0.5

SplitReport = tuple[Split, Counts, bool, float, int]
"""A split, its counts so far, whether it is read to its end, seconds waited since the last report,
windows given to the scorers."""
WindowReport = Callable[[Sequence[SplitReport]], None]


class SplitError(Exception):
    """A split that cannot be read to its end in this run."""


@dataclass
class SplitProgress:
    """What one try at a split found and gave."""

    reader: SplitReader
    counts: Counts = field(default_factory=Counts)
    seen: set[tuple[str, str]] = field(default_factory=set)
    ids: IdSet = field(default_factory=IdSet)  # windows labelled under this split
    given: int = 0  # of them, to the scorers in this run


@dataclass(frozen=True)
class WindowStage:
    """How a run cuts windows."""

    model: str
    window: int
    min_distance: int
    samples: Mapping[str, Sample | None]
    output: str
    max_record_bytes: int
    block_bytes: int
    generation: int
    columns: Mapping[str, str] = field(default_factory=dict)
    """Names and types of the user's columns that windows carry."""


class SplitWindows:
    """Ray Data actor: a row naming splits -> tables of their windows, with markers and quarantine.

    One actor reads, tokenizes and cuts, so that documents never cross the object store and the
    reader of a split knows, at its end, which windows it gave. A split that cannot be read to its
    end gets no marker, and the others go on.
    """

    def __init__(
        self,
        stage: WindowStage,
        registry: DocumentRegistry,
        report: WindowReport,
        failed: FailureReport = no_failure_report,
    ) -> None:
        self.failed, self.source = failed, ""
        with failures_reported(failed, "windows"):
            tokenizer = load_tokenizer(stage.model)
        self.cutter = WindowCutter(tokenizer, stage.window, stage.min_distance, stage.samples)
        self.stage, self.registry = stage, registry
        self._report = report  # raises when too many records of the run are bad
        self.untold: list[SplitReport] = []
        self.told = time.perf_counter()
        self.waiting, self.left = 0.0, time.perf_counter()  # seconds to report; when work ended
        if was_restarted():
            registry.restarted()

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for task in batch["task"]:
            self.waiting += time.perf_counter() - self.left
            with failures_reported(self.failed, "windows", lambda: self.source):
                yield from self._blocks(task)
            self.left = time.perf_counter()

    def _blocks(self, task: str) -> Iterator[pa.Table]:
        """The windows of a task, in tables of `block_bytes` or, the last, less."""
        rows: list[WindowRow] = []
        splits: list[str] = []
        size = 0
        markers: list[Marker] = []
        for row, split in self._rows(task, markers):
            rows.append(row)
            splits.append(split)
            size += 4 * len(row["input_ids"]) + len(row["content"])
            if size >= self.stage.block_bytes:
                self.reader.passed()  # who is killed while waiting did not die of it
                self._report_untold()
                table, rows, splits, size = (
                    window_table(rows, splits, self.stage.columns),
                    [],
                    [],
                    0,
                )
                yield table
        self._report_untold()
        if rows:
            yield window_table(rows, splits, self.stage.columns)
        if markers:
            write_markers(self.stage.output, markers)

    def _rows(self, task: str, markers: list[Marker]) -> Iterator[tuple[WindowRow, str]]:
        """New windows of the splits of a task, each with its split; markers of those at their end."""
        attempt = uuid.uuid4().hex
        for split, begin in self._begun(unpack_task(task), attempt):
            if begin == "stop":
                return
            if begin == "deadly":
                self.registry.fail(split.id, f"{split.source}: {DEATHS} processes died at it")
                continue
            self.source = split.source
            self.reader = self.registry.reader(split.id, attempt)
            progress = SplitProgress(self.reader)
            try:
                for row in self._windows(split, progress):
                    yield row, split.id
            except Stopping:
                return
            except SplitError as error:
                self.registry.fail(split.id, str(error))
                continue
            for data_id in sorted(progress.reader.kept):
                progress.ids.add(data_id)
            markers.append(
                Marker.of(
                    split,
                    progress.counts,
                    progress.ids,
                    self.stage.generation,
                    progress.reader.waits_for,
                    self.stage.max_record_bytes,
                )
            )

    def _begun(self, splits: Sequence[Split], attempt: str) -> Iterator[tuple[Split, Begin]]:
        """Each split with what may be done with it, asked when it, or one just before it, is due."""
        at = 0
        while at < len(splits):
            sizes = accumulate(split.size for split in splits[at : at + TOGETHER])
            some = splits[at : at + max(1, sum(size <= TOGETHER_BYTES for size in sizes))]
            verdicts = self.registry.begin_all([split.id for split in some], attempt)
            yield from zip(some, verdicts, strict=False)
            at += len(verdicts)

    def _windows(self, split: Split, progress: SplitProgress) -> Iterator[WindowRow]:
        """Windows of a split that are not labelled yet."""
        started = time.perf_counter()
        counts, reader = progress.counts, progress.reader
        bad: list[BadRecord] = []
        parts = reported = 0
        for record in self._records(split):
            cut = self._cut(record, split, progress)
            if isinstance(cut, BadRecord):
                counts.add_bad(cut)
                bad.append(cut)
            else:
                counts.records += 1
                for row in cut:
                    under = reader.labelled.get(row["window_index"])
                    if under in (None, split.id):
                        progress.ids.add(row["data_id"])
                    if under is None:
                        left = time.perf_counter()
                        counts.seconds += left - started
                        progress.given += 1
                        yield row | getattr(record, "extra", {})
                        started = time.perf_counter()
                        self.waiting += started - left
            reader.passed()
            if len(bad) == QUARANTINE_ROWS:
                self._quarantine(split, parts, bad)
                bad, parts = [], parts + 1
            if counts.records >= reported + 1000:
                reported = counts.records
                self._tell(split, progress, ended=False)
        if bad:
            self._quarantine(split, parts, bad)
            parts += 1
        if self.stage.generation > 1:
            self._drop_quarantine(split, parts)
        counts.seconds += time.perf_counter() - started
        counts.end()
        self._tell(split, progress, ended=True)

    def _tell(self, split: Split, progress: SplitProgress, *, ended: bool) -> None:
        waiting, self.waiting = self.waiting, 0.0
        self.untold.append((split, progress.counts, ended, waiting, progress.given))
        late = time.perf_counter() > self.told + REPORT_SECONDS
        if not ended or late or len(self.untold) == TOGETHER:
            self._report_untold()

    def _report_untold(self) -> None:
        untold, self.untold, self.told = self.untold, [], time.perf_counter()
        if untold:
            self._report(untold)

    def _records(self, split: Split) -> Iterator[Record | BadRecord]:
        """Raises SplitError where the file is not the one that was listed, or cannot be had."""
        records = read_split(split, max_record_bytes=self.stage.max_record_bytes)
        while True:
            try:
                record = next(records, None)
            except (OSError, ValueError) as error:
                raise SplitError(f"{type(error).__name__}: {error}") from error
            if record is None:
                return
            yield record

    def _cut(
        self, record: Record | BadRecord, split: Split, progress: SplitProgress
    ) -> Iterator[WindowRow] | BadRecord:
        if isinstance(record, BadRecord):
            return record
        try:
            text = record.text.encode()
        except MemoryError:
            size = f"{len(record.text)} characters of text"
            return BadRecord(record.position, Reason.OUT_OF_MEMORY, size)
        try:
            return self.cutter.cut(
                text, split.category, split.source, progress.counts, progress.seen, progress.reader
            )
        except DeadlyDocument as error:
            return BadRecord(record.position, Reason.KILLED_PROCESS, str(error))
        except MemoryError:
            progress.reader.keep()
            return BadRecord(record.position, Reason.OUT_OF_MEMORY, f"{len(text)} bytes of text")
        except ValueError as error:
            progress.reader.keep()
            return BadRecord(record.position, Reason.NOT_TOKENIZED, str(error)[:200])

    def _quarantine(self, split: Split, part: int, bad: list[BadRecord]) -> None:
        columns = {
            "category": [split.category] * len(bad),
            "source": [split.source] * len(bad),
            "position": [record.position for record in bad],
            "reason": [record.reason for record in bad],
            "detail": [record.detail for record in bad],
        }
        url = join(OutputFolder(self.stage.output).quarantine, f"{split.id}-{part}.parquet")
        write_table(url, pa.table(columns, schema=QUARANTINE), {"split": split.id})

    def _drop_quarantine(self, split: Split, parts: int) -> None:
        """Remove what an earlier run put aside of the split, and this one did not."""
        folder = OutputFolder(self.stage.output).quarantine
        while exists(url := join(folder, f"{split.id}-{parts}.parquet")):
            remove(url)
            parts += 1


class DocumentWindows:
    """Ray Data actor of the composition API: a table of documents -> tables of their windows."""

    def __init__(
        self,
        *,
        model: str,
        window: int,
        min_distance: int,
        text_column: str,
        sample: Sample | None,
        block_bytes: int,
    ) -> None:
        tokenizer = load_tokenizer(model)
        self.cutter = WindowCutter(tokenizer, window, min_distance, {})
        self.text_column, self.sample = text_column, sample
        self.rows_per_block = max(1, block_bytes // (9 * window))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        names = set(batch.column_names)
        rows: list[WindowRow] = []
        for row in batch.to_pylist():
            category = row["category"] if "category" in names else "default"
            self.cutter.samples = {category: self.sample}
            text = row[self.text_column].encode()
            for cut in self.cutter.cut(text, category, row.get("source") or "", Counts(), set()):
                rows.append(cut)
                if len(rows) == self.rows_per_block:
                    yield window_table(rows)
                    rows = []
        yield window_table(rows)
