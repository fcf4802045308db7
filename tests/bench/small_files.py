"""How fast many files of one short document go: python tests/bench/small_files.py [FILES] [EXECUTOR]

Each file is one line of JSON Lines of some 300 bytes, below a window; a thousandth hold a document of
some windows. Prints the seconds of each step, and files a second over the whole run.
"""

import gzip
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import ray

import longattn as la
from longattn.samples import SAMPLES

WINDOW = 512


def write_files(folder: Path, files: int) -> None:
    with gzip.open(SAMPLES / "book.jsonl.gz", "rt") as opened:
        text = json.loads(next(opened))["content"]
    for i in range(files):
        size = 4000 if i % 1000 == 0 else 300
        at = i * 37 % (len(text) - size)
        place = folder / f"{i // 1000:03}"
        place.mkdir(exist_ok=True, parents=True)
        line = json.dumps({"content": f"{i} {text[at : at + size]}"})
        (place / f"{i % 1000:03}.jsonl").write_text(line + "\n")


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    executor = sys.argv[2] if len(sys.argv) > 2 else "ray"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    with tempfile.TemporaryDirectory(prefix="la-") as name:
        folder = Path(name)
        if executor == "ray":
            ray.init(
                num_cpus=2, include_dashboard=False, _temp_dir=f"{name}/ray", logging_level="ERROR"
            )
        write_files(folder / "corpus", files)
        config = {
            "sources": [{"category": "book", "path": str(folder / "corpus")}],
            "output": str(folder / "out"),
            "window": {"tokens": WINDOW},
        }
        for what in ("run", "run again"):
            started, worked = time.perf_counter(), time.process_time()
            summary = la.run(config, executor=executor)
            seconds = time.perf_counter() - started
            worked = time.process_time() - worked
            told = summary.to_dict()
            windows = sum(category["windows"] for category in told["categories"].values())
            print(
                f"{what}: {files:,} files, {windows:,} windows, {executor}: {seconds:.1f} s "
                f"({worked:.1f} s of this process's CPU), {files / seconds:,.0f} files/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
