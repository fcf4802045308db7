"""What a plan reads of each category, and what it makes of it: `CategoryPlan`.

Some files, taken by a hash, are read up to a budget of stored bytes, and their documents go through the
run's own cutter: the counts are the run's, times the share that was read. What was read to its end is exact.
A document whose tokens were not counted has as many as its bytes say, by the category's tokens a byte.
A document that was seen before is left out, as a run does; what repeats among those not read is not known.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from longattn.config import Config, Keep
from longattn.corpus.counts import Counts
from longattn.corpus.parts import sample_part
from longattn.corpus.reading import read_split
from longattn.corpus.records import BadRecord, Reason, Split
from longattn.storage.tables import parquet_writer
from longattn.text import without_secrets
from longattn.windows.cutting import WindowCutter, WindowRow, sliding_windows, window_table
from longattn.windows.ids import document_id
from longattn.windows.tokenizer import load_tokenizer

FILES = 32  # of a category that are looked into
# Text of a category that is tokenized: a second or two with fastokens, 20 s with `tokenizers`.
TEXT_BYTES = {"fastokens": 192 << 20, "tokenizers": 16 << 20}
SAMPLE_ROWS = 64  # windows of a category written aside to learn their size as Parquet
CUT_OFF = (Reason.TRUNCATED_ARCHIVE, Reason.NOT_JSON, Reason.BAD_ROW)  # where the bytes read end


@dataclass(frozen=True)
class CategoryPlan:
    """What is there, what was read of it, and what a run would make of it."""

    files: int
    bytes: int
    """As stored."""
    read: float
    """Share of the stored bytes that was looked at; 1: the numbers below are exact."""
    sampled: int
    """Documents that were looked at."""
    documents: int
    """Of all."""
    repeated: int
    """Documents whose text is that of another, as far as what was read shows; left out by a run."""
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


class Sample:
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
        self.seen: set[tuple[str, str]] = set()  # documents of all files, as a run knows them
        self.repeated = 0  # among those that were not tokenized
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
                text = record.text.encode()
                if self.counts.bytes < most:
                    self._cut(text, file)
                else:
                    self._measure(text)
                records += 1
        if why and not good:
            self.unread[without_secrets(file.path)] = why
        # The record that the end of the bytes cuts through counts as an average one.
        self.read += stored * records / (records + cut) if records else stored

    def _measure(self, text: bytes) -> None:
        """A document that is not tokenized; one that is there again counts as such."""
        if self._is_first(self.name, document_id(text)):
            self.uncounted.append(len(text))
        else:
            self.repeated += 1

    def _is_first(self, category: str, document: str) -> bool:
        """Whether a document is seen for the first time, as a run registers it before it is tokenized."""
        before = len(self.seen)
        self.seen.add((category, document))
        return len(self.seen) > before

    def _cut(self, text: bytes, file: Split) -> None:
        before = self.counts.windows
        try:
            for row in self.cutter.cut(
                text, self.name, file.path, self.counts, set(), self._is_first
            ):
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
            sampled=counts.documents + len(lengths) + self.repeated,
            documents=round((counts.documents + len(lengths) + self.repeated) * scale),
            repeated=round((counts.duplicates + self.repeated) * scale),
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
