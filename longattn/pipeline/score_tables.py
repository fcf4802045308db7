"""Score tables of labelled windows: find what is missing, and let an executor compute it.

`compute_tables` is the step of a run; `score_tables` is the same for any folder with labelled windows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import pyarrow as pa

from longattn.config import Config, ConfigLike, Workers, is_config_file, output_of
from longattn.errors import ConfigError, RunError
from longattn.pipeline.stopping import Stop, stop_on_sigterm
from longattn.pipeline.table_monitor import TableProgress
from longattn.pipeline.table_stage import TableStage
from longattn.resume.damage import set_aside
from longattn.resume.fingerprint import RunRecord, read_run_record
from longattn.resume.score_tables import (
    TableRecord,
    TablesThere,
    column_places,
    read_table_record,
    require_same,
    tables_there,
    with_limits,
    write_table_record,
)
from longattn.resume.shards import held
from longattn.scoring.further_scores import DTYPES, TableParts, table_parts
from longattn.settings.scores import Score, check_scores
from longattn.storage.files import warn_if_slow
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import DamagedFileError, open_parquet, own_files
from longattn.text import counted, without_secrets

log = logging.getLogger("longattn")

SHOWN = 3


class Tables(Protocol):
    """What computes tables: a cluster, or this process."""

    @property
    def device(self) -> str:
        """What models run on: "cuda" or "cpu"."""

    def execute(self, stage: TableStage, labelled: Sequence[str], stop: Stop) -> TableProgress:
        """Write the tables of labelled files; raises RunError, or Interrupted after a signal."""


class TablesExecutor(Protocol):
    """Opens what computes tables for a block."""

    def __call__(
        self, output: str, workers: Workers, dtype: str | None
    ) -> AbstractContextManager[Tables]: ...


def tables_executor(name: Literal["ray", "local"]) -> TablesExecutor:
    if name == "local":
        from longattn.pipeline.tables_in_process import tables_in_process

        return tables_in_process
    from longattn.pipeline.tables_on_ray import tables_on_ray

    return tables_on_ray


@dataclass(frozen=True)
class WindowFacts:
    """What of the labelled windows decides a further score."""

    window: int
    """Their tokens."""
    min_distance: int
    tokenizer: str | None
    """Fingerprint of the one that cut them; None where it is not known."""
    carried: tuple[str, ...] = ()
    """The user's own columns."""

    def parts(self, score: Score, dtype: str | None) -> TableParts:
        return table_parts(
            score,
            window=self.window,
            min_distance=self.min_distance,
            tokenizer=self.tokenizer,
            dtype=dtype,
        )


@dataclass(frozen=True)
class TableSummary:
    """What of a score is there after a run."""

    tables: int
    """All of them."""
    progress: TableProgress
    """Of this run."""

    def to_dict(self) -> dict[str, Any]:
        return {"tables": self.tables, **self.progress.to_dict()}


