"""What a run is (its fingerprint), what of it is done, and what remains.

Everything is under `<output>/_longattn/`:

    run.json         fingerprint and settings of the run that owns the folder
    splits/*.json    markers: what each split gave, put when it has been read to its end
    summary.json     the totals, after the run

A split is done when its marker is there and labelled files hold exactly the windows that it tells
of: as many, and of the same ids, by a sum of their hashes. Labelled files tell both of each split
in their footers, so finding what remains reads footers alone, and ids only when something remains.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from longattn import claims
from longattn.config import Config
from longattn.records import Split
from longattn.storage import (
    content_name,
    file_metadata,
    join,
    list_files,
    open_parquet,
    read_json,
    remove,
    write_json,
    write_table,
)

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


@dataclass
class IdSet:
    """How many ids, and the sum of their 128-bit hashes: equal for equal sets in any order.

    A lost id beside one that is there twice leaves the number as it was, but not the sum.
    """

    count: int = 0
    total: int = 0

    def add(self, data_id: str) -> None:
        self.count += 1
        self.total = (self.total + int.from_bytes(claims.key(data_id))) % 2**128

    def merge(self, count: int, total: str) -> None:
        self.count += count
        self.total = (self.total + int(total, 16)) % 2**128

    @property
    def hex(self) -> str:
        return f"{self.total:032x}"


@dataclass(frozen=True)
class Marker:
    """What one split gave, as put by the actor that read it to its end."""

    split: str
    path: str
    category: str
    windows: int  # labelled under this split; not those under an earlier version of its file
    ids: str  # IdSet.hex of them
    generation: int  # of the run; the marker of a later run replaces an earlier one
    waits_for: list[str]  # splits that cut documents which this one holds too
    counts: dict[str, Any] = field(repr=False)


def marker(
    split: Split, counts: Counts, ids: IdSet, generation: int, waits_for: Iterable[str] = ()
) -> Marker:
    values = {**vars(counts), "bad": dict(counts.bad)}
    return Marker(
        split.id, split.path, split.category, ids.count, ids.hex, generation, sorted(waits_for),
        values,
    )  # fmt: skip


def write_markers(output: str, markers: Sequence[Marker]) -> None:
    """Put the markers of one task as one file, named after its splits."""
    name = blake2b("".join(m.split for m in markers).encode(), digest_size=16).hexdigest()
    write_json(join(output, FOLDER, "splits", f"{name}.json"), [asdict(m) for m in markers])


def read_markers(output: str) -> dict[str, Marker]:
    """The latest marker of each split, by its id."""
    files = list_files(join(output, FOLDER, "splits"), ".json")
    found = (Marker(**value) for values in parallel(read_json, files) for value in values or [])
    return {m.split: m for m in sorted(found, key=lambda m: m.generation)}


def pack_task(splits: Sequence[Split]) -> str:
    """Splits to read, as one string."""
    return json.dumps([asdict(split) for split in splits])


def unpack_task(task: str) -> list[Split]:
    return [Split(**split) for split in json.loads(task)]


def runs(splits: Sequence[str], paths: Sequence[str], ids: Sequence[str]) -> list[list[Any]]:
    """Rows by split, in row order: [split, path, rows, IdSet.hex of the rows]."""
    found: list[tuple[str, str, IdSet]] = []
    for split, path, data_id in zip(splits, paths, ids, strict=True):
        if not split:
            continue
        if not found or found[-1][0] != split:
            found.append((split, path, IdSet()))
        found[-1][2].add(data_id)
    return [[split, path, given.count, given.hex] for split, path, given in found]


@dataclass(frozen=True)
class Labelled:
    """What the footer of a labelled file says."""

    url: str
    rows: int
    fingerprint: str
    runs: list[list[Any]]  # as `runs` gives them


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
    labelled: dict[str, str]  # data_ids under splits that are not done -> split
    documents: np.ndarray  # of splits that are done, as `claims.Claims` wants them
    finished: int  # splits done
    stale: list[str]  # paths whose earlier versions gave windows, and which are gone or changed now
    twice: dict[str, list[int]]  # labelled file -> rows that another file, or row, has too
    generation: int  # for the markers of the run that does it


def remaining(output: str, splits: Sequence[Split]) -> Remaining:
    """Compare the listing with markers and labelled files.

    Only footers are read while all splits are done. Else all ids are read, a file at a time; kept
    are those of unfinished splits, and 32 bytes for each window of the others.
    """
    markers = read_markers(output)
    files = labelled_files(output)
    under: dict[str, IdSet] = defaultdict(IdSet)
    paths: dict[str, str] = {m.split: m.path for m in markers.values()}
    for file in files:
        for split, path, rows, ids in file.runs:
            under[split].merge(rows, ids)
            paths[split] = path
    whole = {
        m.split for m in markers.values() if (under[m.split].count, under[m.split].hex) == (m.windows, m.ids)
    }  # fmt: skip
    current = {split.id for split in splits}
    # A document left to another split is lost if that one is gone and did not label it.
    done = {name for name in whole if all(w in whole | current for w in markers[name].waits_for)}
    todo = [split for split in splits if split.id not in done]
    labelled: dict[str, str] = {}
    twice: dict[str, list[int]] = {}
    documents = np.empty(0, "S16")
    if todo:
        labelled, documents, twice = _known(files, done & current)
    return Remaining(
        splits=todo,
        labelled=labelled,
        documents=documents,
        finished=len(splits) - len(todo),
        stale=sorted({path for split, path in paths.items() if split not in current}),
        twice=twice,
        generation=1 + max((m.generation for m in markers.values()), default=0),
    )


def _known(
    files: Sequence[Labelled], done: set[str]
) -> tuple[dict[str, str], np.ndarray, dict[str, list[int]]]:
    """Ids under unfinished splits, documents of done ones, and rows that are there twice."""
    windows, documents = set[bytes](), set[bytes]()
    others: list[tuple[str, int, str, str]] = []  # file, row, data_id, split
    for start in range(0, len(files), READERS):
        some = files[start : start + READERS]
        for file, ids in zip(some, parallel(_ids, some), strict=True):
            row = 0
            for split, _, rows, _ in file.runs:
                for data_id in ids[row : row + rows]:
                    if split in done:
                        windows.add(claims.key(data_id))
                        documents.add(claims.key(data_id.rpartition("-")[0]))
                    else:
                        others.append((file.url, row, data_id, split))
                    row += 1
    labelled: dict[str, str] = {}
    twice: dict[str, list[int]] = defaultdict(list)
    for url, row, data_id, split in others:
        if data_id in labelled or claims.key(data_id) in windows:
            twice[url].append(row)
        else:
            labelled[data_id] = split
    return labelled, np.sort(np.array(list(documents), "S16")), dict(twice)


def drop_repeats(twice: Mapping[str, Sequence[int]]) -> None:
    """Write labelled files again without rows that are elsewhere too; then remove the old ones."""
    for url, rows in twice.items():
        with open_parquet(url) as parquet:
            metadata, table = file_metadata(parquet), parquet.read()
        splits = [run[0] for run in metadata["runs"] for _ in range(run[2])]
        keep = np.ones(len(table), bool)
        keep[list(rows)] = False
        table = table.filter(pa.array(keep)).replace_schema_metadata()
        splits = [split for split, kept in zip(splits, keep, strict=True) if kept]
        if len(table):
            sources, ids = table["source"].to_pylist(), table["data_id"].to_pylist()
            metadata["runs"] = runs(splits, sources, ids)
            folder = url.rpartition("/")[0]
            write_table(join(folder, content_name(table["data_id"])), table, metadata)
        remove(url)


def _ids(file: Labelled) -> list[str]:
    with open_parquet(file.url) as parquet:
        return parquet.read(columns=["data_id"])["data_id"].to_pylist()
