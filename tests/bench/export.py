"""Rate and peak memory of an export in each format: python -m tests.bench.export [GB] [FOLDER]
The layout alone, with a memory limit of 256 MB: python -m tests.bench.export --layout MILLIONS

Makes selected files (windows of 32,768 ids below 128,256 with the frequencies of words, two categories) and
exports them in each format, in order and shuffled, each in a process of its own. Rates are of ids at four
bytes each, and include the layout and fsync. Beside them, what the same disk and cores do without us: the
column read by pyarrow in two threads, and as many bytes written and synced.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longattn.storage.tables import ROWS_PER_GROUP, SELECTED, parquet_writer

WINDOW, VOCABULARY = 32768, 128_256
FILE_ROWS = 2048  # 268 MB of ids
MEASURE = """
import json, os, sys, time
from longattn.formats.export import Export, export
folder, format, seed = sys.argv[1:]
started, used = time.perf_counter(), sum(os.times()[:2])
export(folder, Export(vocab_size=128256, window=32768, format=format,
                      shuffle=int(seed) if seed else None))
seconds, used = time.perf_counter() - started, sum(os.times()[:2]) - used
with open("/proc/self/status") as status:
    held = {line.split()[0]: int(line.split()[1]) / 2**20 for line in status if line[:2] in ("Vm", "Rs")}
print(json.dumps({"seconds": seconds, "cpu": used, "peak": held["VmHWM:"]}))
"""


def write_made(folder: Path, windows: int) -> None:
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, VOCABULARY + 1) ** 1.05
    drawn = rng.permutation(VOCABULARY)[
        np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(1 << 24)).clip(
            max=VOCABULARY - 1
        )
    ].astype(np.int32)
    for file, start in enumerate(range(0, windows, FILE_ROWS)):
        n = min(FILE_ROWS, windows - start)
        category = ("book", "code")[file % 2]
        path = folder / "selected" / category / f"{file:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet_writer(path, SELECTED, {}) as writer:
            for first in range(0, n, ROWS_PER_GROUP):
                rows = min(ROWS_PER_GROUP, n - first)
                begins = rng.integers(0, len(drawn) - WINDOW, rows)
                ids = pa.array(np.concatenate([drawn[b : b + WINDOW] for b in begins]))
                offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * WINDOW)
                given = {
                    "data_id": [f"{category}-{start + first + i:032x}-0" for i in range(rows)],
                    "input_ids": pa.ListArray.from_arrays(offsets, ids),
                    "category": [category] * rows,
                    "token_start": [0] * rows,
                    "token_stop": [WINDOW] * rows,
                }
                columns = [
                    pa.array(given[f.name], f.type) if f.name in given else pa.nulls(rows, f.type)
                    for f in SELECTED
                ]
                writer.write_table(pa.table(columns, schema=SELECTED))


def read_alone(folder: Path) -> float:
    """Seconds to read the ids with pyarrow in two threads."""

    def read(path: Path) -> None:
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                parquet.read_row_group(group, columns=["input_ids"], use_threads=False)

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, sorted(folder.glob("selected/*/*.parquet"))))
    return time.perf_counter() - started


def write_alone(folder: Path, size: int) -> float:
    """Seconds to write and sync as many bytes."""
    block = np.random.default_rng(0).bytes(8 << 20)
    started = time.perf_counter()
    with (folder / "block").open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    (folder / "block").unlink()
    return seconds


def layout(millions: float) -> None:
    """Places so many windows, shuffled; prints processor time and peak memory."""
    from longattn.formats.layout import Layout
    from longattn.formats.pieces import PieceTable
    from longattn.selection.database import database

    rows, started = 250_000, time.process_time()
    zeros, lengths = np.zeros(rows, np.int32), np.full(rows, WINDOW, np.int32)
    with database(256 * 10**6) as connection:
        table = PieceTable(connection, 1)
        for file in range(round(millions * 1e6) // rows):
            first = file * rows
            names = [f"book-{(first + i) * 2654435761 % 2**64:032x}-0" for i in range(rows)]
            category = table.category(("book", "code")[file % 2])
            table.insert(
                {
                    "category": np.full(rows, category, np.int32),
                    "bin": np.arange(first, first + rows),
                    "place": table.places(names),
                    "name": names,
                    "file": np.full(rows, file, np.int32),
                    "row": np.arange(rows, dtype=np.int32),
                    "length": lengths,
                    "slot": lengths,
                    "within": zeros,
                    "start": zeros,
                }
            )
        parts = Layout(table, True, 1 << 30).parts
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{millions:g} M windows, {len(parts)} parts: {seconds:.1f} s of processors, peak {peak:.2f} GiB"
    )


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--layout"]:
        layout(float(arguments[1]))
        return
    gigabytes = float(arguments[0]) if arguments else 2
    windows = int(gigabytes * 1e9 / 4 / WINDOW)
    size = windows * WINDOW * 4
    with tempfile.TemporaryDirectory(dir=arguments[1] if len(arguments) > 1 else None) as name:
        folder = Path(name)
        write_made(folder, windows)
        stored = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
        print(f"{windows} windows, {size / 1e9:.2f} GB of ids, {stored / 1e9:.2f} GB of Parquet")
        print(f"pyarrow alone, two threads: {size / 1e6 / read_alone(folder):.0f} MB/s", flush=True)
        print(
            f"written and synced alone: {size / 1e6 / write_alone(folder, size):.0f} MB/s",
            flush=True,
        )
        for format in ("megatron", "mds", "npy", "jsonl"):
            for seed in ("", "1"):
                command = [sys.executable, "-c", MEASURE, str(folder), format, seed]
                told = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
                written = sum(p.stat().st_size for p in (folder / format).rglob("*") if p.is_file())
                print(
                    f"{format}{' shuffled' if seed else ''}: {size / 1e6 / told['seconds']:.0f} MB/s of ids "
                    f"({told['seconds']:.1f} s, {told['cpu']:.1f} s of processors, peak {told['peak']:.2f} "
                    f"GiB, {written / 1e9:.2f} GB written)",
                    flush=True,
                )
                shutil.rmtree(folder / format)


if __name__ == "__main__":
    main(sys.argv[1:])
