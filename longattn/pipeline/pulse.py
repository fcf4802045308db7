"""That an actor lives and computes: it says so now and then while a batch takes long.

A batch of a large model on a CPU takes minutes, in which nothing else is reported of it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from longattn.pipeline.stopping import every
from longattn.text import counted, duration

BEAT = 15.0  # seconds between two beats
ALIVE = 4 * BEAT  # an actor that is silent for longer is not taken to be at work

PulseReport = Callable[[str, int, float], None]
"""Which batch, by a name of its own; its windows; seconds since it began."""


@contextmanager
def beating(report: PulseReport, windows: int) -> Iterator[None]:
    """Report a batch of so many windows each BEAT seconds while the block computes it."""
    batch, started = uuid.uuid4().hex, time.perf_counter()
    with every(BEAT, lambda: report(batch, windows, time.perf_counter() - started)):
        yield


class Pulses:
    """The batches that are being computed, as far as they take long."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, tuple[float, int, float]] = {}

    def beat(self, batch: str, windows: int, seconds: float) -> None:
        now = self._clock()
        self._beats = {b: beat for b, beat in self._beats.items() if now - beat[0] <= ALIVE}
        self._beats[batch] = (now, windows, seconds)

    def __str__(self) -> str:
        """What is being computed, for people; empty where nothing is known to be."""
        now = self._clock()
        alive = {batch: beat for batch, beat in self._beats.items() if now - beat[0] <= ALIVE}
        if not alive:
            return ""
        seen, windows, seconds = max(alive.values(), key=lambda beat: beat[2] - beat[0])
        return (
            f"scoring: {counted(len(alive), 'batch', 'batches')} under way, of which one of "
            f"{counted(windows, 'window')} has taken {duration(seconds + now - seen)} so far"
        )
