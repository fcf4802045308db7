"""What the stages of a run report while it goes on: watched, logged, exported, and put in the summary.

One `Monitor` of the run takes all reports. On a cluster it is an actor on the driver's node, and
raises Prometheus metrics, exported by Ray under `ray_<name>`: no series for every actor of every
node, and a split that is read again is not counted twice.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from longattn.corpus.counts import Counts, ReadTotals
from longattn.corpus.records import Split
from longattn.errors import RunError
from longattn.pipeline.failures import Failure, FailureReport
from longattn.pipeline.pulse import PulseReport, Pulses
from longattn.pipeline.stopping import every
from longattn.resume.claims import Caller
from longattn.text import counted

if TYPE_CHECKING:  # workers that only report import no stage
    from longattn.pipeline.labelled_sink import WriteReport
    from longattn.pipeline.score_actor import ScoreReport
    from longattn.pipeline.window_actor import SplitReport, WindowReport

log = logging.getLogger("longattn")
LOG_SECONDS = 30.0
BALANCE_SECONDS = 60.0  # of work before the rates of the stages are logged

MAX_FAILURES = 5  # kept of a run
# stage: window (read, tokenize, cut), score, write; scores/<name> of a further score
LABELS = ("stage", "category")
# What the monitor is told -> the metric that it raises, and what that counts.
METRICS = {
    "documents": ("longattn_documents_total", "documents read"),
    "windows": (
        "longattn_windows_total",
        "windows cut (stage window), scored (score, or scores/<name>), written (write)",
    ),
    "tokens": (
        "longattn_tokens_total",
        "tokens of documents tokenized (stage window), of windows scored (score)",
    ),
    "quarantined": ("longattn_quarantined_records_total", "records that could not be used"),
    "bytes": (
        "longattn_written_bytes_total",
        "bytes of labelled Parquet files and of score tables",
    ),
    "busy": ("longattn_busy_seconds_total", "seconds of work, summed over actors"),
    "kernel": ("longattn_kernel_seconds_total", "seconds of it in the attention statistics"),
    "waiting": (
        "longattn_waiting_seconds_total",
        "seconds without input or without room downstream, summed over actors",
    ),
}


# Of a run that goes on, set by its driver: the name, and what it says.
LAG_METRICS = {
    "newest": (
        "longattn_newest_file_timestamp_seconds",
        "when the newest file of the sources was seen first, in seconds since 1970",
    ),
    "oldest": (
        "longattn_oldest_unscored_seconds",
        "for how long the oldest file that is not scored has been seen; 0: all are",
    ),
    "unscored": ("longattn_unscored_splits", "splits that are taken and not scored"),
}


@dataclass(frozen=True)
class StageWork:
    """What all actors of a stage did so far."""

    windows: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def plus(self, windows: int, tokens: int, seconds: float) -> StageWork:
        return StageWork(self.windows + windows, self.tokens + tokens, self.seconds + seconds)


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    documents: int = 0
    """Read."""
    stored: int = 0
    """Bytes of the splits that were read to their ends."""
    cut: StageWork = field(default_factory=StageWork)
    scored: StageWork = field(default_factory=StageWork)
    stopped: str = ""
    """Why the run must stop, or empty."""
    failures: tuple[Failure, ...] = ()
    """What went wrong in its stages, the first few."""
    written: int = 0
    """Windows in labelled files."""
    arrived: int = 0
    """Stored bytes of the splits that came while it went on."""
    unscored: int = 0
    """Expected splits whose windows are not all written."""
    computing: str = field(default="", compare=False)
    """What scorers are at, where it takes long; no progress by itself."""
    oldest: float | None = None
    """When the file of the oldest of them was seen first."""


class LagExporter:
    """Sets the metrics of a run that goes on, through Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._gauges = {
            short: Gauge(name, description=about) for short, (name, about) in LAG_METRICS.items()
        }

    def set(self, **values: float) -> None:
        """By short names."""
        for name, value in values.items():
            self._gauges[name].set(value)


