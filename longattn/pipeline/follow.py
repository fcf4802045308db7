"""A run that goes on: files are scored as they come, and selections made anew of all that is labelled.

`Follow.run` is its body: executions, one after the other. In one, the actors that read, cut and score
stay at work from the first new file until none has come for a while. Between two, actors, and with
them nodes, are given back, the markers of what is done are compared with the listing of the sources,
and what could not be read is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import Literal, NoReturn

from longattn.config import Config, ConfigLike
from longattn.corpus.watching import SourceWatch
from longattn.errors import RunError
from longattn.pipeline.failures import reason_of
from longattn.pipeline.feed import Feed
from longattn.pipeline.job import Done, ExecutorName, Job
from longattn.pipeline.monitor import LagExporter, Progress
from longattn.pipeline.stopping import Stop, stop_on_sigterm
from longattn.reports.retelling import retell
from longattn.resume.lock import Hold
from longattn.resume.shards import held
from longattn.selection.select_windows import select
from longattn.selection.selection_record import CategorySelection
from longattn.settings.numbers import Seconds, read_number
from longattn.settings.selection import read_every
from longattn.text import counted_are

log = logging.getLogger("longattn")

POLL = 0.2  # seconds; a signal ends the wait at once
TRIES = 3  # executions in a row that may leave the same splits unfinished


def follow(
    config: ConfigLike,
    every: int | str = "60s",
    *,
    idle: int | str = "10m",
    executor: ExecutorName = "ray",
    check: bool = False,
) -> NoReturn:
    """Score files of the sources as they come, until SIGTERM or Ctrl-C, and select by `select.every`.

    A file is taken once two listings found it the same, and scored once, also by runs that follow.

    Args:
        config: path, mapping or `Config`.
        every: time between two listings, in seconds or as "60s".
        idle: time without a new file after which actors are given up until one comes.
        executor, check: as `run` takes them.

    Raises:
        Interrupted: the end of it: stopped, with what was in flight labelled where time allowed.
        ValueError, RunError, HeldError: as `run` does.
    """
    if executor not in ("ray", "local"):
        raise ValueError(f"executor {executor!r}: 'ray' or 'local' is allowed")
    interval, pause = read_number(Seconds, "every", every), read_number(Seconds, "idle", idle)
    config = Config.of(config)
    job = Job(config, executor, whole=check)
    job.check()
    with (
        stop_on_sigterm() as stop,
        held(config.output, stop.end) as hold,
        ExitStack() as cluster,
    ):
        if executor == "ray":
            from longattn.cluster import connected

            cluster.enter_context(connected())
        Follow(job, interval, pause).run(stop, hold)


class Follow:
    """A job that goes on: executions, and between or beside them selections."""

    def __init__(self, job: Job, interval: float, idle: float) -> None:
        self.job, self.every = job, read_every(job.config.select.every)
        exporter = LagExporter if job.executor == "ray" else None
        watch = SourceWatch(job.config.sources)
        self.feed = Feed(watch, interval, idle, self.tend, exporter)
        self.selected_at = time.monotonic()  # when the last selection began
        self.selected_of = 0  # windows that this execution had written then
        self.selecting: threading.Thread | None = None
        self.retry: Literal["none", "now", "later"] = "none"  # of splits that were left unfinished

    def run(self, stop: Stop, hold: Hold) -> NoReturn:
        """Execute whenever something is to be done, select, wait; ends with what `stop` raises."""
        tries, before = 0, set[str]()
        while True:
            self.wait(stop)
            done = self.execute(stop, hold)
            left = {split.id for split in done.labelled.splits}
            tries = tries + 1 if left and left == before else 1
            before, self.retry = left, "none"
            if left:
                self.report_unfinished(done, tries)
            else:
                self.finish(done, stop, hold)
            if stop.asked.is_set():
                raise stop.error

    def wait(self, stop: Stop) -> None:
        """Until there is something to read, or what was not read to its end may be tried again."""
        listed = self.feed.watch.looks
        while self.retry != "now":
            if stop.asked.is_set():
                raise stop.error
            came = self.feed.look()
            if came.taken or came.changed or came.gone:
                return
            if self.retry == "later" and self.feed.watch.looks > listed:
                return
            time.sleep(POLL)

    def execute(self, stop: Stop, hold: Hold) -> Done:
        """Score what remains and what comes, until nothing has for a while."""
        self.selected_of = 0
        self.job.splits = self.feed.watch.splits
        try:
            return self.job.label(stop, hold, self.feed)
        finally:
            if self.selecting:
                self.selecting.join()

    def finish(self, done: Done, stop: Stop, hold: Hold) -> None:
        """Select from all that is labelled, and sum up, as a run does at its end."""
        if not done.labelled.windows:
            log.warning("no window in the files so far")
            return
        done = self.job.score(done, stop, hold)
        summary = self.job.finish(done, stop, hold, select_after=True)
        report_selected({n: c.selection for n, c in summary.categories.items() if c.selection})
        self.selected_at = time.monotonic()

    def report_unfinished(self, done: Done, tries: int) -> None:
        """Settle when splits that are left are tried again; RunError where they were, `TRIES` times."""
        failed = done.outcome.registry.failed if done.outcome else []
        names = [split.source for split in done.labelled.splits]
        told = f"{counted_are(len(names), 'split')} unfinished: {'; '.join((failed or names)[:3])}"
        if tries >= TRIES:
            raise RunError(f"{told}; tried {tries} times, run again to go on")
        if failed:
            log.warning("%s; they are tried again", told)
        self.retry = "later" if failed else "now"  # now: they came as the execution ended

    def tend(self, progress: Progress) -> bool:
        """Select beside the execution if it is time to; True where the execution must end first."""
        if self.selecting and self.selecting.is_alive():
            return False
        new = progress.written - self.selected_of
        passed = time.monotonic() - self.selected_at
        by_time = self.every.seconds and passed >= self.every.seconds
        by_windows = self.every.windows and new >= self.every.windows
        if new <= 0 or not (by_time or by_windows):
            return False
        if self.job.config.scores:  # whose tables are computed between two executions
            return True
        self.selected_at, self.selected_of = time.monotonic(), progress.written
        self.selecting = threading.Thread(target=self.select, daemon=True)
        self.selecting.start()
        return False

    def select(self) -> None:
        """Select from all that is labelled so far; where that fails, the execution ends and tries again."""
        config = self.job.config
        try:
            if config.select.chooses_heads:
                from longattn.reports.head_choice import choose_heads

                choose_heads(config)
            chosen = select(config.output, config.select, file_bytes=config.file_bytes)
            retell(config.output, chosen, config.select.name)
        except Exception as error:  # noqa: BLE001 - of a store, of the database
            log.warning("the selection failed and is made again: %s", reason_of(error))
            self.feed.close()
        else:
            report_selected(chosen)


def report_selected(chosen: dict[str, CategorySelection]) -> None:
    told = ", ".join(f"{name} {of.kept:,} of {of.windows:,}" for name, of in chosen.items())
    log.info("selected: %s", told or "nothing yet")
