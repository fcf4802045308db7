"""What the driver pays before a run, by number of input files: python tests/bench/files.py [FILES ...]

Listing, the ledger and the building of tasks, without reading a record, each number of files in a
process of its own. The files are local and hold one record each.
"""

import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from longattn import ledger
from longattn.config import Source
from longattn.corpus import group_splits, list_splits


def measure(folder: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]
    splits = list_splits([Source(category="book", path=f"{folder}/in")])
    times.append(time.perf_counter())
    left = ledger.remaining(f"{folder}/out", splits)
    times.append(time.perf_counter())
    tasks = [ledger.pack_task(group, ()) for group in group_splits(left.splits)]
    times.append(time.perf_counter())
    listed, ledgered, built = (b - a for a, b in pairwise(times))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    print(
        f"{len(splits):,} files: listed in {listed:.2f} s, ledger {ledgered:.2f} s, "
        f"{len(tasks)} tasks of {sum(map(len, tasks)) / 1e6:.2f} MB in {built:.2f} s, {peak:.0f} MiB"
    )


def main(numbers: list[int]) -> None:
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            for i in range(number):
                path = Path(folder, "in", f"{i // 1000:04d}", f"{i:08d}.jsonl")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text('{"content": "short"}\n')
            subprocess.run([sys.executable, __file__, "--measure", folder], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2])
    else:
        main([int(n) for n in sys.argv[1:]] or [100, 10_000, 100_000])
