"""The pool through longattn's own main job: its documents in, its windows and scores out.

    python by_longattn.py split POOL ROOM [--shares compiled=0.615] [--megabytes 16]
    cd ROOM && longattn run pool.yaml            # writes ROOM/run
    python by_longattn.py gather RUN HELD_OUT OUT

`split` writes the documents that may be trained on to ROOM/corpus, a category a group of files, and all
others to ROOM/held_out; of a category with a share, that share of the documents by the hash of their
text. `gather` puts the labelled windows of RUN before those of HELD_OUT (what `windows.py` wrote), in one
form, with OUT/scores.npz: a value of each score for each window of the pool.
"""

from __future__ import annotations

import argparse
import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fetch_pool import is_held_out
from numpy.typing import NDArray
from windows import BOOK, documents_of, write

SCORES = {
    "ds": "ds",
    "variance": "variance",
    "loss_gap": "gap",
    "loss_gap_weighted": "gap_weighted",
    "compression_ratio": "compression_ratio",
    "recurrence_pairs": "recurrence_pairs",
}
"""Names here -> columns of the labelled windows and of the score tables beside them."""
TABLES = {"gap": ["gap", "gap_weighted"], "text": ["compression_ratio"]}
LABELLED = ["category", "repository", "document_id", "window_index", "token_start", "token_stop"]


def split(pool: Path, room: Path, shares: dict[str, float], megabytes: float) -> dict[str, int]:
    """Bytes by category; files are named `<category>-<number>.jsonl.zst`."""
    for side in ("corpus", "held_out"):
        (room / side).mkdir(parents=True)
    lines: dict[str, list[bytes]] = {}
    held: dict[str, int] = {}
    total: dict[str, int] = {}
    parts: dict[str, int] = {}

    def flush(category: str) -> None:
        number = parts[category] = parts.get(category, -1) + 1
        data = zstandard.ZstdCompressor(3).compress(b"".join(lines.pop(category, [])))
        (room / "corpus" / f"{category}-{number:03d}.jsonl.zst").write_bytes(data)
        held[category] = 0

    with gzip.open(room / "held_out" / "all.jsonl.gz", "wb", compresslevel=1) as outside:
        for document in documents_of(pool):
            row = {name: document[name] for name in ("content", "category", "repository")}
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            category = row["category"]
            if category == BOOK or is_held_out(row["repository"]):
                outside.write(line)
                continue
            drawn = int.from_bytes(sha256(row["content"].encode()).digest()[:4]) / 2**32
            if drawn >= shares.get(category, 1):
                continue
            lines.setdefault(category, []).append(line)
            held[category] = held.get(category, 0) + len(line)
            total[category] = total.get(category, 0) + len(line)
            if held[category] > megabytes * 1e6:
                flush(category)
    for category in list(lines):
        flush(category)
    return total


def labelled_windows(run: Path) -> pa.Table:
    """All windows of a run with their scores, in order of category, document and place."""
    columns = [*LABELLED, "input_ids", "ds", "variance", "recurrence_pairs"]
    tables = []
    for file in sorted((run / "labelled").rglob("*.parquet")):
        table = pq.read_table(file, columns=["data_id", *columns], partitioning=None)
        for name, of in TABLES.items():
            beside = run / "scores" / name / file.relative_to(run / "labelled")
            scores = pq.read_table(beside, columns=["data_id", *of], partitioning=None)
            if not scores["data_id"].equals(table["data_id"]):
                raise ValueError(f"{beside}: not the windows of {file}")
            for column in of:
                table = table.append_column(column, scores[column])
        tables.append(table)
    order = [(n, "ascending") for n in ("category", "document_id", "window_index")]
    return pa.concat_tables(tables).sort_by(order)


def apart(table: pa.Table) -> NDArray[np.int64]:
    """Rows that do not overlap the row kept before them: Algorithm 1 lets the windows of a document overlap."""
    kept, document, end = [], None, 0
    places = zip(
        table["document_id"].to_pylist(),
        table["token_start"].to_pylist(),
        table["token_stop"].to_pylist(),
        strict=True,
    )
    for row, (name, start, stop) in enumerate(places):
        if name != document or start >= end:
            kept.append(row)
            document, end = name, stop
    return np.array(kept)


def gather(run: Path, held_out: Path, out: Path) -> int:
    """Writes OUT/ids.npy, OUT/windows.parquet, OUT/scores.npz; the number of windows of the pool."""
    table = labelled_windows(run)
    table = table.take(apart(table))
    scores = {name: table[column].to_numpy() for name, column in SCORES.items()}
    length = table["token_stop"][0].as_py() - table["token_start"][0].as_py()
    parts = [chunk.flatten().to_numpy() for chunk in table["input_ids"].chunks]
    ids = np.concatenate(parts).astype(np.uint16).reshape(-1, length)
    rows: dict[str, Any] = {
        "category": table["category"].cast(pa.string()),
        "repository": table["repository"],
        "document": table["document_id"],
        "index": table["window_index"],
        "start": table["token_start"],
        "held_out": np.zeros(len(table), bool),
        "recurrence_pairs": table["recurrence_pairs"],
        "compression_ratio": table["compression_ratio"],
    }
    measured = pq.read_table(held_out / "windows.parquet")
    both = pa.concat_tables([pa.table(rows), measured], promote_options="permissive")
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "scores.npz", **scores)
    write(out, np.concatenate([ids, np.load(held_out / "ids.npy")]), both)
    return len(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["split", "gather"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--shares", nargs="*", default=[])
    parser.add_argument("--megabytes", type=float, default=16)
    given = parser.parse_args()
    if given.command == "split":
        named = (share.split("=") for share in given.shares)
        shares = {category: float(share) for category, share in named}
        print(split(*given.folders, shares, given.megabytes))
    else:
        print(gather(*given.folders), "windows of the pool")


if __name__ == "__main__":
    main()
