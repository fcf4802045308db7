"""Which split cuts which document, while a run goes on: actors on the driver's node know.

A document that is in several splits of a category is cut by the first that asks, and by that one
again when its task is tried again. The actors also see a document at which process after process
dies, and they pass on the word to stop. Each knows the documents whose key falls to it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longattn.windows.ids import hash_key

STRIKES = 3  # processes that may die at one document
DEATHS = 12  # and at one split, be it while they read it: fewer than Ray tries a task again


Begin = Literal["read", "stop", "deadly"]


class DeadlyDocument(ValueError):  # noqa: N818
    """Process after process died at this document."""


class Stopping(Exception):  # noqa: N818
    """The run was told to stop: nothing new is begun."""


def _share(name: bytes, actors: int) -> int:
    """Which of the actors knows a document of this key."""
    return name[0] % actors


@dataclass(frozen=True)
class Answer:
    """What a split is to do with a document."""

    verdict: Literal["cut", "duplicate", "deadly", "stop"]
    owner: str = ""
    """Of a duplicate: the split of this run that cuts it; empty when all of it is labelled."""
    labelled: Mapping[int, str] = field(default_factory=dict)
    """Windows that earlier runs labelled: index -> split they are under."""


class _Registry:
    """See `Claims`; plain, so that it can be used without a cluster."""

    def __init__(self, labelled: Mapping[str, str], finished: np.ndarray) -> None:
        self.finished = finished
        self.labelled: dict[bytes, dict[int, str]] = {}
        self.owners: dict[bytes, str] = {}
        for data_id, split in labelled.items():
            document, _, index = data_id.rpartition("-")
            self.labelled.setdefault(hash_key(document), {})[int(index)] = split
        self.at: dict[str, tuple[str, bytes, str]] = {}  # split -> attempt, document, its name
        self.reading: dict[str, str] = {}  # attempt -> the split it came to last
        self.deaths: Counter[str] = Counter()
        self.strikes: Counter[bytes] = Counter()
        self.failed: dict[str, str] = {}
        self.retries = self.restarts = 0
        self.stopping = False

    def begin(self, split: str, attempt: str) -> Begin:
        """A task comes to a split; returns what it may do. Notes at what an earlier try died."""
        before, died_at, _ = self.at.get(split, (attempt, b"", ""))
        if before != attempt:
            self.retries += 1
            self.deaths[split] += self.reading[before] == split
            if died_at:
                self.strikes[died_at] += 1
        self.at[split], self.reading[attempt] = (attempt, b"", ""), split
        if self.stopping:
            return "stop"
        return "deadly" if self.deaths[split] >= DEATHS else "read"

    def claim(self, split: str, attempt: str, document: str) -> Answer:
        if self.stopping:
            return Answer("stop")
        name = hash_key(document)
        if self.strikes[name] >= STRIKES:
            return Answer("deadly", labelled=self.labelled.get(name, {}))
        place = np.searchsorted(self.finished, np.bytes_(name))
        if place < len(self.finished) and self.finished[place] == np.bytes_(name):
            return Answer("duplicate", labelled=self.labelled.get(name, {}))
        owner = self.owners.setdefault(name, split)
        if owner != split:
            return Answer("duplicate", owner, self.labelled.get(name, {}))
        self.at[split] = (attempt, name, document)
        return Answer("cut", labelled=self.labelled.get(name, {}))

    def passed(self, split: str, attempt: str, document: str) -> None:
        """The split's process outlived the document, which it had claimed."""
        if self.at[split] == (attempt, hash_key(document), document):
            self.at[split] = (attempt, b"", "")

    def fail(self, split: str, why: str) -> None:
        """The split cannot be read to its end in this run."""
        self.failed[split] = why

    def restarted(self) -> None:
        self.restarts += 1

    def stop(self) -> None:
        self.stopping = True

    def state(self) -> dict[str, Any]:
        return {
            "failed": list(self.failed.values()),
            "retries": self.retries,
            "restarts": self.restarts,
            "stopping": self.stopping,
            "at": [name for _, document, name in self.at.values() if document],
        }


