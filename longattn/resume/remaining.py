"""What a run has still to do: the listing compared with markers and labelled files.

A split is done when its marker is there and labelled files hold exactly the windows that the marker
counts: as many, and of the same ids, by a sum of their hashes. The footer of a labelled file holds
both for each split, so this reads footers, and ids only where they are of splits that are not done.
A labelled file that is not what was written counts for nothing, so that its windows are scored again.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from longattn.corpus.counts import ReadTotals
from longattn.corpus.records import Split
from longattn.resume.markers import IdSet, read_markers
from longattn.resume.shards import Shard
from longattn.storage.digests import RowDigest
from longattn.storage.files import READERS, join, parallel, remove
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import (
    DamagedFileError,
    content_name,
    file_metadata,
    is_content_name,
    is_own_file,
    open_parquet,
    readable,
    write_table,
)
from longattn.windows.ids import hash_key


class RowSpan(NamedTuple):
    """Neighbouring rows of a labelled file that are of one split."""

    split: str
    path: str
    rows: int
    ids: str  # IdSet.hex of the rows
    documents: bytes  # `hash_key`s of the documents that the rows are of, run together


def _row_span(split: str, path: str, rows: int, ids: str, documents: str = "") -> RowSpan:
    """A span as a footer holds it; raises ValueError or TypeError for what is none."""
    keys = bytes.fromhex(documents)
    if rows < 0 or len(keys) % 16 or not isinstance(split, str) or not isinstance(path, str):
        raise ValueError("its footer is damaged: rows of no split")
    int(ids, 16)
    return RowSpan(split, path, rows, ids, keys)


def row_spans(splits: Sequence[str], paths: Sequence[str], ids: Sequence[str]) -> list[list[Any]]:
    """The `RowSpan`s of rows given in their order, as a footer holds them: documents in hex."""
    found = []
    for (split, path), rows in groupby(zip(splits, paths, ids, strict=True), itemgetter(0, 1)):
        if not split:
            continue
        given, documents = IdSet(), dict[bytes, None]()
        for *_, data_id in rows:
            given.add(data_id)
            documents[hash_key(data_id.rpartition("-")[0])] = None
        found.append([split, path, given.count, given.hex, b"".join(documents).hex()])
    return found


@dataclass(frozen=True)
class Labelled:
    """What the footer of a labelled file says."""

    url: str
    rows: int
    row_spans: list[RowSpan] = field(default_factory=list)
    scored_on: str = ""
    """The kind of processor; empty of files of before that was noted."""
    foreign: bool = False
    """Another program's, which is left alone."""
    damage: str = ""
    """What of the file is not as it was written; empty where nothing is."""


def read_footer(url: str, *, whole: bool = False) -> Labelled:
    """What the footer of a file says, and whether the file fits it; raises OSError as storage does.

    Args:
        whole: whether to read all rows, too, and compare them with their digest.
    """
    try:
        with open_parquet(url) as parquet:
            rows = parquet.metadata.num_rows
            if not is_own_file(parquet):
                if is_content_name(url):
                    return Labelled(
                        url, rows, damage="its footer has lost what longattn wrote there"
                    )
                return Labelled(url, rows, foreign=True)
            metadata = file_metadata(parquet)
            spans = [_row_span(*span) for span in metadata.get("runs", [])]
            damage = _damage(url, parquet, metadata, whole=whole)
            scored_on = metadata.get("scored_on", "")
            return Labelled(url, rows, spans, scored_on, damage=damage)
    except DamagedFileError as error:
        return Labelled(url, 0, damage=error.why)
    except (ValueError, TypeError) as error:
        return Labelled(url, 0, damage=" ".join(str(error).split()))


def _damage(url: str, parquet: Any, metadata: Mapping[str, Any], *, whole: bool) -> str:
    """How the rows of a file differ from its footer; empty where they do not."""
    if lacks := {"data_id", "input_ids", "ds"} - {*parquet.schema_arrow.names}:
        return f"no labelled windows: it lacks {', '.join(sorted(lacks))}"
    rows, told = parquet.metadata.num_rows, metadata.get("rows")
    if told != rows:
        return f"{rows} rows, its footer tells of {told}"
    under = sum(span[2] for span in metadata.get("runs", []))
    if under not in (0, rows):
        return f"{rows} rows, its footer tells of {under} under splits"
    if whole:
        digest = RowDigest()
        for group in range(parquet.num_row_groups):
            with readable(url):
                digest.add(parquet.read_row_group(group, use_threads=False))
        if digest.hex != metadata.get("digest"):
            return "its rows are not those its footer tells of"
    return ""


