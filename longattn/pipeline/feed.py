"""The tasks of a run that goes on: the splits that remain at its start, then those of files that come.

An executor (`in_process.py`, `on_ray.py`) takes tasks from a feed until it is closed: when no file has
come for `idle` seconds and all is scored, or where something must be looked at between two executions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from longattn.corpus.first_look import with_types
from longattn.corpus.records import Split
from longattn.corpus.sources import file_key, group_splits
from longattn.corpus.watching import Arrivals, SourceWatch
from longattn.pipeline.stopping import every
from longattn.text import counted, duration

if TYPE_CHECKING:
    from longattn.pipeline.monitor import LagExporter, Monitor, Progress
    from longattn.resume.claims import DocumentRegistry

log = logging.getLogger("longattn")

TICK = 1.0  # seconds between two looks at how far the execution is
# Ray Data keeps some hundred bytes of each block for as long as an execution goes on, and the queue
# its tasks: after so many the next execution begins.
MAX_TASKS = 100_000
SHOWN = 10  # files that are named in the log; of more, how many


@dataclass(frozen=True)
class Lag:
    """How far a run that goes on is behind: times in seconds since 1970."""

    newest: float | None
    """When the newest file was seen."""
    oldest: float | None
    """Since when the oldest unscored one waits; None: all are scored."""
    unscored: int
    """Splits that were taken and are not scored."""

    def __str__(self) -> str:
        now = time.time()
        newest = "none yet" if self.newest is None else f"{duration(now - self.newest)} ago"
        if self.oldest is None:
            return f"newest file seen {newest}, all scored"
        return (
            f"newest file seen {newest}, oldest unscored one {duration(now - self.oldest)} ago, "
            f"{counted(self.unscored, 'split')} taken and not scored"
        )


class Feed:
    """Tasks for one execution after the other, from sources that are watched.

    Args:
        watch: the sources.
        interval: seconds between two listings.
        idle: seconds with nothing to do, after which an execution ends.
        tend: called each second of an execution with its progress; says whether it is to end.
        exporter: makes the metrics of the lag; None where nobody reads them.
    """

    def __init__(
        self,
        watch: SourceWatch,
        interval: float,
        idle: float,
        tend: Callable[[Progress], bool],
        exporter: Callable[[], LagExporter] | None = None,
    ) -> None:
        self.watch, self.interval, self.idle, self.tend = watch, interval, idle, tend
        self.exporter = exporter and exporter()
        self.error: Exception | None = None
        """What went wrong while it watched, and ended the execution."""
        self.lag = Lag(None, None, 0)
        self.executions = 0
        self._tasks: SimpleQueue[list[Split] | None] = SimpleQueue()
        self._given = 0
        self._closed = True
        self._listed = 0.0  # when, by the monotonic clock
        self._busy = 0.0  # when something was taken or scored last

    def look(self) -> Arrivals:
        """List the sources if it is time to, and report what has become of files that were taken."""
        now = time.monotonic()
        if self._listed and now < self._listed + self.interval:
            return Arrivals()
        self._listed = now
        arrivals = self.watch.look()
        _report(arrivals.changed, "has changed since it was taken, and is taken again")
        _report(arrivals.gone, "is gone from the listing")
        self._note(None)
        return arrivals

    def __iter__(self) -> Iterator[list[Split]]:
        """Tasks, waiting for each, until the feed is closed."""
        while (task := self._tasks.get()) is not None:
            yield task

    def close(self) -> None:
        """The execution ends once it has done what it was given."""
        self._closed = True
        self._tasks.put(None)

    @contextmanager
    def attended(
        self,
        splits: Sequence[Split],
        columns: Mapping[str, str],
        monitor: Monitor,
        registry: DocumentRegistry,
    ) -> Iterator[None]:
        """Fill the feed while the block runs, first with `splits`; `columns` as `Work` has them.

        Raises what went wrong while it watched, at the end of the block.
        """
        self.executions += 1
        self._tasks, self._given, self._closed, self.error = SimpleQueue(), 0, False, None
        self._busy = time.monotonic()
        monitor.expect(self._since(splits))
        self._give(splits)

        def tick() -> None:
            try:
                self._tick(columns, monitor, registry)
            except Exception as error:  # noqa: BLE001 - raised where the execution ends
                if not self._closed:  # else the execution has ended, and what it asks with it
                    self.error = error
                    self.close()

        try:
            with every(TICK, tick):
                yield
        finally:
            self.close()
        if self.error:
            raise self.error

    def _tick(
        self, columns: Mapping[str, str], monitor: Monitor, registry: DocumentRegistry
    ) -> None:
        taken = self.look().taken
        unknown = {name for split in taken for name, _ in split.columns} - columns.keys()
        if taken and not self._closed and not unknown:
            self._busy = time.monotonic()
            monitor.expect(self._since(taken), sum(split.size for split in taken))
            self._give(with_types(taken, columns))
        progress = monitor.progress()
        self._note(progress)
        failed = len(registry.state().failed)
        rest = progress.unscored - failed
        if rest > 0:
            self._busy = time.monotonic()
        quiet = time.monotonic() - self._busy >= self.idle
        if self._closed:
            return
        # The types of new columns, and what failed, are looked at between two executions.
        done = rest <= 0 and (quiet or failed)
        if self.tend(progress) or unknown or done or self._given >= MAX_TASKS:
            self.close()

    def _since(self, splits: Sequence[Split]) -> dict[str, float]:
        """By the id of each split, when its file was seen first, the oldest first."""
        now = self.watch.clock()
        since = {split.id: self.watch.since(file_key(split), now) for split in splits}
        return dict(sorted(since.items(), key=lambda item: item[1]))

    def _give(self, splits: Sequence[Split]) -> None:
        for task in group_splits(splits):
            self._given += 1
            self._tasks.put(task)

    def _note(self, progress: Progress | None) -> None:
        """Keep the lag, and export it; without progress nothing is being scored."""
        waiting = [self.watch.waiting_since, progress.oldest if progress else None]
        oldest = min((since for since in waiting if since is not None), default=None)
        self.lag = Lag(self.watch.newest, oldest, progress.unscored if progress else 0)
        if self.exporter:
            age = 0.0 if oldest is None else self.watch.clock() - oldest
            self.exporter.set(newest=self.lag.newest or 0.0, oldest=age, unscored=self.lag.unscored)


def _report(files: Sequence[str], what: str) -> None:
    for file in files[:SHOWN]:
        log.warning("%s %s; windows labelled from what it was stay", file, what)
    if len(files) > SHOWN:
        log.warning("of %d more files each %s", len(files) - SHOWN, what)
