"""Which split cuts which document, while a run goes on.

A document that is in several splits of a category is cut by the first that asks, and by that one
again when its task is tried again. A registry also counts the processes that die at a document, and
passes on the word to stop. On a cluster several registries, actors on the driver's node, share the
documents by their keys; in one process there is one.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from longattn.windows.ids import hash_key

STRIKES = 3  # processes that may die at one document
DEATHS = 12  # and at one split, be it while they read it: fewer than Ray tries a task again


Begin = Literal["read", "stop", "deadly"]


class DeadlyDocument(ValueError):  # noqa: N818
    """Process after process died at this document."""


class Stopping(Exception):  # noqa: N818
    """The run was told to stop: nothing new is begun."""


class Caller(Protocol):
    """An object that is called from other threads or processes: here, or an actor of Ray."""

    def ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Start a call; calling what this returns waits for its answer."""


class InThisProcess:
    """A `Caller` of an object here, one call at a time."""

    def __init__(self, target: Any) -> None:
        self._target, self._lock = target, threading.Lock()

    def ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        with self._lock:
            answer = getattr(self._target, method)(*arguments)
        return lambda: answer


@dataclass(frozen=True)
class RegistryState:
    """What the splits of a run have come to."""

    failed: list[str]
    """Why each split that cannot be read to its end in this run cannot."""
    retries: int
    restarts: int
    stopping: bool
    at: list[str]
    """Documents that are being tokenized."""


@dataclass(frozen=True)
class Answer:
    """What a split is to do with a document."""

    verdict: Literal["cut", "duplicate", "deadly", "stop"]
    owner: str = ""
    """Of a duplicate: the split of this run that cuts it; empty when all of it is labelled."""
    labelled: Mapping[int, str] = field(default_factory=dict)
    """Windows that earlier runs labelled: index -> split they are under."""


class Registry:
    """The documents whose key falls to it: who cuts them, and who died at them."""

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

    def begin_all(self, splits: Sequence[str], attempt: str) -> list[Begin]:
        """`begin` of several splits in one call: of all if none was tried before, else of the first.

        A process that dies among several is so no death of one of them; the next try begins each by
        itself.
        """
        if any(self.at.get(split, (attempt,))[0] != attempt for split in splits):
            return [self.begin(splits[0], attempt)]
        verdicts = [self.begin(split, attempt) for split in splits]
        self.reading[attempt] = splits[0] if len(splits) == 1 else ""
        return verdicts

    def claim(self, split: str, attempt: str, document: str) -> Answer:
        if self.stopping:
            return Answer("stop")
        name = hash_key(document)
        if self.strikes[name] >= STRIKES:
            return Answer("deadly", labelled=self.labelled.get(name, {}))
        place = np.searchsorted(self.finished, np.bytes_(name))
        if (
            self.finished[place : place + 1].tobytes() == name
        ):  # an item alone loses a last zero byte
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

    def state(self) -> RegistryState:
        at = [name for _, document, name in self.at.values() if document]
        return RegistryState(
            list(self.failed.values()), self.retries, self.restarts, self.stopping, at
        )


def shared_registries(
    labelled: Mapping[str, str], finished: np.ndarray, parts: int = 1
) -> list[Registry]:
    """Registries that share the documents of a run by their keys.

    Args:
        labelled: data_ids of windows under splits that are not finished -> split.
        finished: sorted `hash_key`s (dtype S16) of the documents of finished splits: 16 bytes each.
        parts: how many share them.
    """
    ids: list[dict[str, str]] = [{} for _ in range(parts)]
    for data_id, split in labelled.items():
        ids[hash_key(data_id.rpartition("-")[0])[0] % parts][data_id] = split
    shares = finished.view(np.uint8).reshape(-1, 16)[:, 0] % parts
    return [Registry(part, finished[shares == i]) for i, part in enumerate(ids)]


class DocumentRegistry:
    """All registries of a run as one, for the driver and its actors."""

    def __init__(self, parts: Sequence[Caller]) -> None:
        self._parts = parts

    def _of(self, document: str) -> Caller:
        return self._parts[hash_key(document)[0] % len(self._parts)]

    def begin(self, split: str, attempt: str) -> Begin:
        asked = [part.ask("begin", split, attempt) for part in self._parts]
        verdicts: list[Begin] = [answer() for answer in asked]
        return "stop" if "stop" in verdicts else verdicts[0]

    def begin_all(self, splits: Sequence[str], attempt: str) -> list[Begin]:
        """What may be done with the first of some splits, be it one or all of them."""
        asked = [part.ask("begin_all", splits, attempt) for part in self._parts]
        answers: list[list[Begin]] = [answer() for answer in asked]
        return ["stop" if "stop" in told else told[0] for told in zip(*answers, strict=False)]

    def reader(self, split: str, attempt: str) -> SplitReader:
        return SplitReader(self, split, attempt)

    def claim(self, split: str, attempt: str, document: str) -> Answer:
        answer: Answer = self._of(document).ask("claim", split, attempt, document)()
        return answer

    def passed(self, split: str, attempt: str, document: str) -> None:
        self._of(document).ask("passed", split, attempt, document)

    def fail(self, split: str, why: str) -> None:
        self._parts[0].ask("fail", split, why)()

    def restarted(self) -> None:
        self._parts[0].ask("restarted")

    def stop(self) -> None:
        for part in self._parts:
            part.ask("stop")

    def state(self) -> RegistryState:
        asked = [part.ask("state") for part in self._parts]
        states: list[RegistryState] = [answer() for answer in asked]
        return replace(states[0], at=[name for state in states for name in state.at])


class SplitReader:
    """What one try at one split asks and learns.

    Calling it with a category and a document id says whether to cut; raises DeadlyDocument or
    Stopping.
    """

    def __init__(self, registry: DocumentRegistry | Registry, split: str, attempt: str) -> None:
        self.registry, self.split, self.attempt = registry, split, attempt
        self.document = ""  # the one claimed last, with its category
        self.cutting = False  # it, so that `passed` has something to tell
        self.labelled: Mapping[int, str] = {}  # of that one
        self.kept: set[str] = set()  # data_ids under this split, of documents that it does not cut
        self.waits_for: set[str] = set()  # splits that cut documents which this one holds too

    def __call__(self, category: str, document: str) -> bool:
        self.document = f"{category}-{document}"
        answer = self.registry.claim(self.split, self.attempt, self.document)
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
        """Called after each record; a call to the registry for each short one would keep it busier
        than all else."""
        if self.cutting:
            self.cutting = False
            self.registry.passed(self.split, self.attempt, self.document)


def was_restarted() -> bool:
    """Whether this is an actor that Ray started again after its process died."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    with warnings.catch_warnings():  # of Ray about itself, in every worker's output
        warnings.simplefilter("ignore")
        context = ray.get_runtime_context()
        return bool(context.get_actor_id() and context.was_current_actor_reconstructed)
