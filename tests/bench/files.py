"""What the driver pays before a run, by number of files: python tests/bench/files.py [FILES ...]

Listing, checking, the ledger and the building of tasks, without reading a record; then the same for an
output that holds as many labelled files, all done (footers are read) and with one split undone (ids
are read). Each in a process of its own. The input files are local and hold one record each, the
labelled files 90 windows each, as a GPU run of one-block files writes them.
"""

import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import pyarrow as pa

from longattn.config import Source
from longattn.corpus.counts import Counts
from longattn.corpus.first_look import check_sources
from longattn.corpus.records import Split, pack_task
from longattn.corpus.sources import group_splits, list_splits
from longattn.resume.markers import IdSet, Marker, write_markers
from longattn.resume.remaining import find_remaining, row_spans
from longattn.storage.files import join
from longattn.storage.tables import LABELLED, parquet_writer

WINDOWS = 90  # of a labelled file
FILES_PER_SPLIT = 4


def peak_mib() -> float:
    """Of this process alone: what getrusage tells is inherited through exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**10


def measure_inputs(folder: str) -> None:
    before = peak_mib()
    times = [time.perf_counter()]
    splits = list_splits([Source(category="book", path=f"{folder}/in")])
    times.append(time.perf_counter())
    check_sources(splits)
    times.append(time.perf_counter())
    left = find_remaining(f"{folder}/out", splits)
    times.append(time.perf_counter())
    tasks = [pack_task(group) for group in group_splits(left.splits)]
    times.append(time.perf_counter())
    listed, checked, ledgered, built = (b - a for a, b in pairwise(times))
    print(
        f"{len(splits):,} input files: listed in {listed:.2f} s, checked {checked:.2f} s, ledger "
        f"{ledgered:.2f} s, {len(tasks)} tasks of {sum(map(len, tasks)) / 1e6:.2f} MB in "
        f"{built:.2f} s, {peak_mib() - before:.0f} MiB"
    )


def split_of(number: int) -> Split:
    return Split("book", f"/in/{number}.jsonl", "content", "jsonl", None, 0, 1, 1, "1")


def write_labelled(folder: str, files: int) -> None:
    """Files of windows of long documents, and the markers of their splits, as a run leaves them."""
    place = Path(folder, "out", "labelled", "book")
    place.mkdir(parents=True)
    nulls = {f.name: pa.nulls(WINDOWS, f.type) for f in LABELLED}
    for start in range(0, files, FILES_PER_SPLIT):
        split, given = split_of(start), IdSet()
        for number in range(start, min(start + FILES_PER_SPLIT, files)):
            ids = [f"book-{number:024x}{i // 30:08x}-{i % 30}" for i in range(WINDOWS)]
            for data_id in ids:
                given.add(data_id)
            runs = row_spans([split.id] * WINDOWS, [split.path] * WINDOWS, ids)
            table = pa.table({**nulls, "data_id": ids}, schema=LABELLED)
            metadata = {"fingerprint": "drawn", "runs": runs}
            with parquet_writer(place / f"{number:08d}.parquet", LABELLED, metadata) as writer:
                writer.write_table(table)
        write_markers(join(folder, "out"), [Marker.of(split, Counts(), given, 1)])


def measure_resume(folder: str, files: int) -> None:
    before = peak_mib()
    splits = [split_of(start) for start in range(0, files, FILES_PER_SPLIT)]
    times = [time.perf_counter()]
    assert not find_remaining(f"{folder}/out", splits).splits
    footers = peak_mib()
    times.append(time.perf_counter())
    left = find_remaining(f"{folder}/out", [*splits, split_of(-1)])
    times.append(time.perf_counter())
    assert [split.path for split in left.splits] == ["/in/-1.jsonl"] and not left.twice
    done, undone = (b - a for a, b in pairwise(times))
    print(
        f"{files:,} labelled files, {files * WINDOWS:,} windows: all done, {done:.2f} s and "
        f"{footers - before:.0f} MiB; one split undone, {undone:.2f} s and {peak_mib() - before:.0f} MiB"
    )


def main(numbers: list[int]) -> None:
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            for i in range(number):
                path = Path(folder, "in", f"{i // 1000:04d}", f"{i:08d}.jsonl")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text('{"content": "short"}\n')
            subprocess.run([sys.executable, __file__, "--inputs", folder, "0"], check=True)
            if number <= 10_000:  # writing more takes minutes
                write_labelled(folder, number)
                subprocess.run(
                    [sys.executable, __file__, "--resume", folder, str(number)], check=True
                )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inputs"]:
        measure_inputs(sys.argv[2])
    elif sys.argv[1:2] == ["--resume"]:
        measure_resume(sys.argv[2], int(sys.argv[3]))
    else:
        main([int(n) for n in sys.argv[1:]] or [100, 10_000, 100_000])
