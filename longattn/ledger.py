"""What a run is (its fingerprint), what of it is done, and what remains.

Everything is under `<output>/_longattn/`:

    run.json         fingerprint and settings of the run that owns the folder
    splits/*.json    markers: what each split gave, put when it has been read to its end
    summary.json     the totals, after the run

A split is done when its marker is there and labelled files hold as many of its windows as the
marker says. Labelled files tell in their footers how many windows of which split they hold, so
finding what remains reads footers alone, and ids only of the files of unfinished splits.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from longattn.config import Config
from longattn.records import Split
from longattn.storage import file_metadata, join, list_files, open_parquet, read_json, write_json

if TYPE_CHECKING:
    from longattn.windows import Counts

FOLDER = "_longattn"
READERS = 16  # threads for small reads; an object store answers many at once

A = TypeVar("A")
B = TypeVar("B")


class LedgerError(ValueError):
    """An output folder that this run may not write to, told in one line."""


def parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """`function` of each item, in order, in threads."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(function, items))


def fingerprint(parts: dict[str, Any]) -> str:
    """Hex of all that decides a score: weights, tokenizer, window, min_distance, rope, BOS, ..."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def claimed(output: str) -> dict[str, Any]:
    """What `run.json` says; raises LedgerError where there is none."""
    there = read_json(join(output, FOLDER, "run.json"))
    if there is None:
        raise LedgerError(f"{output}: no run has written here")
    return there


def claim(output: str, parts: dict[str, Any], config: Config | None) -> str:
    """Make the folder this run's, or check that it already is; returns the fingerprint.

    Raises LedgerError naming both values where the folder holds scores of other settings.
    """
    mine = fingerprint(parts)
    url = join(output, FOLDER, "run.json")
    there = read_json(url)
    if there is None:
        settings = config.to_yaml() if config else None
        write_json(url, {"fingerprint": mine, "parts": parts, "config": settings})
        return mine
    if there["fingerprint"] == mine:
        return mine
    old = there["parts"]
    other = [k for k in sorted({*old, *parts}) if old.get(k) != parts.get(k)]
    changes = ", ".join(f"{k}: there {old.get(k)!r}, here {parts.get(k)!r}" for k in other)
    raise LedgerError(
        f"{output} holds scores of other settings ({changes}); "
        "choose another output, or the settings of the folder"
    )


@dataclass(frozen=True)
class Marker:
    """What one split gave, as put by the actor that read it to its end."""

    split: str
    path: str
    category: str
    windows: int
    counts: dict[str, Any] = field(repr=False)


def marker(split: Split, counts: Counts) -> Marker:
    values = {**vars(counts), "bad": dict(counts.bad)}
    return Marker(split.id, split.path, split.category, counts.windows, values)


def write_markers(output: str, markers: Sequence[Marker]) -> None:
    """Put the markers of one task as one file, named after its splits."""
    name = blake2b("".join(m.split for m in markers).encode(), digest_size=16).hexdigest()
    write_json(join(output, FOLDER, "splits", f"{name}.json"), [asdict(m) for m in markers])


def read_markers(output: str) -> dict[str, Marker]:
    """All markers by split id."""
    files = list_files(join(output, FOLDER, "splits"), ".json")
    found = (Marker(**value) for values in parallel(read_json, files) for value in values or [])
    return {m.split: m for m in found}


def pack_task(splits: Sequence[Split], done: Iterable[str]) -> str:
    """Splits to read and the data_ids among them that are already labelled, as one string."""
    return json.dumps([[asdict(split) for split in splits], sorted(done)])


def unpack_task(task: str) -> tuple[list[Split], set[str]]:
    splits, done = json.loads(task)
    return [Split(**split) for split in splits], set(done)


@dataclass(frozen=True)
class Labelled:
    """What the footer of a labelled file says."""

    url: str
    rows: int
    fingerprint: str
    runs: list[list[Any]]  # in row order: [split id, path of its corpus file, rows]


def read_footer(url: str) -> Labelled:
    """Raises ValueError naming a file that is no labelled Parquet file."""
    try:
        with open_parquet(url) as parquet:
            metadata = file_metadata(parquet)
            return Labelled(
                url,
                parquet.metadata.num_rows,
                metadata.get("fingerprint", ""),
                metadata.get("runs", []),
            )
    except (OSError, ValueError) as error:
        raise ValueError(f"{url}: no readable labelled file: {error}") from error


def labelled_files(output: str) -> list[Labelled]:
    return parallel(read_footer, list_files(join(output, "labelled"), ".parquet"))


@dataclass(frozen=True)
class Remaining:
    """What a run has still to do."""

    splits: list[Split]
    done: dict[str, set[str]]  # split id, or path where the split is stale -> data_ids labelled
    finished: int  # splits done
    stale: list[str]  # paths whose earlier versions gave windows, and which are gone or changed now


def remaining(output: str, splits: Sequence[Split]) -> Remaining:
    """Compare the listing with markers and labelled files.

    Only footers are read, and the ids of those files that hold windows of unfinished paths.
    """
    markers = read_markers(output)
    files = labelled_files(output)
    labelled: Counter[str] = Counter()
    paths: dict[str, str] = {m.split: m.path for m in markers.values()}
    for file in files:
        for split, path, rows in file.runs:
            labelled[split] += rows
            paths[split] = path
    todo = [
        split
        for split in splits
        if split.id not in markers or labelled[split.id] < markers[split.id].windows
    ]
    current = {split.id for split in splits}
    unfinished = {split.path for split in todo}
    needed = [f for f in files if any(path in unfinished for _, path, _ in f.runs)]
    done: dict[str, set[str]] = defaultdict(set)
    for file, ids in zip(needed, parallel(_ids, needed), strict=True):
        start = 0
        for split, path, rows in file.runs:
            done[split if split in current else path].update(ids[start : start + rows])
            start += rows
    stale = sorted({path for split, path in paths.items() if split not in current})
    return Remaining(todo, dict(done), len(splits) - len(todo), stale)


def _ids(file: Labelled) -> list[str]:
    with open_parquet(file.url) as parquet:
        return parquet.read(columns=["data_id"])["data_id"].to_pylist()
