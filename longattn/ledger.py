"""What a run is (its fingerprint), what of it is done, and what remains.

Everything is under `<output>/_longattn/`:

    run.json         fingerprint and settings of the run that owns the folder
    samples.json     which share of its windows each category was cut to
    splits/*.json    markers: what each split gave, put when it has been read to its end
    summary.json     the totals, after the run

A split is done when its marker is there and labelled files hold exactly the windows that it tells
of: as many, and of the same ids, by a sum of their hashes. Labelled files tell both of each split
in their footers, so finding what remains reads footers, and ids only where they are of splits that
are not done.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from longattn import claims
from longattn.config import Config, Sample
from longattn.records import Reason, Split
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


def begun(output: str) -> dict[str, Any] | None:
    """What `run.json` says; None where no run has written yet."""
    there: dict[str, Any] | None = read_json(join(output, FOLDER, "run.json"))
    return there


def claimed(output: str) -> dict[str, Any]:
    """What `run.json` says; raises LedgerError where there is none."""
    there = begun(output)
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


def grown_samples(output: str, samples: Mapping[str, Sample | None]) -> set[str]:
    """Categories of which this run takes a larger share than earlier ones: to be read again.

    With the same seed the windows of a smaller share are all in a larger one. Raises LedgerError on
    any other change, which would mix two samples.
    """
    there = read_json(join(output, FOLDER, "samples.json")) or {}
    grown = set()
    for category, sample in samples.items():
        old, new = there.get(category, _share(sample)), _share(sample)
        if old == new:
            continue
        if new["fraction"] < old["fraction"] or (
            new["fraction"] < 1 and new["seed"] != old["seed"]
        ):
            raise LedgerError(
                f"{output} holds category {category!r} with sample {old}, here {new}: only a larger "
                "fraction of the same seed may follow; choose another output"
            )
        grown.add(category)
    return grown


def note_samples(output: str, samples: Mapping[str, Sample | None], grown: set[str]) -> None:
    """Tell later runs which samples the folder holds; void the markers of `grown` categories first."""
    url = join(output, FOLDER, "samples.json")
    there = read_json(url) or {}
    now = {**there, **{category: _share(sample) for category, sample in samples.items()}}
    if now == there:
        return
    for file in list_files(join(output, FOLDER, "splits"), ".json") if grown else ():
        if any(marker["category"] in grown for marker in read_json(file)):
            remove(file)
    write_json(url, now)


def _share(sample: Sample | None) -> dict[str, Any]:
    """Of all windows, the seed plays no part."""
    if sample is None or sample.fraction == 1:
        return {"fraction": 1.0, "seed": 0}
    return sample.model_dump()


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


ENOUGH_RECORDS, ENOUGH_BYTES = 1000, 1 << 30  # of which one that is bad does not decide


@dataclass
class Seen:
    """How much was read, and how much of it could not be used."""

    stored: int = 0  # bytes of all splits, also of those not read yet
    records: int = 0
    lost_bytes: int = 0
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, counts: Mapping[str, Any]) -> None:
        """Of a split: its `Counts` as a mapping."""
        self.records += counts["records"]
        self.lost_bytes += counts.get("lost_bytes", 0)
        self.bad.update(counts["bad"])

    def too_bad(self, most: float) -> str:
        """Why a run must stop where this fraction of records, or of bytes, may be bad; or ""."""
        bad = self.bad.total()
        enough = self.records >= ENOUGH_RECORDS
        broken = self.lost_bytes > most * self.stored and (enough or self.stored >= ENOUGH_BYTES)
        if not broken and not (enough and bad > most * self.records):
            return ""
        told = ", ".join(f"{reason} {n}" for reason, n in self.bad.most_common())
        lost = f", {self.lost_bytes:,} bytes in broken files" if self.lost_bytes else ""
        return (
            f"{bad} of {self.records} records are bad ({told}){lost}, over max_bad_fraction "
            f"{most}; they are in quarantine/"
        )


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
    largest: int = 0  # bytes that a record was allowed when one was over it; else 0


def marker(
    split: Split,
    counts: Counts,
    ids: IdSet,
    generation: int,
    waits_for: Iterable[str] = (),
    max_record_bytes: int = 0,
) -> Marker:
    values = {**vars(counts), "bad": dict(counts.bad)}
    largest = max_record_bytes if counts.bad[Reason.OVER_SIZE_CAP] else 0
    return Marker(
        split.id, split.source, split.category, ids.count, ids.hex, generation, sorted(waits_for),
        values, largest,
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


def forget(output: str, void: Collection[str]) -> None:
    """Take the markers of some splits out."""
    for url in list_files(join(output, FOLDER, "splits"), ".json") if void else ():
        there = read_json(url)
        kept = [value for value in there if value["split"] not in void]
        if not kept:
            remove(url)
        elif len(kept) < len(there):
            write_json(url, kept)


def pack_task(splits: Sequence[Split]) -> str:
    """Splits to read, as one string."""
    return json.dumps([asdict(split) for split in splits])


def unpack_task(task: str) -> list[Split]:
    return [Split(**split) for split in json.loads(task)]


class Run(NamedTuple):
    """Neighbouring rows of a labelled file that are of one split."""

    split: str
    path: str
    rows: int
    ids: str  # IdSet.hex of the rows
    documents: bytes  # `claims.key`s of the documents that the rows are of, run together


def _run(split: str, path: str, rows: int, ids: str, documents: str = "") -> Run:
    return Run(split, path, rows, ids, bytes.fromhex(documents))


def runs(splits: Sequence[str], paths: Sequence[str], ids: Sequence[str]) -> list[list[Any]]:
    """The `Run`s of rows given in their order, as a footer holds them: documents in hex."""
    found = []
    for (split, path), rows in groupby(zip(splits, paths, ids, strict=True), itemgetter(0, 1)):
        if not split:
            continue
        given, documents = IdSet(), dict[bytes, None]()
        for *_, data_id in rows:
            given.add(data_id)
            documents[claims.key(data_id.rpartition("-")[0])] = None
        found.append([split, path, given.count, given.hex, b"".join(documents).hex()])
    return found


@dataclass(frozen=True)
class Labelled:
    """What the footer of a labelled file says."""

    url: str
    rows: int
    fingerprint: str
    runs: list[Run]


def read_footer(url: str) -> Labelled:
    """Raises ValueError naming a file that is no labelled Parquet file, OSError as storage does."""
    try:
        with open_parquet(url) as parquet:
            metadata = file_metadata(parquet)
            return Labelled(
                url,
                parquet.metadata.num_rows,
                metadata.get("fingerprint", ""),
                [_run(*run) for run in metadata.get("runs", [])],
            )
    except ValueError as error:
        raise ValueError(f"{url}: no readable labelled file: {error.__cause__ or error}") from error


def labelled_files(output: str) -> list[Labelled]:
    return parallel(read_footer, list_files(join(output, "labelled"), ".parquet"))


@dataclass(frozen=True)
class Remaining:
    """What a run has still to do."""

    splits: list[Split]
    labelled: dict[str, str]  # data_ids under splits that are not done -> split
    documents: np.ndarray  # of splits that are done, as `claims.Claims` wants them
    finished: int  # splits done
    windows: dict[str, int]  # labelled so far, by category
    stale: dict[str, int]  # path -> windows of versions of it that are not there any more
    void: dict[str, str]  # split -> path, of such versions that were never labelled whole
    twice: dict[str, list[int]]  # labelled file -> rows that another file, or row, has too
    generation: int  # for the markers of the run that does it
    seen: Seen  # in the splits that are done


def remaining(
    output: str, splits: Sequence[Split], again: Iterable[str] = (), max_record_bytes: int = 0
) -> Remaining:
    """Compare the listing with markers and labelled files.

    Read again are the splits of the categories `again`, and those with a record that was over a
    smaller `max_record_bytes`.

    Footers are read, and the ids of rows that are under no done split. Kept are those ids and, while
    anything remains, 16 bytes for each document of a done split: a document that is in two files of
    a category is scored once, and the other file may be the one that remains.
    """
    markers, reread = read_markers(output), set(again)
    files = labelled_files(output)
    under: dict[str, IdSet] = defaultdict(IdSet)
    paths: dict[str, str] = {m.split: m.path for m in markers.values()}
    windows: Counter[str] = Counter()
    for file in files:
        windows[file.url.rpartition("/category=")[2].partition("/")[0]] += file.rows
        for run in file.runs:
            under[run.split].merge(run.rows, run.ids)
            paths[run.split] = run.path
    complete = {
        m.split
        for m in markers.values()
        if (under[m.split].count, under[m.split].hex) == (m.windows, m.ids)
    }
    whole = {
        name
        for name in complete
        if markers[name].category not in reread and not 0 < markers[name].largest < max_record_bytes
    }
    current = {split.id for split in splits}
    # A document left to another split is lost if that one is gone and did not label it.
    done, before = whole, set[str]()
    while done != before:
        before, known = done, done | current
        done = {name for name in done if known.issuperset(markers[name].waits_for)}
    todo = [split for split in splits if split.id not in done]
    labelled: dict[str, str] = {}
    twice: dict[str, list[int]] = {}
    documents = np.empty(0, "S16")
    if todo:
        labelled, documents, twice = _known(files, done & current)
    seen = Seen(sum(split.size for split in splits))
    for name in done & current:
        seen.add(markers[name].counts)
    stale: dict[str, int] = defaultdict(int)
    for name in paths.keys() - current:
        stale[paths[name]] += under[name].count
    return Remaining(
        splits=todo,
        labelled=labelled,
        documents=documents,
        finished=len(splits) - len(todo),
        windows=dict(windows),
        stale=dict(sorted(stale.items())),
        void={name: markers[name].path for name in markers.keys() - complete - current},
        twice=twice,
        generation=1 + max((m.generation for m in markers.values()), default=0),
        seen=seen,
    )


def _known(
    files: Sequence[Labelled], done: set[str]
) -> tuple[dict[str, str], np.ndarray, dict[str, list[int]]]:
    """Ids under unfinished splits, documents of done ones, and rows that are there twice."""
    documents = _keys(run for file in files for run in file.runs if run.split in done)
    unfinished = [run for file in files for run in file.runs if run.split not in done]
    shared = np.intersect1d(_keys(unfinished), documents)

    def may_repeat(run: Run) -> bool:
        return run.split in done and bool(
            np.isin(np.frombuffer(run.documents, "S16"), shared).any()
        )

    elsewhere = {row[2] for row in _rows(files if len(shared) else (), may_repeat)}
    labelled: dict[str, str] = {}
    twice: dict[str, list[int]] = defaultdict(list)
    for url, row, data_id, split in _rows(files, lambda run: run.split not in done):
        if data_id in labelled or data_id in elsewhere:
            twice[url].append(row)
        else:
            labelled[data_id] = split
    return labelled, documents, dict(twice)


def _keys(some: Iterable[Run]) -> np.ndarray:
    """Sorted keys of the documents of some runs, each once."""
    return np.unique(np.frombuffer(b"".join(run.documents for run in some), "S16"))


def _rows(
    files: Sequence[Labelled], wanted: Callable[[Run], bool]
) -> Iterator[tuple[str, int, str, str]]:
    """Rows of the wanted runs: file, row, data_id, split. Reads ids of the files that have some."""
    some = [file for file in files if any(map(wanted, file.runs))]
    for start in range(0, len(some), READERS):
        group = some[start : start + READERS]
        for file, ids in zip(group, parallel(_ids, group), strict=True):
            row = 0
            for run in file.runs:
                if wanted(run):
                    for i in range(row, row + run.rows):
                        yield file.url, i, ids[i], run.split
                row += run.rows


def drop_repeats(twice: Mapping[str, Sequence[int]]) -> None:
    """Write labelled files again without rows that are elsewhere too; then remove the old ones.

    A new one may have the name of an old one, which held just these rows.
    """
    written = set()
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
            url = join(folder, content_name(table["data_id"]))
            written.add(url)
            write_table(url, table, metadata)
    for url in twice.keys() - written:
        remove(url)


def _ids(file: Labelled) -> list[str]:
    with open_parquet(file.url) as parquet:
        return parquet.read(columns=["data_id"])["data_id"].to_pylist()
