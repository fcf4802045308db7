"""What compression and repetition cost beside cutting the same windows: python -m tests.bench.measures FILE.jsonl[.zst|.gz] ...

One core. The actor's work is the cutter's: tokenizing, cutting, decoding, far recurrence, and the Arrow
table. Prints
milliseconds of processor time a window, medians over rounds of interleaved measurements.
"""

import gzip
import statistics
import sys
import time
from pathlib import Path

import orjson
import zstandard

from longattn.corpus.counts import Counts
from longattn.windows import measures
from longattn.windows.cutting import WindowCutter, window_table
from longattn.windows.measures import compression_ratio, repetition
from longattn.windows.tokenizer import load_tokenizer

BYTES, ROUNDS, LEVELS = 12 << 20, 5, (3, 1, -1)


def texts(file: str) -> list[bytes]:
    """The first documents of a file, of about BYTES in all."""
    raw = Path(file).read_bytes()
    if file.endswith("zst"):
        raw = zstandard.ZstdDecompressor().stream_reader(raw).read()
    elif file.endswith("gz"):
        raw = gzip.decompress(raw)
    found: list[bytes] = []
    for line in raw.splitlines():
        found.append(orjson.loads(line)["content"].encode())
        if sum(map(len, found)) > BYTES:
            break
    return found


def timed(times: list[float], call) -> object:
    started = time.process_time()
    result = call()
    times.append(1e3 * (time.process_time() - started))
    return result


def main(files: list[str]) -> None:
    tokenizer = load_tokenizer("builtin")
    for file in files:
        documents = texts(file)
        for tokens in (8192, 32768):
            cutter = WindowCutter(tokenizer, tokens, tokens // 4, {})
            times: dict[str, list[float]] = {}

            def cut(cutter: WindowCutter = cutter, documents: list[bytes] = documents) -> list:
                counts, seen = Counts(), set()
                rows = [
                    row for text in documents for row in cutter.cut(text, "c", "s", counts, seen)
                ]
                window_table(rows)
                return rows

            for _ in range(ROUNDS):
                rows = timed(times.setdefault("actor", []), cut)
                contents = [row["content"].encode() for row in rows]
                ids = [row["input_ids"] for row in rows]
                for level in LEVELS:
                    measures.LEVEL = level
                    vars(measures._local).clear()
                    some = times.setdefault(f"level {level}", [])
                    timed(some, lambda contents=contents: [*map(compression_ratio, contents)])
                some = times.setdefault("repetition", [])
                timed(some, lambda ids=ids: [*map(repetition, ids)])
            told = {name: statistics.median(some) / len(rows) for name, some in times.items()}
            repeated = sum(repetition(row["input_ids"]) > 0 for row in rows)
            print(
                f"{Path(file).name}, {tokens}: {len(rows)} windows, {repeated} with repetition; "
                + ", ".join(
                    f"{name} {ms:.2f} ms ({ms / told['actor']:.1%})" for name, ms in told.items()
                )
            )


if __name__ == "__main__":
    main(sys.argv[1:])
