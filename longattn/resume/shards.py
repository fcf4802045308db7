"""Several runs into one output folder at once: each takes a share of the splits, and asks no other.

`2/8` is the second of eight shares. Which share a split falls to is told by its id alone, so runs on
eight clusters agree without a word, also when the listing has grown between their starts. Each share
has a hold of its own. A run without a share and runs of shares exclude each other.

A document that lies in two shares may be scored by both: its windows are then there twice, and
`select` counts them and uses each once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from longattn.errors import ConfigError, HeldError
from longattn.resume.lock import Hold, dead_owner, holding
from longattn.storage.files import join, list_files, remove
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record


@dataclass(frozen=True, order=True)
class Shard:
    """A share of the splits: `index` of `count`, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`; raises ConfigError."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise ConfigError(f"shard {text!r}: i/n is required, with i from 1 to n, as in 2/8")
        return shard

    @classmethod
    def of(cls, split: str, count: int) -> Shard:
        """The share, of so many, that a split falls to, by its id."""
        return cls(int(split, 16) % count + 1, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, split: str) -> bool:
        """Whether a split is of this share, by its id."""
        return self.of(split, self.count) == self

    def hold(self, output: str) -> str:
        """The URL of its hold."""
        return join(OutputFolder(output).shards, f"{self.index}-of-{self.count}.json")


def shards_held(output: str) -> list[Shard]:
    """The shares whose holds are there, be their runs alive or not."""
    found = []
    for url in list_files(OutputFolder(output).shards, ".json"):
        if match := re.fullmatch(r"(\d+)-of-(\d+)\.json", url.rpartition("/")[2]):
            found.append(Shard(*map(int, match.groups())))
    return sorted(found)


@contextmanager
def held(
    output: str,
    on_lost: Callable[[HeldError], None] | None = None,
    shard: Shard | None = None,
) -> Iterator[Hold]:
    """Have the folder, or a share of it, for oneself inside the block.

    A run of the whole and one of a share exclude each other, as do shares of different counts. Each
    makes its own hold before it looks for others, so that of two at once one sees the other.

    Args:
        on_lost: called in another thread when another run has taken the hold over: this one was not
            seen to live for `EXPIRES` seconds.

    Raises HeldError where another run has what this one wants.
    """
    whole = OutputFolder(output).record("hold")
    with holding(Hold(shard.hold(output) if shard else whole, on_lost)) as hold:
        shares = shards_held(output)
        others = [s.hold(output) for s in shares if not shard or s.count != shard.count]
        for url in [*others, whole] if shard else others:
            dead = dead_owner(url)
            if dead is not None:
                hold.owner["takeovers"] += 1 + dead.get("takeovers", 0)
                with suppress(FileNotFoundError):
                    remove(url)
        yield hold


@contextmanager
def selecting(output: str) -> Iterator[Hold]:
    """Have the selection for oneself, beside runs of other shares; raises HeldError."""
    with holding(Hold(join(OutputFolder(output).shards, "selecting.json"))) as hold:
        yield hold


def note_shards(output: str, shard: Shard) -> None:
    """Leave word that windows of this folder may be labelled by two shares, for `verify`."""
    url = OutputFolder(output).record("shards")
    counts = set((read_record(url) or {}).get("counts", []))
    if shard.count not in counts:
        write_record(url, {"counts": sorted({*counts, shard.count})})


def is_sharded(output: str) -> bool:
    """Whether shares of several runs have been written here."""
    return read_record(OutputFolder(output).record("shards")) is not None