class TableJob:
    """The further scores of one output folder."""

    def __init__(
        self, output: str, scores: Sequence[Score], facts: WindowFacts, *, whole: bool = False
    ):
        self.output, self.scores, self.facts, self.whole = output, scores, facts, whole
        self.folder = OutputFolder(output)
        self._parts: dict[str, TableParts] = {}
        self._read: set[str] = set()  # scores whose tables were read whole

    def check(self) -> None:
        """Refuse what cannot be computed, or not under its name. Raises ValueError, one line."""
        for i, score in enumerate(self.scores):
            column_places(self.output, self.scores[:i], _columns(score), self.facts.carried)
            record = read_table_record(self.output, score.name)
            if record is not None:
                require_same(self.output, score.name, record, self._of(score, record.parts.dtype))
            else:
                self._of(score, None)

    def run(
        self, stop: Stop, opened: Callable[[str | None], AbstractContextManager[Tables]]
    ) -> dict[str, TableSummary]:
        """Compute what is missing, one score after the other.

        Args:
            opened: for a dtype, what computes tables; entered once something is missing.

        Raises:
            FolderError: tables of this name hold other numbers.
            DamagedFileError: a labelled file or a table that was read is not what was written.
            RunError: some tables could not be computed.
            Interrupted: after a signal, with what was in flight written.
        """
        labelled = own_files(self.folder.labelled_files())
        told: dict[str, TableSummary] = {}
        if not labelled:
            return told
        with ExitStack() as stack:
            tables: Tables | None = None
            for i, score in enumerate(self.scores):
                record = read_table_record(self.output, score.name)
                if record is None or (record and self._there(record, labelled).missing):
                    if tables is None:
                        tables = stack.enter_context(opened(score.dtype))
                    told[score.name] = self._score(i, record, labelled, tables, stop)
                else:
                    require_same(
                        self.output, score.name, record, self._of(score, record.parts.dtype)
                    )
                    told[score.name] = TableSummary(len(labelled), TableProgress(0))
        return told

    def read_whole(self) -> None:
        """From now on read all rows of the tables that are there, once."""
        self.whole, self._read = True, set()

    def _of(self, score: Score, dtype: str | None) -> TableParts:
        """The parts of a score; weights are hashed once."""
        if score.name not in self._parts:
            self._parts[score.name] = self.facts.parts(score, None)
        return replace(
            self._parts[score.name], dtype=(score.dtype or dtype) if score.model else None
        )

    def _score(
        self,
        i: int,
        record: TableRecord | None,
        labelled: Sequence[str],
        tables: Tables,
        stop: Stop,
    ) -> TableSummary:
        score = self.scores[i]
        parts = self._of(score, DTYPES[tables.device])
        require_same(self.output, score.name, record, parts)
        places = column_places(self.output, self.scores[:i], _columns(score))
        was = record
        record = record or TableRecord(
            score.name, parts, score.columns, score.model and without_secrets(score.model)
        )
        record = with_limits(self.output, record, score.where, places)
        if record != was:
            write_table_record(self.output, record)
        there = self._there(record, labelled)
        if not there.missing:
            return TableSummary(there.done, TableProgress(0))
        log.info(
            "score %s: %s to compute (%d done) on %s",
            score.name,
            counted(len(there.missing), "table"),
            there.done,
            tables.device if score.model else "CPUs",
        )
        stage = TableStage(self.output, score, record, places)
        progress = tables.execute(stage, there.missing, stop)
        if stop.asked.is_set():
            raise stop.error
        left = self._there(record, labelled)
        if left.missing:
            for failure in progress.failures:
                kind, _, why = failure.reason.partition(": ")
                if kind == DamagedFileError.__name__:
                    raise DamagedFileError(failure.where, why.removeprefix(f"{failure.where}: "))
            failed = [str(failure) for failure in progress.failures[:SHOWN]]
            why = "; ".join(failed or map(without_secrets, left.missing[:SHOWN]))
            raise RunError(
                f"{len(left.missing)} of {counted(len(labelled), 'table')} of score {score.name} "
                f"are missing: {why}; run again"
            )
        return TableSummary(left.done, progress)

    def _there(self, record: TableRecord, labelled: Sequence[str]) -> TablesThere:
        """What is there, after damaged tables and those of files that are gone are set aside."""
        whole = self.whole and record.name not in self._read
        self._read.add(record.name)
        with warn_if_slow(f"reading the tables of score {record.name}"):
            there = tables_there(self.folder, record, labelled, whole=whole)
            gone = dict.fromkeys(there.orphans, "its labelled file is gone")
            if there.damaged or gone:
                set_aside(self.output, {**there.damaged, **gone})
        return there


def _columns(score: Score) -> list[str]:
    """Of its `where`."""
    return [bound.column for bound in score.where]


def score_tables(
    output: ConfigLike,
    scores: Iterable[Score | Mapping[str, Any]] | None = None,
    *,
    executor: Literal["ray", "local"] = "ray",
    workers: Workers | Mapping[str, Any] | None = None,
) -> dict[str, TableSummary]:
    """Further scores of the labelled windows of a folder, as tables below `<output>/scores`.

    Computes what is missing; the same result however often repeated. Where no run has written the
    folder (`write_labelled` did), nobody knows whose ids its windows are, so that every model is
    given its own ids of their text, and k is a quarter of the window.

    Args:
        output: the output folder, or the config of its run.
        scores: as `scores:` of a config has them; by default those of the config.
        executor: `ray` on a cluster, `local` in this process.
        workers: as `workers:` of a config; by default those of the config.

    Returns:
        By score, how many tables are there, and what this call computed.

    Raises:
        ValueError: one line; a bad setting, a model that cannot be run, no labelled windows, or
            tables of other numbers under a name.
        RunError: some tables could not be computed.

    Example:
        gap = {"name": "gap", "kind": "loss_gap", "model": "HuggingFaceTB/SmolLM2-135M"}
        la.score_tables("out/books", [gap])
    """
    path = output_of(output)
    record = read_run_record(path)
    config = record.config if record else None
    if not isinstance(output, str) or is_config_file(output):
        config = Config.of(output)
    chosen = [
        Score.check(score, f"scores.{i}")
        for i, score in enumerate((config.scores if config else ()) if scores is None else scores)
    ]
    pool = Workers.check(
        (config.workers if config else {}) if workers is None else workers, "workers"
    )
    facts = window_facts(path, record)
    try:
        check_scores(chosen, facts.window, {})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    job = TableJob(path, chosen, facts)
    job.check()
    with stop_on_sigterm() as stop, held(path, stop.end):
        return job.run(stop, lambda dtype: tables_executor(executor)(path, pool, dtype))


def window_facts(output: str, record: RunRecord | None) -> WindowFacts:
    """Of the labelled windows of a folder. Raises ValueError where there are none."""
    if record is not None:
        parts = record.parts
        return WindowFacts(parts.window, parts.min_distance, parts.tokenizer)
    folder = OutputFolder(output)
    files = own_files(folder.labelled_files())
    if not files:
        raise ValueError(f"{folder.labelled}: no labelled windows to score")
    with open_parquet(files[0]) as parquet:
        first: pa.Table = parquet.read_row_group(0, columns=["input_ids"])
    window = len(first["input_ids"][0].values)
    return WindowFacts(window, max(1, window // 4), None)
