"""Windows by longattn, and which of them train and which measure.

    python windows.py DOCUMENTS OUT --tokenizer MODEL [--window 8192] [--processes N]

Writes OUT/ids.npy (uint16, a window a row) and OUT/windows.parquet: category, repository, document,
index, start, held_out, recurrence_pairs, compression_ratio. longattn's Algorithm 1 lets the windows of a
document overlap; one that overlaps the window kept before it is left out, so that a token counts once.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fetch_pool import is_held_out
from numpy.typing import NDArray

from longattn.windows.cutting import sliding_windows
from longattn.windows.ids import document_id
from longattn.windows.recurrence import far_recurrence
from longattn.windows.tokenizer import DocumentTokenizer

HELD_OUT_DOCUMENTS, COPIED = 82, 8  # a category, of which some are also used for copying
HELD_OUT_REPOSITORY = 16  # documents of one repository and category
BOOK = "book"


def cut_document(
    document: dict[str, Any], tokenizer: DocumentTokenizer, window: int
) -> Iterator[Any]:
    """Rows of the table, with `ids`."""
    text = document["content"].encode()
    tokenized = tokenizer.encode(text)
    end = 0
    for index, (start, stop) in enumerate(sliding_windows(len(tokenized.ids), window)):
        if start < end:
            continue
        end = stop
        ids = np.asarray(tokenized.ids[start:stop])
        content = tokenized.text(start, stop).encode()
        yield {
            "category": document["category"],
            "repository": document["repository"],
            "document": document_id(text),
            "index": index,
            "start": start,
            "held_out": is_held_out(document["repository"]),
            "recurrence_pairs": far_recurrence(ids, window // 4).recurrence_pairs,
            "compression_ratio": len(content) / len(pa.compress(content, "zstd", asbytes=True)),
            "ids": ids.astype(np.uint16),
        }


def _cut_batch(given: tuple[list[dict[str, Any]], Path, int]) -> list[dict[str, Any]]:
    documents, tokenizer_file, window = given
    tokenizer = DocumentTokenizer.from_file(tokenizer_file)
    return [row for document in documents for row in cut_document(document, tokenizer, window)]


def documents_of(pool: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(pool.glob("*.jsonl.*")):
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf8") as lines:
                yield from map(json.loads, lines)
        elif file.suffix == ".zst":
            with pa.input_stream(str(file), compression="zstd") as stream:
                for line in stream.readall().splitlines():
                    yield json.loads(line)


def batches_of(documents: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    held = 0
    for document in documents:
        batch.append({k: document[k] for k in ("content", "category", "repository")})
        held += len(document["content"])
        if held > size:
            yield batch
            batch, held = [], 0
    yield batch


def cut(pool: Path, out: Path, tokenizer: Path, window: int, processes: int) -> None:
    """All windows of the pool, sorted by category and document, written to `out`."""
    jobs = ((batch, tokenizer, window) for batch in batches_of(documents_of(pool), 2_000_000))
    with get_context("spawn").Pool(processes) as workers:
        rows = [row for rows in workers.imap_unordered(_cut_batch, jobs) for row in rows]
    ids = np.stack([row.pop("ids") for row in rows])
    write_sorted(out, ids, pa.Table.from_pylist(rows))


def write_sorted(out: Path, ids: NDArray[np.uint16], table: pa.Table) -> None:
    """In order of category, document and place, so that no order of reading plays a part."""
    order = pc.sort_indices(table, [(n, "ascending") for n in ("category", "document", "index")])
    write(out, ids[order.to_numpy()], table.take(order))


def write(out: Path, ids: NDArray[np.uint16], table: pa.Table) -> None:
    """Whole or not at all: others wait for windows.parquet."""
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "ids.npy", ids)
    pq.write_table(table, out / "windows.partial")
    (out / "windows.partial").rename(out / "windows.parquet")


@dataclass(frozen=True)
class HeldOut:
    """One window of each held-out document: `copied` are the rows used for copying."""

    ids: NDArray[np.uint16]
    category: list[str]
    document: list[str]
    repository: list[str]
    copied: NDArray[np.int64]

    def names(self) -> dict[str, Any]:
        return {
            "category": self.category,
            "document": self.document,
            "repository": self.repository,
            "copied": self.copied.tolist(),
        }


class Windows:
    """The windows in a folder, and the two sides they are on."""

    def __init__(self, folder: Path) -> None:
        self.ids: NDArray[np.uint16] = np.load(folder / "ids.npy", mmap_mode="r")
        self.table = pq.read_table(folder / "windows.parquet")

    def column(self, name: str) -> NDArray[Any]:
        return np.array(self.table[name].to_pylist())

    def pool(self) -> NDArray[np.int64]:
        """Rows that may be trained on."""
        return np.flatnonzero(~self.column("held_out") & (self.column("category") != BOOK))

    def held_out_rows(self) -> list[int]:
        """One window of each held-out document, in an order that hashes decide."""
        document, index = self.column("document"), self.column("index")
        rows = np.flatnonzero(self.column("held_out")).tolist()
        rows.sort(key=lambda i: sha256(f"{document[i]}-{index[i]}".encode()).digest())
        first: dict[str, int] = {}
        for i in rows:
            first.setdefault(str(document[i]), i)
        return list(first.values())

    def held_out(self, documents: int = HELD_OUT_DOCUMENTS, copied: int = COPIED) -> HeldOut:
        """A window of each of `documents` a category, few of one repository, chosen by hash."""
        category, document = self.column("category"), self.column("document")
        repository = self.column("repository")
        chosen: dict[str, list[int]] = {}
        taken: Counter[tuple[str, str]] = Counter()
        for i in self.held_out_rows():
            of = chosen.setdefault(category[i], [])
            side = category[i], repository[i]
            if len(of) < documents and taken[side] < HELD_OUT_REPOSITORY:
                taken[side] += 1
                of.append(i)
        kept = [i for name in sorted(chosen) for i in chosen[name]]
        place = {i: n for n, i in enumerate(kept)}
        return HeldOut(
            np.stack([self.ids[i] for i in kept]),
            [str(category[i]) for i in kept],
            [str(document[i]) for i in kept],
            [str(repository[i]) for i in kept],
            np.array([place[i] for name in sorted(chosen) for i in chosen[name][:copied]]),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("pool", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    cut(given.pool, given.out, given.tokenizer / "tokenizer.json", given.window, given.processes)
    print("held out", Counter(Windows(given.out).held_out().category))


if __name__ == "__main__":
    main()
