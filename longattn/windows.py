"""Windows of a document (Algorithm 1 of the paper), and the CPU actors that cut them."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from longattn import ledger
from longattn.claims import (
    DEATHS,
    Claim,
    Claimer,
    Claims,
    DeadlyDocument,
    Stopping,
    was_restarted,
)
from longattn.config import Sample
from longattn.models import model_folder
from longattn.records import BadRecord, Reason, Record, Split, read_split
from longattn.recurrence import far_recurrence
from longattn.storage import QUARANTINE, WINDOWS, join, write_table
from longattn.tokenization import DocumentTokenizer, TokenizedDocument

# Internal columns, taken off by the sink, which puts what they say into the file's metadata.
TRAVELLING = [("split", pa.string()), ("fingerprint", pa.string())]
QUARANTINE_ROWS = 10_000  # bad records held before a quarantine file is written


def sliding_windows(n_tokens: int, window: int) -> list[tuple[int, int]]:
    """The windows of a document as (start, stop) in its own ids, in order of start.

    Algorithm 1: none when shorter than a window; two (front and back, overlapping) up to twice its
    length; front, middle and back up to three times; beyond that, front and back are taken off and
    what is left between is cut the same way. A document of exactly one window gives that window.

    Raises:
        ValueError: a window below 1 or a negative length.
    """
    if window < 1 or n_tokens < 0:
        raise ValueError(
            f"sliding_windows({n_tokens}, {window}): window >= 1, n_tokens >= 0 wanted"
        )
    if n_tokens < window:
        return []
    left, right = 0, n_tokens
    starts = []
    while right - left > 3 * window:
        starts += [left, right - window]
        left, right = left + window, right - window
    starts.append(left)
    if right - left > 2 * window:
        starts.append(left + (right - left - window) // 2)
    if right - left > window:
        starts.append(right - window)
    return [(start, start + window) for start in sorted(starts)]


def document_id(text: bytes) -> str:
    """Hex of a 128-bit BLAKE2b of the UTF-8 text."""
    return blake2b(text, digest_size=16).hexdigest()


def is_sampled(data_id: str, sample: Sample | None) -> bool:
    """Whether a window is in the sample: a hash of its id and the seed, so order plays no part."""
    if sample is None:
        return True
    digest = blake2b(f"{sample.seed}:{data_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < sample.fraction * 2**64


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


class WindowCutter:
    """Cuts documents into rows of windows.

    Args:
        tokenizer: the scoring checkpoint's own.
        window: tokens a window.
        min_distance: of the far recurrence, in tokens.
        samples: of each category that is sampled, its setting.
    """

    def __init__(
        self,
        tokenizer: DocumentTokenizer,
        window: int,
        min_distance: int,
        samples: Mapping[str, Sample | None],
    ) -> None:
        self.tokenizer, self.window, self.samples = tokenizer, window, samples
        self.min_distance = min_distance
        self.shortest = tokenizer.min_bytes_for(window)

    def cut(
        self,
        text: bytes,
        category: str,
        source: str,
        counts: Counts,
        seen: set[tuple[str, str]],
        claim: Claim | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The windows of one document as rows of storage.WINDOWS.

        `seen` holds ids already cut; `claim` of category and document id says whether this one is
        for us, before it is tokenized.

        Raises ValueError, before the first row, when the tokenizer fails on the text.
        """
        counts.documents += 1
        counts.bytes += len(text)
        if len(text) < self.shortest:
            counts.too_short += 1
            return iter(())
        document = document_id(text)
        if (category, document) in seen:
            counts.duplicates += 1
            return iter(())
        if claim is not None and not claim(category, document):
            seen.add((category, document))
            counts.duplicates += 1
            return iter(())
        tokenized = self.tokenizer.encode(text)
        counts.tokens += len(tokenized.ids)
        if len(tokenized.ids) < self.window:
            counts.too_short += 1
            return iter(())
        seen.add((category, document))
        counts.inexact += not tokenized.exact
        return self._rows(tokenized, document, category, source, counts)

    def _rows(
        self,
        tokenized: TokenizedDocument,
        document: str,
        category: str,
        source: str,
        counts: Counts,
    ) -> Iterator[dict[str, Any]]:
        spans = sliding_windows(len(tokenized.ids), self.window)
        for index, (start, stop) in enumerate(spans):
            data_id = f"{category}-{document}-{index}"
            if not is_sampled(data_id, self.samples.get(category)):
                counts.sampled_out += 1
                continue
            counts.windows += 1
            ids = tokenized.ids[start:stop]
            yield {
                "data_id": data_id,
                "content": tokenized.text(start, stop),
                "input_ids": ids,
                "category": category,
                "source": source,
                "document_id": document,
                "window_index": index,
                "token_start": start,
                "token_stop": stop,
                **far_recurrence(ids, self.min_distance)._asdict(),
            }


def window_table(rows: list[dict[str, Any]], split: str = "") -> pa.Table:
    """Rows of `WindowCutter.cut` as an Arrow table, the ids never as Python integers."""
    columns: dict[str, Any] = {
        name: [row[name] for row in rows] for name in WINDOWS.names if name != "input_ids"
    }
    ids = [row["input_ids"] for row in rows]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    values = np.concatenate(ids) if ids else np.empty(0, np.int32)
    columns["input_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    columns |= {"split": [split] * len(rows), "fingerprint": [""] * len(rows)}
    return pa.table(columns, schema=pa.schema([*WINDOWS, *TRAVELLING]))


def load_tokenizer(model: str) -> DocumentTokenizer:
    """The tokenizer of a scoring model; raises ValueError where it has no tokenizer.json."""
    file = model_folder(model) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"model {model!r}: {file.parent} has no tokenizer.json")
    return DocumentTokenizer.from_file(file)


class SplitError(Exception):
    """A split that cannot be read to its end in this run."""


@dataclass
class Given:
    """What one try at a split found and gave."""

    claim: Claimer
    counts: Counts = field(default_factory=Counts)
    seen: set[tuple[str, str]] = field(default_factory=set)
    ids: ledger.IdSet = field(default_factory=ledger.IdSet)  # windows labelled under this split


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
        claims: Claims,
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
            for split in ledger.unpack_task(task):
                begin = self.claims.begin(split.id, attempt)
                if begin == "stop":
                    break
                if begin == "deadly":
                    self.claims.fail(split.id, f"{split.source}: {DEATHS} processes died at it")
                    continue
                given = Given(self.claims.claimer(split.id, attempt))
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
                    ledger.marker(
                        split,
                        given.counts,
                        given.ids,
                        self.generation,
                        given.claim.waits_for,
                        self.max_record_bytes,
                    )
                )
            if markers:
                ledger.write_markers(self.output, markers)
            self.left = time.perf_counter()

    def _windows(self, split: Split, given: Given) -> Iterator[pa.Table]:
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
        self, record: Record | BadRecord, split: Split, given: Given
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
