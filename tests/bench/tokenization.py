"""Tokens a second, one core, of JSON lines to ids: `taskset -c 0 python tests/bench/tokenization.py TOKENIZER JSONL_ZST`.

Prints the rate cold (first pass, empty caches) and warm, for several piece sizes, each in a process
of its own, and the peak memory of a 50 MB document made of the same text.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import time
from pathlib import Path

import orjson
import zstandard

from longattn.windows.tokenizer import PIECE_BYTES, DocumentTokenizer


def measure(tokenizer_json: str, corpus: str, piece_bytes: int) -> None:
    started = time.process_time()
    contents = Path(tokenizer_json).read_bytes()
    tokenizer = DocumentTokenizer(contents, "bench", piece_bytes=piece_bytes)
    load_seconds = time.process_time() - started
    with Path(corpus).open("rb") as file:
        lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file)).readlines()
    rates = []
    for _ in range(3):
        started, tokens = time.process_time(), 0
        for line in lines:
            tokens += len(tokenizer.encode(orjson.loads(line)["content"]).ids)
        rates.append(tokens / (time.process_time() - started) / 1e6)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer_json")
    parser.add_argument("corpus", help="a .jsonl.zst with a column `content`")
    parser.add_argument("--piece-kb", type=int)
    args = parser.parse_args()
    if args.piece_kb:
        measure(args.tokenizer_json, args.corpus, args.piece_kb * 1024)
    else:
        for kb in (32, 64, PIECE_BYTES // 1024, 256, 512, 1 << 20):
            subprocess.run([sys.executable, *sys.argv, "--piece-kb", str(kb)], check=True)