class Exporter:
    """Raises the metrics of this process, through Ray."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter as Metric

        self._counters = {
            short: Metric(name, description=about, tag_keys=LABELS)
            for short, (name, about) in METRICS.items()
        }

    def add(self, stage: str, category: str, **amounts: float) -> None:
        """Add to metrics by their short names; what is not above 0 is left out."""
        for name, amount in amounts.items():
            if amount > 0:
                self._counters[name].inc(amount, {"stage": stage, "category": category})


@dataclass
class _Expected:
    """A split whose windows are not all written yet."""

    since: float
    ended: bool = False
    given: int = 0
    written: int = 0


class RunMonitor:
    """The sums over all reports of a run; called through `Monitor`."""

    def __init__(
        self, max_bad_fraction: float, before: ReadTotals | None = None, *, export: bool = False
    ) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.seen = deepcopy(before or ReadTotals())  # in splits that are done, and in these
        self.total = Counts()  # of these: kept up, for summing 100,000 at each report takes an hour
        self.metrics = Exporter() if export else None
        self.read_before: dict[str, Counts] = {}  # by split that is read again, how far it had come
        self.splits: dict[str, Counts] = {}
        self.ended: dict[str, int] = {}  # bytes of the splits that were read to their ends
        self.stored = 0  # of all of them
        self.stopped = ""
        self.failures: list[Failure] = []
        self.scored = StageWork()
        self.pulses = Pulses()
        self.written = self.arrived = 0
        self.expected: dict[str, _Expected] = {}  # of a run that goes on, the oldest first

    def expect(self, splits: Mapping[str, float], arrived: int) -> None:
        """Splits that come, with when each one's file was seen first; stored bytes of new ones."""
        self.expected |= {name: _Expected(since) for name, since in splits.items()}
        self.arrived += arrived
        self.seen.stored += arrived

    def _settle(self, name: str) -> None:
        of = self.expected[name]
        if of.ended and of.written >= of.given:
            del self.expected[name]

    def add_windows(
        self, split: Split, counts: Counts, ended: bool, waiting: float, given: int = 0
    ) -> str:
        """Returns why the run must stop, or an empty string. A retried split replaces its counts."""
        name, nothing = split.id, Counts()
        last = self.splits.get(name, nothing)
        if counts.records < last.records:
            self.read_before.setdefault(name, last)
        before = self.read_before.get(name, last)
        if name in self.read_before and counts.records > before.records:
            del self.read_before[name]
        self._raise(split.category, counts, before, waiting)
        self.splits[name] = replace(counts, bad=Counter(counts.bad))
        if expected := self.expected.get(name):
            expected.ended, expected.given = ended, given
            self._settle(name)
        stored = split.size if ended else 0
        self.stored += stored - self.ended.get(name, 0)
        self.ended[name] = stored
        for sums in (self.total, self.seen):
            sums.add(counts)
            sums.subtract(last)
        self.stopped = self.seen.too_bad(self.max_bad_fraction)
        return self.stopped

    def add_several(self, reports: Sequence[SplitReport]) -> str:
        """Several of `add_windows` in one call."""
        for report in reports:
            self.add_windows(*report)
        return self.stopped

    def _raise(self, category: str, counts: Counts, before: Counts, waiting: float) -> None:
        self._export(
            "window",
            category,
            documents=counts.documents - before.documents,
            windows=counts.windows - before.windows,
            tokens=counts.tokens - before.tokens,
            quarantined=counts.bad.total() - before.bad.total(),
            busy=counts.seconds - before.seconds,
            waiting=waiting,
        )

    def add_scored(
        self, windows: Counter[str], length: int, seconds: float, kernel: float, waiting: float
    ) -> None:
        """A batch: windows by category, tokens a window, seconds of work, in it of the statistics."""
        total = windows.total()
        self.scored = self.scored.plus(total, total * length, seconds)
        for category, n in windows.items():
            self._export(
                "score",
                category,
                windows=n,
                tokens=n * length,
                busy=seconds * n / total,
                kernel=kernel * n / total,
                waiting=waiting * n / total,
            )

    def add_written(
        self,
        category: str,
        windows: int,
        size: int,
        seconds: float,
        splits: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """A labelled file: its windows, bytes, seconds of work, and windows by split."""
        self.written += windows
        for name in self.expected.keys() & splits.keys():
            self.expected[name].written += splits[name]
            self._settle(name)
        self._export("write", category, windows=windows, bytes=size, busy=seconds)

    def beat(self, batch: str, windows: int, seconds: float) -> None:
        """A batch that is being scored, as `Pulses.beat` takes it."""
        self.pulses.beat(batch, windows, seconds)

    def add_failure(self, failure: Failure) -> None:
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(failure)

    def _export(self, stage: str, category: str, **amounts: float) -> None:
        if self.metrics:
            self.metrics.add(stage, category, **amounts)

    def progress(self) -> Progress:
        return Progress(
            documents=self.total.documents,
            stored=self.stored,
            cut=StageWork(self.total.windows, self.total.tokens, self.total.seconds),
            scored=self.scored,
            stopped=self.stopped,
            failures=tuple(self.failures),
            written=self.written,
            arrived=self.arrived,
            computing=str(self.pulses),
            unscored=len(self.expected),
            oldest=next((of.since for of in self.expected.values()), None),
        )


class Monitor:
    """The monitor of a run, as the driver and its stages call it."""

    def __init__(self, of_run: Caller, *, pools: bool = True) -> None:
        self._run, self._pools = of_run, pools  # whether there are pools of actors to balance

    def progress(self) -> Progress:
        return self.progress_now()()

    def progress_now(self) -> Callable[[], Progress]:
        """What gives the progress as it is at this call, without waiting for it."""
        return self._run.ask("progress")

    def expect(self, splits: Mapping[str, float], arrived: int = 0) -> None:
        """Splits that come, as `RunMonitor.expect` takes them."""
        self._run.ask("expect", splits, arrived)()

    def window_report(self) -> WindowReport:
        """For the window stage; the call raises RunError when too many records are bad."""
        run = self._run

        def report(of_splits: Sequence[SplitReport]) -> None:
            stopped = run.ask("add_several", of_splits)()
            if stopped:
                raise RunError(stopped)

        return report

    def score_report(self) -> ScoreReport:
        """For the scoring stage."""
        run = self._run

        def report(
            windows: Counter[str], length: int, seconds: float, kernel: float, waiting: float
        ) -> None:
            run.ask("add_scored", windows, length, seconds, kernel, waiting)

        return report

    def pulse_report(self) -> PulseReport:
        """For the scoring stage."""
        run = self._run

        def report(batch: str, windows: int, seconds: float) -> None:
            run.ask("beat", batch, windows, seconds)

        return report

    def write_report(self) -> WriteReport:
        """For the sink."""
        run = self._run

        def report(
            category: str, windows: int, size: int, seconds: float, splits: Mapping[str, int]
        ) -> None:
            run.ask("add_written", category, windows, size, seconds, splits)

        return report

    def failure_report(self) -> FailureReport:
        """For all stages."""
        run = self._run

        def report(failure: Failure) -> None:
            run.ask("add_failure", failure)()

        return report

    @contextmanager
    def logged(self, lag: Callable[[], str] | None = None) -> Iterator[None]:
        """One log line every LOG_SECONDS while the block runs; once, what sizes the pools.

        `lag`: of a run that goes on, how far it is behind; while nothing comes there is no line.
        """
        started = time.perf_counter()
        balanced, last = "", Progress()

        def line() -> None:
            nonlocal balanced, last
            now, seconds = self.progress(), time.perf_counter() - started
            if lag and now == last:
                return
            last = now
            if not now.documents:
                log.info("%.0f s: waiting for the first documents and workers", seconds)
                return
            log.info(
                "%.0f s: %s read, %s cut, %d scored, %.0f tokens/s%s",
                seconds,
                counted(now.documents, "document"),
                counted(now.cut.windows, "window"),
                now.scored.windows,
                now.scored.tokens / seconds,
                f"; {lag()}" if lag else "",
            )
            if self._pools and seconds >= BALANCE_SECONDS and not balanced:
                balanced = balance(now.cut, now.scored)
                if balanced:
                    log.info("%s", balanced)

        with every(LOG_SECONDS, line):
            yield


def balance(cut: StageWork, scored: StageWork) -> str:
    """What one actor of each stage does, by which Ray Data proportions the pools; "" if unknown."""
    if not (cut.windows and scored.windows):
        return ""
    cuts, takes = (stage.windows / stage.seconds for stage in (cut, scored))
    length = scored.tokens / scored.windows
    ratio = (
        f"one window actor feeds {cuts / takes:.1f} scoring actors"
        if cuts >= takes
        else f"one scoring actor takes {takes / cuts:.1f} window actors"
    )
    return (
        f"measured: a window actor cuts {cuts * length:,.0f} tokens/s, a scoring actor scores "
        f"{takes:.2f} windows/s ({takes * length:,.0f} tokens/s); {ratio}"
    )
