"""Time and peak memory of a selection: python tests/bench/selection.py [MILLIONS ...]

Draws scores for one category (the worst case: categories are compared within themselves), keeps
1 in 100, so that reading and ranking are measured and not the copying, in a process of its own.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from longattn.storage import LABELLED, parquet_writer

FILE_ROWS = 250_000
MEASURE = """
import resource, sys, time
import longattn as la
la.select  # what importing takes is no part of it
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
la.select(sys.argv[1], keep={"fraction": 0.01})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(f"{time.perf_counter() - started:.1f} s, {(peak - before) / 2**20:.2f} GiB above an idle process")
"""


def write_drawn(folder: str, rows: int) -> None:
    rng = np.random.default_rng(0)
    category = Path(folder, "labelled", "category=book")
    category.mkdir(parents=True)
    for start in range(0, rows, FILE_ROWS):
        n = min(FILE_ROWS, rows - start)
        digests = rng.bytes(16 * n).hex()
        ids = [f"book-{digests[32 * i : 32 * i + 32]}-{i % 100}" for i in range(n)]
        values = {
            "data_id": ids,
            "category": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), ["book"]),
            "token_start": np.zeros(n, np.int64),
            "token_stop": np.full(n, 32768),
            "ds": rng.normal(0.3, 0.03, n),
            "variance": rng.gamma(4, 2e-8, n),
        }
        columns = [
            pa.array(values[f.name], f.type) if f.name in values else pa.nulls(n, f.type)
            for f in LABELLED
        ]
        path = category / f"{start:012d}.parquet"
        with parquet_writer(path, LABELLED, {"fingerprint": "drawn"}) as writer:
            writer.write_table(pa.table(columns, schema=LABELLED))


def main(millions: list[float]) -> None:
    for million in millions:
        with tempfile.TemporaryDirectory() as folder:
            write_drawn(folder, round(million * 1e6))
            said = subprocess.check_output([sys.executable, "-c", MEASURE, folder], text=True)
            print(f"{million:g} M windows: {said.strip()}", flush=True)


if __name__ == "__main__":
    main([float(m) for m in sys.argv[1:]] or [1, 5])
