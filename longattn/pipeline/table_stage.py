"""The stage that computes score tables: labelled files in, a small file beside each out.

An actor on a cluster, an object in this process; both read the next file while one is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from longattn.errors import RunError
from longattn.pipeline.failures import Failure, failures_reported
from longattn.pipeline.pulse import beating
from longattn.resume.claims import Caller
from longattn.resume.score_tables import TableRecord, narrow_columns, within
from longattn.scoring.further_scores import FurtherScorer, table_schema
from longattn.settings.scores import Score
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import open_parquet, readable, write_table
from longattn.text import without_secrets


@dataclass(frozen=True)
class TableStage:
    """How the tables of one score are computed."""

    output: str
    score: Score
    record: TableRecord
    places: Mapping[str, str]
    """Where the columns of `where` lie: the name of a score, or "" for the labelled files."""
    device: str = "cpu"
    threads: int = 0
    """Of torch on a CPU; 0: torch's own number."""


@dataclass(frozen=True)
class TableWritten:
    """A table that is there now."""

    category: str
    windows: int
    scored: int
    bytes: int
    seconds: float
    """Of work."""
    waiting: float
    """Seconds before it without work."""


class TableReports:
    """What the stage tells the monitor of the tables, and asks it."""

    def __init__(self, monitor: Caller) -> None:
        self._monitor = monitor

    def goes_on(self) -> bool:
        """False once the run is to stop, or too much has failed."""
        on: bool = self._monitor.ask("goes_on")()
        return on

    def written(self, table: TableWritten) -> None:
        self._monitor.ask("add", table)()  # waited for, so that totals are whole at the end

    def beat(self, batch: str, windows: int, seconds: float) -> None:
        self._monitor.ask("beat", batch, windows, seconds)

    def failed(self, failure: Failure) -> None:
        self._monitor.ask("add_failure", failure)()


class ScoreTables:
    """Writes the tables of labelled files, one after another; what fails is reported, and left out."""

    def __init__(self, stage: TableStage, reports: TableReports) -> None:
        self.stage, self.reports = stage, reports
        self.folder = OutputFolder(stage.output)
        with failures_reported(reports.failed, stage.score.name):
            self.scorer = FurtherScorer(
                stage.score, stage.record.parts, stage.device, stage.threads
            )
        self.schema = table_schema(stage.record.columns, self.scorer)
        self.left = time.perf_counter()  # when the last table was written

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """As Ray Data calls it: rows with a `url` each; gives how many tables were written."""
        return {"tables": np.array([self.write(map(str, batch["url"]))])}

    def write(self, labelled: Iterable[str]) -> int:
        """Write the tables of labelled files; returns how many."""
        written, urls = 0, iter(labelled)
        with ThreadPoolExecutor(1) as ahead:
            url = next(urls, None)
            reading = url and ahead.submit(self._read, url)
            while url and reading:
                following = next(urls, None)
                now, reading = reading, following and ahead.submit(self._read, following)
                if not self.reports.goes_on():
                    break
                written += self._one(url, now.result)
                url = following
        return written

    def _one(self, url: str, read: Callable[[], tuple[pa.Table, np.ndarray]]) -> bool:
        try:
            with failures_reported(
                self.reports.failed, self.stage.score.name, lambda: without_secrets(url)
            ):
                windows, inside = read()
                started = time.perf_counter()
                self._write(url, windows, inside, started)
        except RunError:
            raise
        except Exception:  # noqa: BLE001 - reported; the other tables are written all the same
            return False
        return True

    def _read(self, url: str) -> tuple[pa.Table, np.ndarray]:
        """data_id and what the scorer needs, and which rows it is to score."""
        limits = self.stage.record.limits.get(category_of(url), {})
        with open_parquet(url) as parquet, readable(url):
            windows = parquet.read(columns=["data_id", *self.scorer.inputs])
        if not self.stage.places:
            return windows, np.ones(len(windows), bool)
        narrow = narrow_columns(self.folder, url, self.stage.places)
        return windows, within(narrow, limits)

    def _write(self, url: str, windows: pa.Table, inside: np.ndarray, started: float) -> None:
        record, name = self.stage.record, self.stage.score.name
        with beating(self.reports.beat, int(inside.sum())):
            columns = self.scorer.columns(windows.filter(pa.array(inside)))
        places = np.flatnonzero(inside).tolist()
        table = {"data_id": windows["data_id"]}
        for field in self.schema:
            if field.name == "data_id":
                continue
            values: list[Any] = [None] * len(windows)
            for place, value in zip(places, columns[field.name], strict=True):
                values[place] = value
            table[field.name] = pa.array(values, field.type)
        scored = len(windows) - table[self.stage.score.columns[0]].null_count
        size = write_table(
            self.folder.score_file(name, url),
            pa.table(table, schema=self.schema),
            {"fingerprint": record.fingerprint, "score": name, "scored": scored},
        )
        waiting, self.left = started - self.left, time.perf_counter()
        self.reports.written(
            TableWritten(category_of(url), len(windows), scored, size, self.left - started, waiting)
        )
