"""Score tables in the calling process, on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from longattn.config import Workers
from longattn.pipeline.stopping import Sign, Stop
from longattn.pipeline.table_monitor import TableMonitor, TableProgress, watched_tables
from longattn.pipeline.table_stage import ScoreTables, TableReports, TableStage
from longattn.resume.claims import InThisProcess


@contextmanager
def tables_in_process(output: str, workers: Workers, dtype: str | None) -> Iterator[LocalTables]:
    """What computes tables here, for a block."""
    import torch

    yield LocalTables("cuda" if torch.cuda.is_available() else "cpu")


class LocalTables:
    """Computes the tables of a score in this process."""

    def __init__(self, device: str) -> None:
        self.device = device

    def execute(self, stage: TableStage, labelled: Sequence[str], stop: Stop) -> TableProgress:
        """Write the tables of labelled files; raises Interrupted, or ValueError for a refused model."""
        name = stage.score.name
        monitor = TableMonitor(name, len(labelled), stage.record.parts.window)

        def sign() -> Sign:
            return Sign(now := monitor.progress(), f"the score {name}", now.computing)

        with (
            watched_tables(name, monitor.progress),
            stop.draining(monitor.stop, sign),
        ):
            reports = TableReports(InThisProcess(monitor))
            ScoreTables(replace(stage, device=self.device), reports).write(labelled)
        return monitor.progress()
