"""What a person sees of a run while it goes on, and the history of it that the report draws.

In a terminal a live display; elsewhere one log line now and then (`Monitor.logged`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longattn.pipeline.stopping import every
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import write_record
from longattn.text import count, counted, duration, short

if TYPE_CHECKING:
    from longattn.pipeline.monitor import Monitor, Progress


SAMPLE_SECONDS = 2.0
HISTORY = 600  # samples kept; when full, every second one goes and they come half as often
RECENT_SECONDS = 30.0  # over which rates are shown
WAITING = 32  # windows cut and not scored from which scoring is what a run waits for


@dataclass(frozen=True)
class RateSample:
    """How far a run had come after some seconds: one entry of rates.json, totals since its start."""

    seconds: float
    documents: int
    windows: int
    scored: int
    tokens: int
    busy: dict[str, float]
    """Seconds of work summed over all actors, by stage."""

    @classmethod
    def of(cls, progress: Progress, seconds: float) -> RateSample:
        return cls(
            seconds=round(seconds, 2),
            documents=progress.documents,
            windows=progress.cut.windows,
            scored=progress.scored.windows,
            tokens=progress.scored.tokens,
            busy={
                "window": round(progress.cut.seconds, 2),
                "score": round(progress.scored.seconds, 2),
            },
        )


class History:
    """Samples of a run, a bounded number of them, evenly spread over its time."""

    def __init__(self) -> None:
        self.samples: list[RateSample] = []
        self._step = self._skipped = 1

    def add(self, sample: RateSample) -> None:
        """Keep a sample, or skip it where the history is full."""
        if self._skipped < self._step:
            self._skipped += 1
            return
        self._skipped = 1
        self.samples.append(sample)
        if len(self.samples) > HISTORY:
            self.samples = self.samples[::2]
            self._step *= 2


@contextmanager
def watched(
    monitor: Monitor, total_bytes: int, output: str, lag: Callable[[], str] | None = None
) -> Iterator[None]:
    """Show a run while the block runs, and leave its history in rates.json.

    Args:
        monitor: of the run.
        total_bytes: as stored, of all splits that the run reads.
        output: its folder.
        lag: of a run that goes on, how far it is behind, for people.
    """
    started = time.perf_counter()
    history, recent = History(), list[RateSample]()
    first = monitor.progress_now()  # the block does not wait for it
    console = Console(file=sys.stderr)
    live: Live | None = None

    def begin() -> None:
        if not recent:
            recent.append(RateSample.of(first(), 0.0))
            history.add(recent[0])

    def look() -> None:
        begin()
        progress, seconds = monitor.progress(), time.perf_counter() - started
        recent.append(RateSample.of(progress, seconds))
        history.add(recent[-1])
        while len(recent) > 2 and recent[1].seconds < seconds - RECENT_SECONDS:
            recent.pop(0)
        if live:
            read = progress.stored / max(total_bytes + progress.arrived, 1)
            live.update(view(recent[0], recent[-1], read, lag() if lag else ""))

    with ExitStack() as stack:
        if console.is_terminal:
            live = Live(console=console, refresh_per_second=4, transient=True)
            stack.enter_context(live)
        else:
            stack.enter_context(monitor.logged(lag))
        stack.enter_context(every(SAMPLE_SECONDS, look))
        yield
    begin()
    last = RateSample.of(monitor.progress(), time.perf_counter() - started)
    before = [sample for sample in history.samples if sample.seconds < last.seconds]
    samples = [vars(sample) for sample in [*before, last]]
    write_record(OutputFolder(output).record("rates"), {"samples": samples})


def view(before: RateSample, now: RateSample, read: float, lag: str = "") -> Group:
    """What the terminal shows.

    Args:
        before: a sample some time ago, for the rates.
        now: the last sample.
        read: share of the stored bytes whose splits have been read to their ends.
        lag: of a run that goes on.
    """
    passed = max(now.seconds - before.seconds, 1e-9)
    rate = (now.scored - before.scored) / passed
    tokens = (now.tokens - before.tokens) / passed
    busy = {stage: (now.busy[stage] - before.busy[stage]) / passed for stage in now.busy}
    expected = now.windows / read if read else 0.0
    done = min(1.0, now.scored / expected) if expected else 0.0
    left = (expected - now.scored) / rate if expected and rate else None
    waiting = max(0, now.windows - now.scored)
    if not now.scored:
        held = "the scorers are starting" if now.windows else "the first windows are being cut"
    elif waiting > WAITING or read == 1:
        held = "scoring is what the run waits for"
    else:
        held = "reading and cutting is what the run waits for"
    about = "" if read == 1 else "about "
    rows = Table.grid(padding=(0, 2))
    rows.add_row(
        ProgressBar(total=1, completed=done, width=40),
        f"{done:.0%}  {duration(round(now.seconds))} gone"
        + (f", about {duration(round(left))} left" if left is not None else ""),
    )
    facts = [
        (
            "scored",
            f"{count(now.scored)} of "
            + (f"{about}{count(expected)} windows" if expected else "an unknown number of windows"),
        ),
        ("rate", f"{rate:.3g} windows/s, {short(tokens)} tokens/s"),
        (
            "before",
            f"{counted(now.documents, 'document')} read ({read:.0%} of the bytes to their "
            f"ends), {counted(waiting, 'window')} waiting for a scorer",
        ),
        ("busy", f"{busy['window']:.1f} window actors, {busy['score']:.1f} scorers"),
        ("", held),
        *([("follow", lag)] if lag else []),
    ]
    table = Table.grid(padding=(0, 2))
    for name, fact in facts:
        table.add_row(Text(name, style="dim"), fact)
    return Group(rows, table)