class DocumentRegistry:
    """A handle on the claims of a run, for the driver and its actors.

    Args:
        labelled: data_ids of windows under splits that are not finished -> split.
        finished: sorted `key`s (dtype S16) of the documents of finished splits: 16 bytes each.
        actors: how many share the documents, by their keys.
    """

    def __init__(self, labelled: Mapping[str, str], finished: np.ndarray, actors: int = 1) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(_Registry)
        parts: list[dict[str, str]] = [{} for _ in range(actors)]
        for data_id, split in labelled.items():
            parts[_share(hash_key(data_id.rpartition("-")[0]), actors)][data_id] = split
        shares = finished.view(np.uint8).reshape(-1, 16)[:, 0] % actors
        self._actors = [
            actor.options(num_cpus=0, scheduling_strategy=here).remote(part, finished[shares == i])
            for i, part in enumerate(parts)
        ]

    def _of(self, document: str) -> Any:
        return self._actors[_share(hash_key(document), len(self._actors))]

    def begin(self, split: str, attempt: str) -> Begin:
        told = self._get([actor.begin.remote(split, attempt) for actor in self._actors])
        return "stop" if "stop" in told else told[0]

    def claimer(self, split: str, attempt: str) -> SplitReader:
        return SplitReader(self, split, attempt)

    def claim(self, split: str, attempt: str, document: str) -> Answer:
        return self._get(self._of(document).claim.remote(split, attempt, document))

    def passed(self, split: str, attempt: str, document: str) -> None:
        self._of(document).passed.remote(split, attempt, document)

    def fail(self, split: str, why: str) -> None:
        self._get(self._actors[0].fail.remote(split, why))

    def restarted(self) -> None:
        self._actors[0].restarted.remote()

    def stop(self) -> None:
        for actor in self._actors:
            actor.stop.remote()

    def state(self) -> dict[str, Any]:
        states = self._get([actor.state.remote() for actor in self._actors])
        return {**states[0], "at": [name for state in states for name in state["at"]]}

    @staticmethod
    def _get(reference: Any) -> Any:
        return ray.get(reference)


class SplitReader:
    """What one try at one split asks and learns.

    Calling it with a category and a document id says whether to cut; raises DeadlyDocument or
    Stopping.
    """

    def __init__(self, claims: DocumentRegistry, split: str, attempt: str) -> None:
        self.claims, self.split, self.attempt = claims, split, attempt
        self.document = ""  # the one claimed last, with its category
        self.cutting = False  # it, so that `passed` has something to tell
        self.labelled: Mapping[int, str] = {}  # of that one
        self.kept: set[str] = set()  # data_ids under this split, of documents that it does not cut
        self.waits_for: set[str] = set()  # splits that cut documents which this one holds too

    def __call__(self, category: str, document: str) -> bool:
        self.document = f"{category}-{document}"
        answer = self.claims.claim(self.split, self.attempt, self.document)
        if answer.verdict == "stop":
            raise Stopping
        self.labelled = answer.labelled
        if answer.verdict != "cut":
            self.keep()
        if answer.verdict == "deadly":
            raise DeadlyDocument(
                f"document {document}: {STRIKES} processes died while they tokenized it"
            )
        if answer.owner:
            self.waits_for.add(answer.owner)
        self.cutting = answer.verdict == "cut"
        return self.cutting

    def keep(self) -> None:
        """The document claimed last is not cut; what is labelled of it stays."""
        mine = (index for index, split in self.labelled.items() if split == self.split)
        self.kept.update(f"{self.document}-{index}" for index in mine)

    def passed(self) -> None:
        """After each record; a call for each short one would keep the claims busier than all else."""
        if self.cutting:
            self.cutting = False
            self.claims.passed(self.split, self.attempt, self.document)


def was_restarted() -> bool:
    """Whether Ray started this actor again after its process died."""
    with warnings.catch_warnings():  # of Ray about itself, in every worker's output
        warnings.simplefilter("ignore")
        return ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed
