"""The stages of a run in the calling process: for a laptop, a notebook, breakpoints and tests.

The same stages as on a cluster, over the same tasks in the same blocks, so that the files are the
same byte for byte. One thread cuts the next block of windows while this one is scored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pyarrow as pa

from longattn.config import Config
from longattn.corpus.records import pack_task
from longattn.corpus.sources import group_splits
from longattn.errors import HeldError, Interrupted, RunError
from longattn.pipeline.display import watched
from longattn.pipeline.execution import BLOCK_BYTES, Outcome, Work
from longattn.pipeline.failures import failures_reported, reason_of
from longattn.pipeline.labelled_sink import write_labelled_windows
from longattn.pipeline.monitor import Monitor, RunMonitor
from longattn.pipeline.score_actor import ScoreStage, ScoreWindows
from longattn.pipeline.stopping import Sign, Stop
from longattn.pipeline.window_actor import SplitWindows
from longattn.resume.claims import DocumentRegistry, InThisProcess, shared_registries
from longattn.scoring.settings import ScoreSettings
from longattn.text import counted, without_secrets

log = logging.getLogger("longattn")


@contextmanager
def in_process(
    config: Config, settings: ScoreSettings, meanwhile: Callable[[], object]
) -> Iterator[LocalStages]:
    """The stages of a run here, for a block: on a GPU if there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield LocalStages(config, device)


class LocalStages:
    """The stages of a run in this process."""

    def __init__(self, config: Config, device: str) -> None:
        self.config, self.device = config, device

    def execute(self, work: Work, stop: Stop) -> Outcome:
        """Read, cut, score and write block after block; raises RunError, or Interrupted."""
        left = work.left
        registry = DocumentRegistry(
            [InThisProcess(part) for part in shared_registries(left.labelled, left.documents)]
        )
        of_run = RunMonitor(self.config.max_bad_fraction, left.seen)
        monitor = Monitor(InThisProcess(of_run), pools=False)
        log.info(
            "%s to read (%d done); in this process, scoring on %s",
            counted(len(left.splits), "split"),
            left.finished,
            self.device,
        )

        def sign() -> Sign:
            progress, state = monitor.progress(), registry.state()
            if work.waits_for_files(progress):
                return Sign(object())
            waits = f"its scorer, or documents {', '.join(state.at)}"
            return Sign((progress, state), waits, progress.computing)

        try:
            with (
                watched(monitor, work.stored_bytes, self.config.output, work.lag),
                stop.draining(work.halt(registry), sign),
                work.attended(monitor, registry),
            ):
                self._stream(work, registry, monitor)
        except (RunError, HeldError, Interrupted):
            raise
        except Exception as error:
            failures = monitor.progress().failures
            raise RunError(str(failures[0]) if failures else reason_of(error)) from error
        return Outcome(monitor.progress(), registry.state())

    def _stream(self, work: Work, registry: DocumentRegistry, monitor: Monitor) -> None:
        blocks = self._blocks(work, registry, monitor)
        stage = ScoreStage(work.settings, self.device, batch=self.config.scorer.batch)
        report, failed = monitor.write_report(), monitor.failure_report()
        output = without_secrets(self.config.output)
        with ThreadPoolExecutor(1) as ahead, ExitStack() as ending:
            if work.feed:  # the thread waits for it
                ending.callback(work.feed.close)
            following = ahead.submit(next, blocks, None)
            scorer = ScoreWindows(stage, monitor.score_report(), failed, monitor.pulse_report())
            while (block := following.result()) is not None:
                following = ahead.submit(next, blocks, None)
                scored = scorer(block)
                with failures_reported(failed, "writing", lambda: output):
                    write_labelled_windows(self.config.output, [scored], report)

    def _blocks(
        self, work: Work, registry: DocumentRegistry, monitor: Monitor
    ) -> Iterator[pa.Table]:
        windows = SplitWindows(
            work.window_stage(BLOCK_BYTES[self.device]),
            registry,
            monitor.window_report(),
            monitor.failure_report(),
        )
        for splits in work.feed or group_splits(work.left.splits):
            yield from windows({"task": [pack_task(splits)]})
