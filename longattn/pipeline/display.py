"""What a person sees of a run while it goes on, and the history of it that the report draws.

In a terminal a live display; elsewhere one log line now and then (`Monitor.logged`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longattn.storage.files import join, write_json
from longattn.storage.output_folder import FOLDER
from longattn.text import count, duration, short

if TYPE_CHECKING:
    from longattn.pipeline.monitor import Monitor


SAMPLE_SECONDS = 2.0
HISTORY = 600  # samples kept; when full, every second one goes and they come half as often
RECENT_SECONDS = 30.0  # over which rates are told
WAITING = 32  # windows cut and not scored from which scoring is what a run waits for


class History:
    """Samples of a run, a bounded number of them, evenly spread over its time."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self._step = self._skipped = 1

    def add(self, snapshot: dict[str, Any], seconds: float) -> None:
        """Take a snapshot of the monitor, `seconds` into the run."""
        if self._skipped < self._step:
            self._skipped += 1
            return
        self._skipped = 1
        self.samples.append(sample(snapshot, seconds))
        if len(self.samples) > HISTORY:
            self.samples = self.samples[::2]
            self._step *= 2


def sample(snapshot: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One entry of rates.json: totals since the start; `busy` sums the seconds of all actors."""
    return {
        "seconds": round(seconds, 2),
        "documents": snapshot["documents"],
        "windows": snapshot["windows"],
        "scored": snapshot["scored"]["windows"],
        "tokens": snapshot["scored"]["tokens"],
        "busy": {
            "window": round(snapshot["read"]["seconds"], 2),
            "score": round(snapshot["scored"]["seconds"], 2),
        },
    }


@contextmanager
def watched(monitor: Monitor, total_bytes: int, output: str) -> Iterator[None]:
    """Show a run while the block runs, and leave its history at `<output>/_longattn/rates.json`.

    Args:
        monitor: of the run.
        total_bytes: as stored, of all splits that the run reads.
        output: its folder.
    """
    ended, history, started = threading.Event(), History(), time.perf_counter()
    history.add(monitor.snapshot(), 0.0)
    console = Console(file=sys.stderr)

    def watch(live: Live | None) -> None:
        recent = [history.samples[0]]
        while not ended.wait(SAMPLE_SECONDS):
            snapshot, seconds = monitor.snapshot(), time.perf_counter() - started
            history.add(snapshot, seconds)
            recent.append(sample(snapshot, seconds))
            while len(recent) > 2 and recent[1]["seconds"] < seconds - RECENT_SECONDS:
                recent.pop(0)
            if live:
                share = snapshot["stored"] / max(total_bytes, 1)
                live.update(view(recent[0], recent[-1], share))

    with ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = Live(console=console, refresh_per_second=4, transient=True)
            stack.enter_context(live)
        else:
            stack.enter_context(monitor.logged())
        thread = threading.Thread(target=watch, args=(live,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
    last = sample(monitor.snapshot(), time.perf_counter() - started)
    write_json(join(output, FOLDER, "rates.json"), [*history.samples, last])


def view(before: dict[str, Any], now: dict[str, Any], read: float) -> Group:
    """What the terminal shows.

    Args:
        before: a sample some time ago, for the rates.
        now: the last sample.
        read: share of the stored bytes whose splits have been read to their ends.
    """
    passed = max(now["seconds"] - before["seconds"], 1e-9)
    rate = (now["scored"] - before["scored"]) / passed
    tokens = (now["tokens"] - before["tokens"]) / passed
    busy = {stage: (now["busy"][stage] - before["busy"][stage]) / passed for stage in now["busy"]}
    expected = now["windows"] / read if read else 0.0
    done = min(1.0, now["scored"] / expected) if expected else 0.0
    left = (expected - now["scored"]) / rate if expected and rate else None
    waiting = max(0, now["windows"] - now["scored"])
    if not now["scored"]:
        held = "the scorers are starting" if now["windows"] else "the first windows are being cut"
    elif waiting > WAITING or read == 1:
        held = "scoring is what the run waits for"
    else:
        held = "reading and cutting is what the run waits for"
    about = "" if read == 1 else "about "
    rows = Table.grid(padding=(0, 2))
    rows.add_row(
        ProgressBar(total=1, completed=done, width=40),
        f"{done:.0%}  {duration(round(now['seconds']))} gone"
        + (f", about {duration(round(left))} left" if left is not None else ""),
    )
    facts = [
        ("scored", f"{count(now['scored'])} of "
         + (f"{about}{count(expected)} windows" if expected else "an unknown number of windows")),
        ("rate", f"{rate:.3g} windows/s, {short(tokens)} tokens/s"),
        ("before", f"{count(now['documents'])} documents read ({read:.0%} of the bytes to their "
                   f"ends), {count(waiting)} windows wait for a scorer"),
        ("busy", f"{busy['window']:.1f} window actors, {busy['score']:.1f} scorers"),
        ("", held),
    ]  # fmt: skip
    table = Table.grid(padding=(0, 2))
    for name, fact in facts:
        table.add_row(Text(name, style="dim"), fact)
    return Group(rows, table)
