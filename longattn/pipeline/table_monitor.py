"""How far the tables of one score have come: watched, logged, exported to Prometheus.

One monitor a score; on a cluster it is an actor on the driver's node. Its metrics are those of the
run's monitor, under the stage `scores/<name>`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from longattn.pipeline.failures import Failure
from longattn.pipeline.monitor import LOG_SECONDS, MAX_FAILURES, Exporter
from longattn.pipeline.pulse import Pulses
from longattn.pipeline.stopping import every
from longattn.pipeline.table_stage import TableWritten
from longattn.text import count, counted, duration

log = logging.getLogger("longattn")


@dataclass(frozen=True)
class TableProgress:
    """How far the tables of a score have come in this run."""

    files: int
    """Tables to write."""
    written: int = 0
    windows: int = 0
    scored: int = 0
    """Of the windows, those within the score's `where`."""
    bytes: int = 0
    seconds: float = 0.0
    """Of work, summed over actors."""
    failures: tuple[Failure, ...] = ()
    computing: str = field(default="", compare=False)
    """What scorers are at, where it takes long; no progress by itself."""

    @property
    def rest(self) -> int:
        return self.files - self.written

    def to_dict(self) -> dict[str, Any]:
        """For the summary of a run."""
        told = asdict(self)
        del told["failures"], told["files"], told["computing"]
        return told


class TableMonitor:
    """The sums over all reports on the tables of one score."""

    def __init__(self, name: str, files: int, window: int, *, export: bool = False) -> None:
        self.stage, self.window = f"scores/{name}", window
        self.metrics = Exporter() if export else None
        self.state = TableProgress(files)
        self.stopped = False
        self.pulses = Pulses()

    def stop(self) -> None:
        """No further table is begun."""
        self.stopped = True

    def goes_on(self) -> bool:
        return not self.stopped and len(self.state.failures) < MAX_FAILURES

    def beat(self, batch: str, windows: int, seconds: float) -> None:
        """A batch that is being scored, as `Pulses.beat` takes it."""
        self.pulses.beat(batch, windows, seconds)

    def add(self, table: TableWritten) -> None:
        now = self.state
        self.state = replace(
            now,
            written=now.written + 1,
            windows=now.windows + table.windows,
            scored=now.scored + table.scored,
            bytes=now.bytes + table.bytes,
            seconds=now.seconds + table.seconds,
        )
        if self.metrics:
            self.metrics.add(
                self.stage,
                table.category,
                windows=table.scored,
                tokens=table.scored * self.window,
                bytes=table.bytes,
                busy=table.seconds,
                waiting=table.waiting,
            )

    def add_failure(self, failure: Failure) -> None:
        if len(self.state.failures) < MAX_FAILURES:
            self.state = replace(self.state, failures=(*self.state.failures, failure))

    def progress(self) -> TableProgress:
        return replace(self.state, computing=str(self.pulses))


@contextmanager
def watched_tables(name: str, progress: Callable[[], TableProgress]) -> Iterator[None]:
    """Show the tables of a score while the block runs: live in a terminal, else a line now and then."""
    started = time.perf_counter()
    console = Console(file=sys.stderr)

    def line() -> None:
        now, seconds = progress(), time.perf_counter() - started
        log.info("%.0f s: %s", seconds, table_line(name, now, seconds))

    with ExitStack() as stack:
        if console.is_terminal:
            live = Live(console=console, refresh_per_second=4, transient=True)
            stack.enter_context(live)
            stack.enter_context(
                every(1, lambda: live.update(view(name, progress(), time.perf_counter() - started)))
            )
        else:
            stack.enter_context(every(LOG_SECONDS, line))
        yield


def table_line(name: str, now: TableProgress, seconds: float) -> str:
    """`score gap: 3 of 40 tables, 330 windows (120 within where), 2.1 scored a second, about 4 min left`."""
    within = f" ({count(now.scored)} within where)" if now.scored < now.windows else ""
    left = duration(seconds * now.rest / now.written) if now.written else None
    return (
        f"score {name}: {count(now.written)} of {counted(now.files, 'table')}, "
        f"{counted(now.windows, 'window')}{within}, {now.scored / max(seconds, 1e-9):.3g} scored a second"
        + (f", about {left} left" if left else "")
    )


def view(name: str, now: TableProgress, seconds: float) -> Group:
    """What the terminal shows."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row(
        ProgressBar(total=max(now.files, 1), completed=now.written, width=40),
        f"{duration(round(seconds))} gone",
    )
    return Group(rows, table_line(name, now, seconds))
