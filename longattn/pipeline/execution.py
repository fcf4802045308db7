"""What an executor is given and gives: the work that remains, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from longattn.config import Config
from longattn.pipeline.feed import Feed
from longattn.pipeline.monitor import Monitor, Progress
from longattn.pipeline.stopping import Stop
from longattn.pipeline.window_actor import WindowStage
from longattn.resume.claims import DocumentRegistry, RegistryState
from longattn.resume.remaining import Remaining
from longattn.scoring.settings import ScoreSettings

# A block of windows is the unit of retry and of spreading over actors, and a labelled file: bytes of
# text and ids aimed at. About 110 windows of 32K tokens on a GPU, a second or two of its work; on a
# CPU 14, since each takes seconds there. The driver works as long for a small block as for a large
# one (tests/bench/scale.py).
BLOCK_BYTES = {"cuda": 32 << 20, "cpu": 4 << 20}


@dataclass(frozen=True)
class Work:
    """What of a run remains to be done, and how."""

    config: Config
    settings: ScoreSettings
    left: Remaining
    generation: int
    columns: Mapping[str, str]
    """Names and types of the user's columns, of all sources: whatever remains, files have the same."""
    feed: Feed | None = None
    """Of a run that goes on: what comes to the splits that remain."""

    def window_stage(self, block_bytes: int) -> WindowStage:
        config = self.config
        return WindowStage(
            model=config.scorer.model,
            window=config.window.tokens,
            min_distance=config.min_distance,
            samples={source.category: source.sample for source in config.sources},
            output=config.output,
            max_record_bytes=config.max_record_bytes,
            block_bytes=block_bytes,
            generation=self.generation,
            columns=self.columns,
        )

    @property
    def lag(self) -> Callable[[], str] | None:
        """How far a run that goes on is behind, for people."""
        feed = self.feed
        return (lambda: str(feed.lag)) if feed else None

    def halt(self, registry: DocumentRegistry) -> Callable[[], None]:
        """What ends an execution of it once what is in flight is done."""

        def stop() -> None:
            registry.stop()
            if self.feed:
                self.feed.close()

        return stop

    def waits_for_files(self, progress: Progress) -> bool:
        """Whether it stands still because nothing comes."""
        return self.feed is not None and not progress.unscored

    def attended(
        self, monitor: Monitor, registry: DocumentRegistry
    ) -> AbstractContextManager[None]:
        """Fills the feed, where there is one, while the block runs."""
        if self.feed is None:
            return nullcontext()
        return self.feed.attended(self.left.splits, self.columns, monitor, registry)

    @property
    def stored_bytes(self) -> int:
        """Of all splits that are to be read."""
        return sum(split.size for split in self.left.splits)


@dataclass(frozen=True)
class Outcome:
    """What an execution did."""

    progress: Progress
    registry: RegistryState


class Stages(Protocol):
    """The stages of a run, ready to work: on a cluster, or in this process."""

    @property
    def device(self) -> str:
        """What the scorers compute on: "cuda" or "cpu"."""

    def execute(self, work: Work, stop: Stop) -> Outcome:
        """Do the work; raises RunError, or Interrupted after a signal."""


class Executor(Protocol):
    """Opens the stages of a run for a block; where it waits for a GPU, it does `meanwhile` first."""

    def __call__(
        self, config: Config, settings: ScoreSettings, meanwhile: Callable[[], object]
    ) -> AbstractContextManager[Stages]: ...
