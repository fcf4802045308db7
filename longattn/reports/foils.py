"""Windows to measure a scorer by: native ones, and foils that differ in long-range dependency alone.

What is drawn depends on the seed and the corpus only, and reading is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from longattn.config import Config
from longattn.corpus.first_look import check_sources
from longattn.corpus.reading import read_split
from longattn.corpus.records import Record, Split
from longattn.corpus.sources import list_splits
from longattn.windows.ids import document_id
from longattn.windows.tokenizer import DocumentTokenizer, load_tokenizer

Ids = NDArray[np.integer]

SPLICES = (2, 4, 8)  # documents in a spliced window
BLOCKS = (512, 4096)  # tokens of the blocks that are shuffled
REPEATS = 8  # times that the passage of a degenerate window comes
DOCUMENTS = 64  # long documents looked at, a category
READ_BYTES = 512 << 20  # text read to find them, a category
STRETCH = 32  # windows' worth of tokens held of one document


def long_documents(
    config: Config,
    *,
    seed: int = 0,
    held_out: float | None = None,
    fewest: int = 2,
    most: int | None = None,
) -> dict[str, list[Ids]]:
    """Token ids of documents that hold a window, by category; equally many from each of its files.

    Reads at most `READ_BYTES` of text a category, in an order of files that the seed decides, and
    of a very long document holds a stretch of `STRETCH` windows.

    Args:
        held_out: take only documents that builtin/train.py, told to hold out this share, left out.
        fewest: such documents of a category; of fewer than two, nothing can be spliced.
        most: such documents of a category, after which no more is read.

    Raises:
        ValueError: a source that cannot be read (see `list_splits`), or a category with fewer than
            `fewest` documents.
    """
    splits = list_splits(config.sources)
    check_sources(splits, config.sources)
    tokenizer = load_tokenizer(config.scorer.model)
    found = {}
    for category, group in groupby(splits, key=lambda split: split.category):
        rng = generator(seed, category, "documents")
        ordered = sorted(group, key=lambda split: digest(seed, split.path, split.start))
        texts = _texts(ordered, config.max_record_bytes, tokenizer, config.window.tokens, held_out)
        found[category] = [_stretch(ids, config.window.tokens, rng) for ids in islice(texts, most)]
        if len(found[category]) < fewest:
            raise ValueError(
                f"category {category!r}: {len(found[category])} documents of "
                f"{config.window.tokens} tokens or more; at least {fewest} are wanted"
            )
    return found


def _texts(
    splits: list[Split],
    max_record_bytes: int,
    tokenizer: DocumentTokenizer,
    window: int,
    held_out: float | None,
) -> Iterator[Ids]:
    """Ids of documents that hold a window, up to `DOCUMENTS`, each document once."""
    if held_out is not None:
        from longattn.builtin.train import held_out as is_held_out

    quota, shortest = math.ceil(DOCUMENTS / len(splits)), tokenizer.min_bytes_for(window)
    seen: set[str] = set()
    read = 0
    for split in splits:
        taken = 0
        for record in read_split(split, max_record_bytes=max_record_bytes):
            if not isinstance(record, Record):
                continue
            text = record.text.encode()
            read += len(text)
            name = document_id(text)
            if len(text) >= shortest and name not in seen:
                seen.add(name)
                if held_out is None or is_held_out(record.text, held_out):
                    ids = tokenizer.encode(text).ids
                    if len(ids) >= window:
                        taken += 1
                        yield ids
            if taken == quota or read > READ_BYTES:
                break
        if read > READ_BYTES:
            return


def _stretch(ids: Ids, window: int, rng: np.random.Generator) -> Ids:
    room = len(ids) - STRETCH * window
    start = int(rng.integers(room + 1)) if room > 0 else 0
    return ids[start : start + STRETCH * window].astype(np.int32)


@dataclass(frozen=True)
class Windows:
    """Windows of one kind: (n, window) ids, and of each the document (or, of a splice, itself)."""

    ids_nl: Ids
    group_n: NDArray[np.int64]


def native_windows(
    documents: Sequence[Ids], n: int, window: int, rng: np.random.Generator
) -> Windows:
    """`n` windows at random places, from every document equally many but for one."""
    picks = np.resize(rng.permutation(len(documents)), n)
    return Windows(np.stack([_crop(documents[i], window, rng) for i in picks.tolist()]), picks)


def foils(
    native: Windows, documents: Sequence[Ids], rng: np.random.Generator
) -> dict[str, Windows]:
    """Windows to be told from the native ones, by kind; those made of the same tokens keep their order.

    `splice p`: p equal pieces of different documents, each at a random place (with fewer documents
    than p they come again, as far apart as can be). `blocks b`: the blocks of b tokens in another
    order. `unigram`: all tokens in another order. `repeat`: the first eighth, over and over.
    Kinds that do not fit the window are left out.
    """
    n, window = native.ids_nl.shape
    made = spliced(documents, n, window, rng)
    same = {f"blocks {b}": _shuffled_blocks(b) for b in BLOCKS if 2 * b <= window}
    same |= {"unigram": lambda ids, rng: rng.permutation(ids), "repeat": _repeated}
    for kind, change in same.items():
        rows = [change(ids_l, rng) for ids_l in native.ids_nl]
        made[kind] = Windows(np.stack(rows), native.group_n)
    return made


def spliced(
    documents: Sequence[Ids],
    n: int,
    window: int,
    rng: np.random.Generator,
    kinds: Sequence[int] = SPLICES,
) -> dict[str, Windows]:
    """`n` splices of each kind: see `foils`."""
    made = {}
    for parts in kinds:
        sizes = np.diff(np.linspace(0, window, parts + 1).astype(int))
        rows = []
        for _ in range(n):
            picks = np.resize(rng.permutation(len(documents)), parts)
            pieces = zip(picks.tolist(), sizes.tolist(), strict=True)
            rows.append(np.concatenate([_crop(documents[i], size, rng) for i, size in pieces]))
        made[f"splice {parts}"] = Windows(np.stack(rows), np.arange(n))
    return made


def repeated(native: Windows, rng: np.random.Generator) -> Windows:
    """The first eighth of each window, over and over."""
    return Windows(np.stack([_repeated(ids_l, rng) for ids_l in native.ids_nl]), native.group_n)


def _crop(ids: Ids, length: int, rng: np.random.Generator) -> Ids:
    start = int(rng.integers(len(ids) - length + 1))
    return ids[start : start + length]


def _shuffled_blocks(block: int) -> Callable[[Ids, np.random.Generator], Ids]:
    def change(ids_l: Ids, rng: np.random.Generator) -> Ids:
        blocks = np.split(ids_l, range(block, len(ids_l), block))
        order = rng.permutation(len(blocks))
        while (order == np.arange(len(blocks))).all():
            order = rng.permutation(len(blocks))
        return np.concatenate([blocks[i] for i in order])

    return change


def _repeated(ids_l: Ids, rng: np.random.Generator) -> Ids:
    return np.resize(ids_l[: math.ceil(len(ids_l) / REPEATS)], len(ids_l))


def digest(*what: object) -> bytes:
    return blake2b(repr(what).encode(), digest_size=8).digest()


def generator(*what: object) -> np.random.Generator:
    """Random numbers that depend on nothing but the values given."""
    return np.random.default_rng(int.from_bytes(digest(*what)))
