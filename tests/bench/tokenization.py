"""Tokens a second, one core, of JSON lines to ids: a table of tokenizers, and one of piece sizes.

    taskset -c 0 python tests/bench/tokenization.py --corpus A.jsonl.zst B.jsonl.zst -- TOKENIZER...
    taskset -c 0 python tests/bench/tokenization.py --corpus A.jsonl.zst --pieces -- TOKENIZER

TOKENIZER is a tokenizer.json. The table: the rate cold (first pass, empty caches) and warm, that of
`tokenizers` on the first documents, and whether their ids are equal. With --pieces: the rates for
several piece sizes and the peak memory of a document of 50 MB made of the same text. Rates are of
processor time, each row in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import orjson
import zstandard

from longattn.windows.cut_points import PIECE_BYTES
from longattn.windows.tokenizer import DocumentTokenizer

REFERENCE_BYTES = 3 << 20


def read_lines(corpora: list[str], megabytes: int) -> list[bytes]:
    """The first lines of each corpus, up to so many megabytes of each."""
    lines = []
    for corpus in corpora:
        with Path(corpus).open("rb") as file:
            size = 0
            for line in io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file)):
                size += len(line)
                if size > megabytes << 20:
                    break
                lines.append(line)
    return lines


def rates_of(tokenizer: DocumentTokenizer, lines: list[bytes], passes: int) -> list[float]:
    """Millions of tokens a second of each pass, JSON included."""
    rates = []
    for _ in range(passes):
        started, tokens = time.process_time(), 0
        for line in lines:
            tokens += len(tokenizer.encode(orjson.loads(line)["content"]).ids)
        rates.append(tokens / (time.process_time() - started) / 1e6)
    return rates


def row(tokenizer_json: str, lines: list[bytes]) -> None:
    started = time.process_time()
    tokenizer = DocumentTokenizer.from_file(tokenizer_json)
    load_seconds = time.process_time() - started
    cold, warm = rates_of(tokenizer, lines, 2)
    reference, taken, tokens, seconds, other = tokenizer._slow, 0, 0, 0.0, 0
    for line in sorted(lines, key=len):
        if taken > REFERENCE_BYTES:
            break
        text = orjson.loads(line)["content"]
        taken += len(line)
        started = time.process_time()
        ids = reference.encode(text, add_special_tokens=False).ids
        seconds += time.process_time() - started
        tokens += len(ids)
        other += ids != tokenizer.encode(text).ids.tolist()
    slow = tokens / seconds / 1e6
    print(
        f"| {tokenizer.name} | {cold:.1f} | {warm:.1f} | {slow:.2f} | {cold / slow:.0f}"
        f" | {other} | {load_seconds:.1f} | {tokenizer.backend} |",
        flush=True,
    )


def measure_pieces(tokenizer_json: str, lines: list[bytes], piece_bytes: int) -> None:
    started = time.process_time()
    contents = Path(tokenizer_json).read_bytes()
    tokenizer = DocumentTokenizer(contents, "bench", piece_bytes=piece_bytes)
    load_seconds = time.process_time() - started
    rates = rates_of(tokenizer, lines, 3)
    text = "\n".join(orjson.loads(line)["content"] for line in lines)
    data = (text.encode() * (1 + 50_000_000 // len(text)))[:50_000_000].decode("utf-8", "ignore")
    del text, lines
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The high mark so far may be above what is in use: an upper bound needs the current size.
    in_use = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    tokenizer.encode(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (
        "under the high mark of loading" if peak == before else f"{(peak - in_use) / 1e6:.2f} GB"
    )
    print(
        f"{piece_bytes // 1024:6d} KB pieces  load {load_seconds:.1f} s  Mtok/s cold {rates[0]:.1f}"
        f"  warm {rates[1]:.1f} {rates[2]:.1f}  extra memory of 50 MB: {grown}  ({tokenizer.backend})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs="+", metavar="TOKENIZER")
    parser.add_argument("--corpus", nargs="+", required=True, help="a .jsonl.zst with `content`")
    parser.add_argument("--megabytes", type=int, default=8, help="of each corpus")
    parser.add_argument("--pieces", action="store_true", help="the table of piece sizes")
    parser.add_argument("--piece-kb", type=int, help="one of its rows")
    parser.add_argument("--row", action="store_true", help="one row of the table of tokenizers")
    args = parser.parse_args()
    if args.row or args.piece_kb:
        lines = read_lines(args.corpus, args.megabytes)
        if args.row:
            row(args.tokenizers[0], lines)
        else:
            measure_pieces(args.tokenizers[0], lines, args.piece_kb * 1024)
        return
    sizes = (32, 64, PIECE_BYTES // 1024, 256, 512, 1 << 20)
    jobs = [["--piece-kb", str(kb)] for kb in sizes] if args.pieces else [["--row"]]
    if not args.pieces:
        print(
            "| tokenizer | cold, M tokens/s | warm | `tokenizers` | times | other ids | load, s | |"
        )
        print("|---|---|---|---|---|---|---|---|")
    common = ["--corpus", *args.corpus, "--megabytes", str(args.megabytes)]
    one_thread = {**os.environ, "TOKENIZERS_PARALLELISM": "0", "RAYON_NUM_THREADS": "1"}
    for tokenizer in args.tokenizers:
        for job in jobs:
            command = [sys.executable, sys.argv[0], *common, *job, "--", tokenizer]
            subprocess.run(command, check=True, env=one_thread)


if __name__ == "__main__":
    main()
