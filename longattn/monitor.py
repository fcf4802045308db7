"""What the actors of a run report while it goes on: watched, logged, and put in the summary.

Apart from the pipeline so that workers that only report do not import what the driver does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from longattn.windows import Counts

log = logging.getLogger("longattn")
LOG_SECONDS = 30.0


class RunError(RuntimeError):
    """A run that did not finish, told in one line."""


class _Monitor:
    def __init__(self, max_bad_fraction: float) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.splits: dict[str, Counts] = {}
        self.stored: dict[str, int] = {}  # bytes of the splits that were read to their ends
        self.stopped = ""
        self.scored = {"windows": 0, "tokens": 0, "seconds": 0.0}

    def add_windows(self, split: str, counts: Counts, stored: int) -> str:
        """Returns why the run must stop, or an empty string. A retried split replaces its counts."""
        self.splits[split] = counts
        self.stored[split] = stored
        seen = sum(c.records for c in self.splits.values())
        bad = sum((c.bad for c in self.splits.values()), Counter())
        if seen >= 1000 and bad.total() > self.max_bad_fraction * seen:
            told = ", ".join(f"{reason} {n}" for reason, n in bad.most_common())
            self.stopped = (
                f"{bad.total()} of {seen} records are bad ({told}), over max_bad_fraction "
                f"{self.max_bad_fraction}; they are in quarantine/"
            )
        return self.stopped

    def add_scored(self, windows: int, tokens: int, seconds: float) -> None:
        self.scored["windows"] += windows
        self.scored["tokens"] += tokens
        self.scored["seconds"] += seconds

    def snapshot(self) -> dict[str, Any]:
        return {
            "documents": sum(c.documents for c in self.splits.values()),
            "windows": sum(c.windows for c in self.splits.values()),
            "stored": sum(self.stored.values()),
            "read": {
                "windows": sum(c.windows for c in self.splits.values()),
                "seconds": sum(c.seconds for c in self.splits.values()),
            },
            "scored": dict(self.scored),
            "stopped": self.stopped,
        }


class Monitor:
    """The driver's hold on the monitor of a run, an actor of its own."""

    def __init__(self, max_bad_fraction: float) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Monitor).remote(max_bad_fraction)

    def snapshot(self) -> dict[str, Any]:
        snapshot: Any = self._actor.snapshot.remote()
        return ray.get(snapshot)

    def window_report(self) -> Callable[[str, Counts, int], None]:
        """For window actors; the call raises RunError when too many records are bad.

        It takes a split's id, its counts so far, and its stored bytes once it is read to its end, 0
        before.
        """
        actor = self._actor

        def report(split: str, counts: Counts, stored: int) -> None:
            stopped = ray.get(actor.add_windows.remote(split, counts, stored))
            if stopped:
                raise RunError(stopped)

        return report

    def score_report(self) -> Callable[[int, int, float], None]:
        """For scoring actors: windows, tokens and seconds of a batch."""
        actor = self._actor

        def report(windows: int, tokens: int, seconds: float) -> None:
            actor.add_scored.remote(windows, tokens, seconds)

        return report

    @contextmanager
    def logged(self) -> Iterator[None]:
        """One log line every LOG_SECONDS while the block runs."""
        ended = threading.Event()
        started = time.perf_counter()

        def watch() -> None:
            while not ended.wait(LOG_SECONDS):
                now, seconds = self.snapshot(), time.perf_counter() - started
                log.info(
                    "%.0f s: %d documents read, %d windows cut, %d scored, %.0f tokens/s",
                    seconds, now["documents"], now["windows"], now["scored"]["windows"],
                    now["scored"]["tokens"] / seconds,
                )  # fmt: skip

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
