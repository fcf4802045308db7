"""Time, peak memory and spilled bytes of a selection:
python -m tests.bench.selection [MILLIONS ...] [--columns] [--plot SVG]

Draws scores for one category (the worst case: categories are compared within themselves), two
overlapping windows a document, and keeps 1 in 100, so that reading and ranking are measured and not
the copying. Each selection in a process of its own, with a memory limit of 512 MB. With `--columns`
two further columns are drawn, one that ranks and one that is bounded.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longattn.storage.digests import sealed
from longattn.storage.tables import LABELLED, METADATA_KEY

FILE_ROWS = 250_000
MEMORY = "512MB"
COLUMNS = {"rank_by": "recurrence_pairs", "where": [{"column": "recurrence", "max": 0.9}]}
MEASURE = """
import json, os, sys, tempfile, threading, time
from pathlib import Path
import longattn as la

def watch():
    while True:
        held = 0
        for file in Path(tempfile.gettempdir()).glob("longattn-select-*/**/*"):
            try:
                held += file.stat().st_blocks * 512
            except OSError:
                pass  # has gone
        spilled.append(held)
        time.sleep(0.1)

la.select  # what importing takes is no part of it
path, settings = sys.argv[1], json.loads(sys.argv[2])
tempfile.tempdir = str(Path(path, "temporary"))
Path(tempfile.tempdir).mkdir(exist_ok=True)
spilled = [0]
threading.Thread(target=watch, daemon=True).start()
started, used = time.perf_counter(), sum(os.times()[:2])
la.select(path, keep={"fraction": 0.01}, **settings)
seconds = time.perf_counter() - started
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) / 2**20 for line in status if line[:6] == "VmHWM:")
print(json.dumps({"seconds": seconds, "cpu": sum(os.times()[:2]) - used, "gib": peak,
                  "spilled": max(spilled) / 2**30, "load": os.getloadavg()[0]}))
"""


def write_drawn(folder: str, rows: int, *, columns: bool = False) -> None:
    """Files as runs write them, but for the digests of their rows, which nothing here reads."""
    rng = np.random.default_rng(0)
    category = Path(folder, "labelled", "book")
    category.mkdir(parents=True)
    for start in range(0, rows, FILE_ROWS):
        n = min(FILE_ROWS, rows - start)
        names = np.frombuffer(rng.bytes(8 * n + 16).hex().encode(), "S32")[np.arange(n) // 2]
        document = pa.array(names).cast(pa.string())
        second = np.arange(n) % 2
        values = {
            "data_id": pc.binary_join_element_wise(
                "book", document, pa.array(second).cast(pa.string()), "-"
            ),
            "category": pa.array(["book"] * n),
            "document_id": document,
            "token_start": second * 16384,
            "token_stop": second * 16384 + 32768,
            "ds": rng.normal(0.3, 0.03, n),
            "variance": rng.gamma(4, 2e-8, n),
        }
        if columns:
            values |= {"recurrence": rng.random(n), "recurrence_pairs": rng.random(n)}
        arrays = [
            pa.array(values[f.name], f.type) if f.name in values else pa.nulls(n, f.type)
            for f in LABELLED
        ]
        metadata = {METADATA_KEY: json.dumps(sealed({"fingerprint": "drawn", "rows": n})).encode()}
        pq.write_table(
            pa.table(arrays, schema=LABELLED).replace_schema_metadata(metadata),
            category / f"{start:012d}.parquet",
            compression="zstd",
            use_dictionary=["category", "source", "document_id"],
            write_page_checksum=True,
        )


def measure(folder: str, *, columns: bool = False) -> dict[str, float]:
    settings = {"memory": MEMORY, **(COLUMNS if columns else {})}
    command = [sys.executable, "-c", MEASURE, folder, json.dumps(settings)]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def plot(found: list[tuple[float, dict[str, float]]]) -> str:
    """Two panels as SVG: seconds and GiB by million windows."""
    panels = {
        "seconds": [("", "seconds")],
        "GiB": [("peak memory", "gib"), ("spilled to disk", "spilled")],
    }
    right = max(million for million, _ in found)
    colours = ["#1b6ca8", "#c8553d"]
    drawn = []
    for panel, (title, lines) in enumerate(panels.items()):
        x0, top = 50 + 400 * panel, max(v[of] for _, of in lines for _, v in found) * 1.15
        drawn.append(f'<text x="{x0}" y="18" font-weight="bold">{title}</text>')
        drawn.append(f'<path d="M{x0} 30V200H{x0 + 250}" fill="none" stroke="#888"/>')
        drawn += [
            f'<text x="{x0 + 250 * m / right:.0f}" y="216" text-anchor="middle">{m:g} M</text>'
            for m, _ in found
        ]
        drawn += [
            f'<text x="{x0 - 5}" y="{204 - 170 * part / 1.15:.0f}" text-anchor="end">{top * part / 1.15:.3g}</text>'
            for part in (0, 0.5, 1)
        ]
        for (name, of), colour in zip(lines, colours, strict=False):
            at = [(x0 + 250 * m / right, 200 - 170 * v[of] / top) for m, v in found]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
            drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
            drawn.append(
                f'<text x="{at[-1][0] + 6:.0f}" y="{at[-1][1] + 4:.0f}" fill="{colour}">{name}</text>'
            )
    body = "\n".join(drawn)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="820" height="225" font-family="sans-serif" '
        f'font-size="12"><rect width="820" height="225" fill="white"/>\n{body}\n</svg>\n'
    )


def main(arguments: list[str]) -> None:
    target = None
    if "--plot" in arguments:
        at = arguments.index("--plot")
        target, arguments = Path(arguments[at + 1]), arguments[:at] + arguments[at + 2 :]
    columns = "--columns" in arguments
    arguments = [each for each in arguments if each != "--columns"]
    found = []
    for million in [float(m) for m in arguments] or [1, 5, 20]:
        with tempfile.TemporaryDirectory() as folder:
            write_drawn(folder, round(million * 1e6), columns=columns)
            told = measure(folder, columns=columns)
        values = ", ".join(f"{name} {value:.2f}" for name, value in told.items())
        print(f"{million:g} M windows: {values}", flush=True)
        found.append((million, told))
    if target:
        target.write_text(plot(found))


if __name__ == "__main__":
    main(sys.argv[1:])
