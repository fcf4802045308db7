"""Peak memory of each process of a run: python tests/bench/memory.py [CASE ...]

Cases: document (one of 50 MB), file (2 GB of JSONL, a 20th of its bytes in documents of a window or
more), files (20,000 of them). The built-in scorer, windows of 32768 tokens, of which a share is
scored. Needs 3 GB of disk in TMPDIR. A process's figure is its VmHWM:
shared memory included.
"""

import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

from longattn.samples import SAMPLES

CASES = {"document": 0.03, "file": 0.1, "files": 0.1}  # share of the windows that is scored
STRETCH = 1000  # characters
ROLES = {
    "window actor": r"\(SplitWindows\)",
    "scoring actor": r"\(ScoreWindows\)",
    "sink": r"ray::Write",
    "raylet": r"raylet/raylet ",
}


def text(chance: random.Random, characters: int) -> str:
    """Stretches of the sample book in random order."""
    starts = (chance.randrange(len(BOOK) - STRETCH) for _ in range(0, characters, STRETCH))
    return "".join(BOOK[start : start + STRETCH] for start in starts)[:characters]


def documents(case: str) -> Iterator[tuple[int, str]]:
    """Number of the file, document."""
    chance = random.Random(0)
    if case == "document":
        yield 0, text(chance, 50_000_000)
    elif case == "file":
        short = [text(chance, 4000) for _ in range(5000)]
        for i in range(480_000):
            yield 0, text(chance, 400_000) if i % 2000 == 0 else f"{i} {short[i % 5000]}"
    else:
        for i in range(20_000):
            yield i, text(chance, 200_000 if i % 500 == 0 else 2000)


def measure(case: str, folder: Path) -> None:
    size, file, number = 0, None, -1
    for part, document in documents(case):
        if part != number:
            path = folder / "in" / f"{part // 1000:03d}" / f"{part:05d}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            file, number = path.open("w"), part
        assert file
        size += file.write(json.dumps({"content": document}) + "\n")
    if file:
        file.close()
    sample = {"fraction": CASES[case], "seed": 0}
    config = {
        "sources": [{"category": "book", "path": str(folder / "in"), "sample": sample}],
        "output": str(folder / "out"),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "longattn.cli", "run", str(folder / "config.yaml")]
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log)
        peaks = watch(psutil.Process(run.pid), run)
    if run.returncode:
        sys.exit((folder / "log").read_text())
    told = json.loads((folder / "out/_longattn/summary.json").read_text())["categories"]["book"]
    print(
        f"{case}: {size / 1e6:,.0f} MB, {told['documents']:,} documents, {told['windows']} windows "
        f"scored, {time.monotonic() - started:.0f} s; peaks in MiB: "
        + ", ".join(
            f"{role} {peaks[role] / 2**10:.0f}" for role in sorted(peaks, key=peaks.get)[::-1]
        )
    )


def stored(raylet: int) -> int:
    """KiB that the object store of a raylet ever took: its file lies in memory and does not shrink."""
    taken = 0
    for opened in Path(f"/proc/{raylet}/fd").glob("*"):
        try:
            if "plasma" in str(opened.readlink()):
                taken += opened.stat().st_blocks // 2
        except OSError:  # closed meanwhile
            continue
    return taken


def watch(driver: psutil.Process, run: subprocess.Popen) -> dict[str, int]:
    """Peaks in KiB by role, until the run ends; of several processes of a role, the largest."""
    peaks: dict[str, int] = defaultdict(int)
    while run.poll() is None:
        for process in [driver, *driver.children(recursive=True)]:
            try:
                command = " ".join(process.cmdline())
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (psutil.Error, OSError):
                continue
            peak = re.search(r"VmHWM:\s+(\d+)", status)
            role = next(
                (r for r, mark in ROLES.items() if re.search(mark, command)), "another of Ray"
            )
            role = "driver" if process == driver else role
            peaks[role] = max(peaks[role], int(peak[1]) if peak else 0)
            if role == "raylet":
                peaks["object store"] = max(peaks["object store"], stored(process.pid))
        time.sleep(0.25)
    return peaks


with gzip.open(SAMPLES / "book.jsonl.gz", "rt") as book:
    BOOK = json.loads(next(book))["content"]

if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory(prefix="la-memory-") as temporary:
            measure(name, Path(temporary))