def labelled_files(output: str, *, whole: bool = False) -> list[Labelled]:
    """Every Parquet file below `labelled/` by its footer; `whole` as `read_footer` takes it."""
    files = OutputFolder(output).labelled_files()
    return parallel(lambda url: read_footer(url, whole=whole), files)


def windows_by_processor(files: Iterable[Labelled]) -> dict[str, int]:
    """How many windows each kind of processor scored, as far as footers say."""
    found: Counter[str] = Counter()
    for file in files:
        if file.scored_on:
            found[file.scored_on] += file.rows
    return dict(sorted(found.items()))


def mixture_remark(scored_on: Mapping[str, int]) -> str:
    """A line on windows of several kinds of processor; empty for one."""
    if len(scored_on) < 2:
        return ""
    kinds = ", ".join(f"{name} ({n:,} windows)" for name, n in scored_on.items())
    return (
        f"scored on several kinds of processor: {kinds}; their scores differ by 1e-9, so two windows "
        "closer than that may be ranked otherwise than on one"
    )


@dataclass(frozen=True)
class Remaining:
    """What a run has still to do."""

    splits: list[Split]
    labelled: dict[str, str]  # data_ids under splits that are not done -> split
    documents: np.ndarray  # of splits that are done, as `DocumentRegistry` takes them
    finished: int  # splits done
    windows: dict[str, int]  # labelled so far, by category
    stale: dict[str, int]  # path -> windows of versions of it that are not there any more
    void: dict[str, str]  # split -> path, of such versions that were never labelled whole
    twice: dict[str, list[int]]  # labelled file -> rows that another file, or row, has too
    generation: int  # for the markers of the run that does it
    seen: ReadTotals  # in the splits that are done
    damaged: dict[str, str] = field(default_factory=dict)  # labelled files and markers -> how
    scored_on: dict[str, int] = field(default_factory=dict)  # windows by kind of processor
    foreign: list[str] = field(default_factory=list)  # Parquet below `labelled/` of other programs


def find_remaining(
    output: str,
    splits: Sequence[Split],
    again: Iterable[str] = (),
    max_record_bytes: int = 0,
    *,
    whole: bool = False,
    shard: Shard | None = None,
) -> Remaining:
    """Compare the listing with markers and labelled files.

    Read again are the splits of the categories `again`, and those with a record that was over a
    smaller `max_record_bytes`.

    Footers are read, and the ids of rows that are under no done split. Kept are those ids and, while
    anything remains, 16 bytes for each document of a done split: a document that is in two files of
    a category is scored once, and the other file may be the one that remains. `whole` reads all rows,
    and compares them with the footers. Of a `shard`, only its splits are counted, and what others
    have begun is theirs.
    """
    damaged: dict[str, str] = {}
    markers, reread = read_markers(output, damaged), set(again)
    there = labelled_files(output, whole=whole)
    damaged |= {file.url: file.damage for file in there if file.damage}
    files = [file for file in there if not file.damage and not file.foreign]
    under: dict[str, IdSet] = defaultdict(IdSet)
    paths: dict[str, str] = {m.split: m.path for m in markers.values()}
    windows: Counter[str] = Counter()
    for file in files:
        windows[category_of(file.url)] += file.rows
        for span in file.row_spans:
            under[span.split].merge(span.rows, span.ids)
            paths[span.split] = span.path
    complete = {
        m.split
        for m in markers.values()
        if (under[m.split].count, under[m.split].hex) == (m.windows, m.ids)
    }
    settled = {
        name
        for name in complete
        if markers[name].category not in reread and not 0 < markers[name].largest < max_record_bytes
    }
    current = {split.id for split in splits}
    others = {name for name in current if shard and not shard.has(name)}
    # A document left to another split is lost if that one is gone and did not label it.
    done, before = settled, set[str]()
    while done != before:
        before, known = done, done | current
        done = {name for name in done if known.issuperset(markers[name].waits_for)}
    own = [split for split in splits if split.id not in others]
    todo = [split for split in own if split.id not in done]
    labelled: dict[str, str] = {}
    twice: dict[str, list[int]] = {}
    documents = np.empty(0, "S16")
    if todo:
        labelled, documents, twice = _known(files, done & current, others)
    seen = ReadTotals(sum(split.size for split in own))
    for name in done & current - others:
        seen.add(markers[name].counts, markers[name].path)
    stale: dict[str, int] = defaultdict(int)
    for name in paths.keys() - current:
        stale[paths[name]] += under[name].count
    return Remaining(
        splits=todo,
        labelled=labelled,
        documents=documents,
        finished=len(own) - len(todo),
        windows=dict(windows),
        stale=dict(sorted(stale.items())),
        void={name: markers[name].path for name in markers.keys() - complete - current},
        twice=twice,
        generation=1 + max((m.generation for m in markers.values()), default=0),
        seen=seen,
        damaged=damaged,
        scored_on=windows_by_processor(files),
        foreign=[file.url for file in there if file.foreign],
    )


