"""Files as they come: the sources listed again and again, and which of their files stand still.

A file is taken once two listings, one after the other, told the same size and the same mark of it
(ETag, hash or time): one that is still being written differs. A file that is taken and then changes
is a new one, as it is for a run that is started again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from longattn.corpus.parts import cut_files
from longattn.corpus.records import Split
from longattn.corpus.sources import SPLIT_BYTES, Source, file_key, list_files
from longattn.text import first_line, without_secrets

log = logging.getLogger("longattn")

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Arrivals:
    """What one look at the sources brought."""

    taken: list[Split] = field(default_factory=list)
    """Files that stand still since the look before, large ones cut, in order of category and path."""
    changed: list[str] = field(default_factory=list)
    """Files that were taken and are now others: each is taken again once it stands still."""
    gone: list[str] = field(default_factory=list)
    """Files that were taken and are no longer there."""


class SourceWatch:
    """Some sources, watched; `look` lists them once.

    Args:
        sources: where to look.
        split_bytes: as `list_sources` takes it.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        *,
        split_bytes: int = SPLIT_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.sources, self.split_bytes, self.clock = list(sources), split_bytes, clock
        self.newest: float | None = None
        """When the newest file was seen first."""
        self.looks = 0
        self.waiting_since: float | None = None
        """When the oldest file was seen first that is not taken yet; None where all are."""
        self._seen: dict[Key, Split] = {}  # by the last look
        self._since: dict[Key, float] = {}  # when each was seen first, as it is now
        self._taken: dict[Key, tuple[str, list[Split]]] = {}  # version of the file, its parts
        self._of_source: dict[int, list[Split]] = {}  # what each source held when it last answered
        self._problems: dict[int, str] = {}  # why a source gave no files, for people

    @property
    def splits(self) -> list[Split]:
        """Of all files that are taken and still what they were, in order of category and path."""
        return [part for key in sorted(self._taken) for part in self._taken[key][1]]

    @property
    def paths(self) -> list[str]:
        """Of all files that are there, taken or not, without secrets."""
        return [split.source for split in self._seen.values()]

    def since(self, key: Key, otherwise: float) -> float:
        """When a file that is there was seen first, as it is now."""
        return self._since.get(key, otherwise)

    def look(self) -> Arrivals:
        """List the sources, and take what stands still.

        A source that fails to answer, or matches nothing, is reported once and keeps, or loses, its
        files; it is asked again at the next look.
        """
        now, before = self.clock(), self._seen
        there, told = self._listed()
        self.looks += 1
        same = {key for key, of in there.items() if key in before and _same(of, before[key])}
        self._since = {key: self._since[key] if key in same else now for key in there}
        if len(same) < len(there):
            self.newest = now
        gone = [key for key in self._taken if key not in there]
        changed = [
            key
            for key, (version, _) in self._taken.items()
            if key in there and there[key].version != version
        ]
        for key in (*changed, *gone):
            del self._taken[key]
        self._seen = there
        taken = []
        for key in sorted(same & told - self._taken.keys()):
            parts = self._cut(there[key])
            if parts:
                self._taken[key] = there[key].version, parts
                taken += parts
        waiting = (self._since[key] for key in there.keys() - self._taken.keys())
        self.waiting_since = min(waiting, default=None)
        named = [[without_secrets(key[1]) for key in keys] for keys in (changed, gone)]
        return Arrivals(taken, *named)

    def _listed(self) -> tuple[dict[Key, Split], set[Key]]:
        """The files there are, and which of them are told of by this listing, not by one before."""
        files: dict[Key, Split] = {}
        told: set[Key] = set()
        for number, source in enumerate(self.sources):
            problem = ""
            try:
                self._of_source[number] = list_files(source, may_be_missing=True)[0]
                if not self._of_source[number]:
                    problem = "no file is there"
            except (OSError, ValueError) as error:
                problem = first_line(error)
            found = self._of_source.get(number, ())
            if not problem:
                told.update(map(file_key, found))
            self._report(number, source, problem)
            for file in found:
                files.setdefault(file_key(file), file)
        return files, told

    def _report(self, number: int, source: Source, problem: str) -> None:
        before, self._problems[number] = self._problems.get(number, ""), problem
        if problem and problem != before:
            log.warning("%s: %s; it is listed again", without_secrets(source.path), problem)
        elif before and not problem:
            log.info("%s: there again", without_secrets(source.path))

    def _cut(self, file: Split) -> list[Split]:
        """The parts of a file; none where it cannot be had now: the next look tries again."""
        try:
            return cut_files([file], self.split_bytes)
        except (OSError, ValueError) as error:
            log.warning("%s: taken later: %s", file.source, first_line(error))
            return []


def _same(one: Split, other: Split) -> bool:
    """Whether a file is what it was: its size, and the mark that the listing told."""
    return one.version == other.version and one.marks == other.marks
