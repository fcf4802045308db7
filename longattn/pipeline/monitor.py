"""What the actors of a run report while it goes on: watched, logged, and put in the summary.

Apart from the pipeline so that workers that only report do not import what the driver does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longattn.corpus.counts import Counts, ReadTotals
from longattn.corpus.records import Split
from longattn.errors import RunError
from longattn.pipeline.metrics import Exporter

log = logging.getLogger("longattn")
LOG_SECONDS = 30.0
BALANCE_SECONDS = 60.0  # of work before the rates of the stages are told


class _Monitor:
    def __init__(self, max_bad_fraction: float, before: ReadTotals | None = None) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.before = before or ReadTotals()  # in splits that are done
        self.metrics = Exporter()
        self.read_before: dict[str, Counts] = {}  # by split that is read again, how far it had come
        self.splits: dict[str, Counts] = {}
        self.stored: dict[str, int] = {}  # bytes of the splits that were read to their ends
        self.stopped = ""
        self.scored = {"windows": 0, "tokens": 0, "seconds": 0.0}

    def add_windows(self, split: Split, counts: Counts, ended: bool, waiting: float) -> str:
        """Returns why the run must stop, or an empty string. A retried split replaces its counts."""
        before = self.splits.get(split.id, Counts())
        if counts.records < before.records:
            self.read_before.setdefault(split.id, before)
        self._raise(split, counts, self.read_before.get(split.id, before), waiting)
        self.splits[split.id] = counts
        self.stored[split.id] = split.size if ended else 0
        seen = deepcopy(self.before)
        for of_split in self.splits.values():
            seen.add(vars(of_split))
        self.stopped = seen.too_bad(self.max_bad_fraction)
        return self.stopped

    def _raise(self, split: Split, counts: Counts, before: Counts, waiting: float) -> None:
        if split.id in self.read_before and counts.records > before.records:
            del self.read_before[split.id]
        self.metrics.add(
            "window", split.category,
            documents=counts.documents - before.documents,
            windows=counts.windows - before.windows,
            tokens=counts.tokens - before.tokens,
            quarantined=counts.bad.total() - before.bad.total(),
            busy=counts.seconds - before.seconds,
            waiting=waiting,
        )  # fmt: skip

    def add_scored(
        self, windows: Counter[str], length: int, seconds: float, kernel: float, waiting: float
    ) -> None:
        """A batch: windows by category, tokens a window, seconds of work, in it of the statistics."""
        total = windows.total()
        self.scored["windows"] += total
        self.scored["tokens"] += total * length
        self.scored["seconds"] += seconds
        for category, n in windows.items():
            self.metrics.add(
                "score", category, windows=n, tokens=n * length, busy=seconds * n / total,
                kernel=kernel * n / total, waiting=waiting * n / total,
            )  # fmt: skip

    def add_written(self, category: str, windows: int, size: int, seconds: float) -> None:
        self.metrics.add("write", category, windows=windows, bytes=size, busy=seconds)

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

    def __init__(self, max_bad_fraction: float, before: ReadTotals | None = None) -> None:
        # On the driver's node: on another, a spot node's death would end the run, and the actor
        # would keep an idle node from being given back.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(_Monitor)
        self._actor = actor.options(scheduling_strategy=here).remote(max_bad_fraction, before)

    def snapshot(self) -> dict[str, Any]:
        snapshot: Any = self._actor.snapshot.remote()
        return ray.get(snapshot)

    def window_report(self) -> Callable[[Split, Counts, bool, float], None]:
        """For window actors; the call raises RunError when too many records are bad.

        It takes a split, its counts so far, whether it is read to its end, and the seconds that the
        actor has waited since it last told.
        """
        actor = self._actor

        def report(split: Split, counts: Counts, ended: bool, waiting: float) -> None:
            stopped = ray.get(actor.add_windows.remote(split, counts, ended, waiting))
            if stopped:
                raise RunError(stopped)

        return report

    def score_report(self) -> Callable[[Counter[str], int, float, float, float], None]:
        """For scoring actors: what `_Monitor.add_scored` takes of a batch."""
        actor = self._actor

        def report(
            windows: Counter[str], length: int, seconds: float, kernel: float, waiting: float
        ) -> None:
            actor.add_scored.remote(windows, length, seconds, kernel, waiting)

        return report

    def write_report(self) -> Callable[[str, int, int, float], None]:
        """For the sink: category, windows, bytes and seconds of a file."""
        actor = self._actor

        def report(category: str, windows: int, size: int, seconds: float) -> None:
            actor.add_written.remote(category, windows, size, seconds)

        return report

    @contextmanager
    def logged(self) -> Iterator[None]:
        """One log line every LOG_SECONDS while the block runs; once, what sizes the pools."""
        ended = threading.Event()
        started = time.perf_counter()

        def watch() -> None:
            balanced = ""
            while not ended.wait(LOG_SECONDS):
                now, seconds = self.snapshot(), time.perf_counter() - started
                log.info(
                    "%.0f s: %d documents read, %d windows cut, %d scored, %.0f tokens/s",
                    seconds, now["documents"], now["windows"], now["scored"]["windows"],
                    now["scored"]["tokens"] / seconds,
                )  # fmt: skip
                if seconds >= BALANCE_SECONDS and not balanced:
                    balanced = balance(now["read"], now["scored"])
                    if balanced:
                        log.info("%s", balanced)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def balance(read: Mapping[str, float], scored: Mapping[str, float]) -> str:
    """What one actor of each stage does, by which Ray Data proportions the pools; "" if unknown.

    Args:
        read: `windows` and busy `seconds` of all window actors so far.
        scored: `windows`, `tokens` and busy `seconds` of all scoring actors.
    """
    if not (read["windows"] and scored["windows"]):
        return ""
    cut, taken = (stage["windows"] / stage["seconds"] for stage in (read, scored))
    length = scored["tokens"] / scored["windows"]
    ratio = (
        f"one window actor feeds {cut / taken:.1f} scoring actors"
        if cut >= taken
        else f"one scoring actor takes {taken / cut:.1f} window actors"
    )
    return (
        f"measured: a window actor cuts {cut * length:,.0f} tokens/s, a scoring actor scores "
        f"{taken:.2f} windows/s ({taken * length:,.0f} tokens/s); {ratio}"
    )
