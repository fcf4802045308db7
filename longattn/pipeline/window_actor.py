"""The CPU actors of a run: read documents, tokenize them and cut them into windows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from longattn.config import Sample
from longattn.corpus.counts import Counts
from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Reason, Record, Split, unpack_task
from longattn.resume.claims import (
    DEATHS,
    DeadlyDocument,
    DocumentRegistry,
    SplitReader,
    Stopping,
    was_restarted,
)
from longattn.resume.markers import IdSet, marker_of, write_markers
from longattn.storage.files import join
from longattn.storage.tables import QUARANTINE, write_table
from longattn.windows.cutting import WindowCutter, window_table
from longattn.windows.tokenizer import load_tokenizer

QUARANTINE_ROWS = 10_000  # bad records held before a quarantine file is written


class SplitError(Exception):
    """A split that cannot be read to its end in this run."""


@dataclass
class SplitProgress:
    """What one try at a split found and gave."""

    claim: SplitReader
    counts: Counts = field(default_factory=Counts)
    seen: set[tuple[str, str]] = field(default_factory=set)
    ids: IdSet = field(default_factory=IdSet)  # windows labelled under this split


class SplitWindows:
    """Ray Data actor: a row naming splits -> tables of their windows, with markers and quarantine.

    One actor reads, tokenizes and cuts, so that documents never cross the object store and the
    reader of a split knows, at its end, which windows it gave. A split that cannot be read to its
    end gets no marker, and the others go on.
    """

    def __init__(
        self,
        *,
        model: str,
        window: int,
        min_distance: int,
        samples: Mapping[str, Sample | None],
        output: str,
        max_record_bytes: int,
        block_bytes: int,
        report: Callable[[Split, Counts, bool, float], None],
        claims: DocumentRegistry,
        generation: int,
    ) -> None:
        tokenizer = load_tokenizer(model)
        self.cutter = WindowCutter(tokenizer, window, min_distance, samples)
        self.output, self.max_record_bytes = output, max_record_bytes
        self.rows_per_block = max(1, block_bytes // (9 * window))  # 4 bytes an id, 4 to 5 of text
        self._report = report  # raises when too many records of the run are bad
        self.waiting, self.left = 0.0, time.perf_counter()  # seconds not told yet; when work ended
        self.claims, self.generation = claims, generation
        if was_restarted():
            claims.restarted()

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        attempt = uuid.uuid4().hex
        for task in batch["task"]:
            self.waiting += time.perf_counter() - self.left
            markers = []
            for split in unpack_task(task):
                begin = self.claims.begin(split.id, attempt)
                if begin == "stop":
                    break
                if begin == "deadly":
                    self.claims.fail(split.id, f"{split.source}: {DEATHS} processes died at it")
                    continue
                given = SplitProgress(self.claims.claimer(split.id, attempt))
                try:
                    yield from self._windows(split, given)
                except Stopping:
                    break
                except SplitError as error:
                    self.claims.fail(split.id, str(error))
                    continue
                for data_id in sorted(given.claim.kept):
                    given.ids.add(data_id)
                markers.append(
                    marker_of(
                        split,
                        given.counts,
                        given.ids,
                        self.generation,
                        given.claim.waits_for,
                        self.max_record_bytes,
                    )
                )
            if markers:
                write_markers(self.output, markers)
            self.left = time.perf_counter()

    def _windows(self, split: Split, given: SplitProgress) -> Iterator[pa.Table]:
        started = time.perf_counter()
        counts = given.counts
        rows: list[dict[str, Any]] = []
        bad: list[BadRecord] = []
        parts = told = 0
        for record in self._records(split):
            cut = self._cut(record, split, given)
            if isinstance(cut, BadRecord):
                counts.records += cut.records
                counts.bad[cut.reason] += cut.records
                counts.lost_bytes += cut.lost_bytes
                bad.append(cut)
            else:
                counts.records += 1
                labelled = given.claim.labelled
                for row in cut:
                    under = labelled.get(row["window_index"])
                    if under in (None, split.id):
                        given.ids.add(row["data_id"])
                    if under is None:
                        rows.append(row)
                    if len(rows) == self.rows_per_block:
                        given.claim.passed()  # who is killed while waiting did not die of it
                        table, rows = window_table(rows, split.id), []
                        counts.seconds += time.perf_counter() - started
                        left = time.perf_counter()
                        yield table
                        started = time.perf_counter()
                        self.waiting += started - left
            given.claim.passed()
            if len(bad) == QUARANTINE_ROWS:
                self._quarantine(split, parts, bad)
                bad, parts = [], parts + 1
            if counts.records >= told + 1000:
                told = counts.records
                self._tell(split, counts, ended=False)
        if bad:
            self._quarantine(split, parts, bad)
        counts.seconds += time.perf_counter() - started
        self._tell(split, counts, ended=True)
        if rows:
            yield window_table(rows, split.id)

    def _tell(self, split: Split, counts: Counts, *, ended: bool) -> None:
        waiting, self.waiting = self.waiting, 0.0
        self._report(split, counts, ended, waiting)

    def _records(self, split: Split) -> Iterator[Record | BadRecord]:
        """Raises SplitError where the file is not the one that was listed, or cannot be had."""
        records = read_split(split, max_record_bytes=self.max_record_bytes)
        while True:
            try:
                record = next(records, None)
            except (OSError, ValueError) as error:
                raise SplitError(f"{type(error).__name__}: {error}") from error
            if record is None:
                return
            yield record

    def _cut(
        self, record: Record | BadRecord, split: Split, given: SplitProgress
    ) -> Iterator[dict[str, Any]] | BadRecord:
        if isinstance(record, BadRecord):
            return record
        try:
            text = record.text.encode()
        except MemoryError:
            told = f"{len(record.text)} characters of text"
            return BadRecord(record.position, Reason.OUT_OF_MEMORY, told)
        try:
            return self.cutter.cut(
                text, split.category, split.source, given.counts, given.seen, given.claim
            )
        except DeadlyDocument as error:
            return BadRecord(record.position, Reason.KILLED_PROCESS, str(error))
        except MemoryError:
            given.claim.keep()
            return BadRecord(record.position, Reason.OUT_OF_MEMORY, f"{len(text)} bytes of text")
        except ValueError as error:
            given.claim.keep()
            return BadRecord(record.position, Reason.NOT_TOKENIZED, str(error)[:200])

    def _quarantine(self, split: Split, part: int, bad: list[BadRecord]) -> None:
        columns = {
            "category": [split.category] * len(bad),
            "source": [split.source] * len(bad),
            "position": [record.position for record in bad],
            "reason": [record.reason for record in bad],
            "detail": [record.detail for record in bad],
        }
        url = join(self.output, "quarantine", f"{split.id}-{part}.parquet")
        write_table(url, pa.table(columns, schema=QUARANTINE), {"split": split.id})


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
        rows: list[dict[str, Any]] = []
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