def _known(
    files: Sequence[Labelled], done: set[str], others: set[str]
) -> tuple[dict[str, str], np.ndarray, dict[str, list[int]]]:
    """Ids under unfinished splits, documents of done ones, and rows that are there twice.

    What is under unfinished splits of `others` is left out, and a file that holds some is not
    written again.
    """
    documents = _keys(span for file in files for span in file.row_spans if span.split in done)
    settled = done | others
    unfinished = [span for file in files for span in file.row_spans if span.split not in settled]
    shared = np.intersect1d(_keys(unfinished), documents)

    def may_repeat(span: RowSpan) -> bool:
        return span.split in done and bool(
            np.isin(np.frombuffer(span.documents, "S16"), shared).any()
        )

    elsewhere = {row[2] for row in _rows(files if len(shared) else (), may_repeat)}
    labelled: dict[str, str] = {}
    twice: dict[str, list[int]] = defaultdict(list)
    for url, row, data_id, split in _rows(files, lambda span: span.split not in settled):
        if data_id in labelled or data_id in elsewhere:
            twice[url].append(row)
        else:
            labelled[data_id] = split
    begun = others - done
    theirs = {f.url for f in files if any(span.split in begun for span in f.row_spans)}
    return labelled, documents, {url: rows for url, rows in twice.items() if url not in theirs}


def _keys(some: Iterable[RowSpan]) -> np.ndarray:
    """Sorted keys of the documents of some spans, each once."""
    return np.unique(np.frombuffer(b"".join(span.documents for span in some), "S16"))


def _rows(
    files: Sequence[Labelled], wanted: Callable[[RowSpan], bool]
) -> Iterator[tuple[str, int, str, str]]:
    """Rows of the wanted spans: file, row, data_id, split. Reads ids of the files that have some."""
    some = [file for file in files if any(map(wanted, file.row_spans))]
    for start in range(0, len(some), READERS):
        group = some[start : start + READERS]
        for file, ids in zip(group, parallel(_ids, group), strict=True):
            row = 0
            for span in file.row_spans:
                if wanted(span):
                    for i in range(row, row + span.rows):
                        yield file.url, i, ids[i], span.split
                row += span.rows


def drop_repeats(twice: Mapping[str, Sequence[int]]) -> None:
    """Write labelled files again without rows that are elsewhere too; then remove the old ones.

    A new one may have the name of an old one, which held just these rows.
    """
    written = set()
    for url, rows in twice.items():
        with open_parquet(url) as parquet, readable(url):
            metadata, table = file_metadata(parquet), parquet.read()
        splits = [span[0] for span in metadata["runs"] for _ in range(span[2])]
        keep = np.ones(len(table), bool)
        keep[list(rows)] = False
        table = table.filter(pa.array(keep)).replace_schema_metadata()
        splits = [split for split, kept in zip(splits, keep, strict=True) if kept]
        if len(table):
            sources, ids = table["source"].to_pylist(), table["data_id"].to_pylist()
            metadata["runs"] = row_spans(splits, sources, ids)
            folder = url.rpartition("/")[0]
            url = join(folder, content_name(table["data_id"]))
            written.add(url)
            write_table(url, table, metadata)
    for url in twice.keys() - written:
        remove(url)


def _ids(file: Labelled) -> list[str]:
    with open_parquet(file.url) as parquet, readable(file.url):
        ids: list[str] = parquet.read(columns=["data_id"])["data_id"].to_pylist()
        return ids
