"""The windows of a document (Algorithm 1 of the paper), as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from longattn.config import Sample
from longattn.corpus.columns import arrow_type
from longattn.corpus.counts import Counts
from longattn.storage.tables import INTERNAL, WINDOWS
from longattn.windows.ids import document_id, is_sampled
from longattn.windows.recurrence import far_recurrence
from longattn.windows.tokenizer import DocumentTokenizer, TokenizedDocument

Claim = Callable[[str, str], bool]
WindowRow = dict[str, Any]
"""A window on its way to a table: the columns of storage.WINDOWS, and the user's own."""

# Columns between the stages: the sink takes them off, and puts what they say into a file's footer.
INTERNAL_COLUMNS = [(name, pa.string()) for name in INTERNAL]


def sliding_windows(n_tokens: int, window: int) -> list[tuple[int, int]]:
    """The windows of a document as (start, stop) in its own ids, in order of start.

    Algorithm 1: none when shorter than a window; two (front and back, overlapping) up to twice its
    length; front, middle and back up to three times; beyond that, front and back are taken off and
    what is left between is cut the same way. A document of exactly one window gives that window.

    Raises:
        ValueError: a window below 1 or a negative length.
    """
    if window < 1 or n_tokens < 0:
        raise ValueError(
            f"sliding_windows({n_tokens}, {window}): window >= 1, n_tokens >= 0 wanted"
        )
    if n_tokens < window:
        return []
    left, right = 0, n_tokens
    starts = []
    while right - left > 3 * window:
        starts += [left, right - window]
        left, right = left + window, right - window
    starts.append(left)
    if right - left > 2 * window:
        starts.append(left + (right - left - window) // 2)
    if right - left > window:
        starts.append(right - window)
    return [(start, start + window) for start in sorted(starts)]


class WindowCutter:
    """Cuts documents into rows of windows.

    Args:
        tokenizer: the scoring checkpoint's own.
        window: tokens a window.
        min_distance: of the far recurrence, in tokens.
        samples: of each category that is sampled, its setting.
    """

    def __init__(
        self,
        tokenizer: DocumentTokenizer,
        window: int,
        min_distance: int,
        samples: Mapping[str, Sample | None],
    ) -> None:
        self.tokenizer, self.window, self.samples = tokenizer, window, samples
        self.min_distance = min_distance
        self.shortest = tokenizer.min_bytes_for(window)

    def cut(
        self,
        text: bytes,
        category: str,
        source: str,
        counts: Counts,
        seen: set[tuple[str, str]],
        claim: Claim | None = None,
    ) -> Iterator[WindowRow]:
        """The windows of one document as rows of storage.WINDOWS.

        `seen` holds ids already cut; `claim` of category and document id says whether this one is
        for us, before it is tokenized.

        Raises ValueError, before the first row, when the tokenizer fails on the text.
        """
        counts.documents += 1
        counts.bytes += len(text)
        if len(text) < self.shortest:
            counts.too_short += 1
            return iter(())
        document = document_id(text)
        if (category, document) in seen:
            counts.duplicates += 1
            return iter(())
        if claim is not None and not claim(category, document):
            seen.add((category, document))
            counts.duplicates += 1
            return iter(())
        tokenized = self.tokenizer.encode(text)
        counts.tokens += len(tokenized.ids)
        if len(tokenized.ids) < self.window:
            counts.too_short += 1
            return iter(())
        seen.add((category, document))
        counts.inexact += not tokenized.exact
        return self._rows(tokenized, document, category, source, counts)

    def _rows(
        self,
        tokenized: TokenizedDocument,
        document: str,
        category: str,
        source: str,
        counts: Counts,
    ) -> Iterator[WindowRow]:
        spans = sliding_windows(len(tokenized.ids), self.window)
        for index, (start, stop) in enumerate(spans):
            data_id = f"{category}-{document}-{index}"
            if not is_sampled(data_id, self.samples.get(category)):
                counts.sampled_out += 1
                continue
            counts.windows += 1
            ids = tokenized.ids[start:stop]
            yield {
                "data_id": data_id,
                "content": tokenized.text(start, stop),
                "input_ids": ids,
                "category": category,
                "source": source,
                "document_id": document,
                "window_index": index,
                "token_start": start,
                "token_stop": stop,
                **far_recurrence(ids, self.min_distance)._asdict(),
            }


def window_table(
    rows: Sequence[WindowRow],
    splits: Sequence[str] = (),
    carried: Mapping[str, str] | None = None,
) -> pa.Table:
    """Rows of `WindowCutter.cut` as an Arrow table, the ids never as Python integers.

    `splits` names the split of each row, for the footer of the labelled file; `carried` the user's
    columns in the rows, with their types, null where a row has none.
    """
    columns: dict[str, Any] = {
        name: [row[name] for row in rows] for name in WINDOWS.names if name != "input_ids"
    }
    ids = [row["input_ids"] for row in rows]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    values = np.concatenate(ids) if ids else np.empty(0, np.int32)
    columns["input_ids"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    columns |= {name: [""] * len(rows) for name in INTERNAL}
    columns |= {"split": splits or columns["split"]}
    extra = {name: arrow_type(kind) for name, kind in (carried or {}).items()}
    columns |= {name: [row.get(name) for row in rows] for name in extra}
    return pa.table(columns, schema=pa.schema([*WINDOWS, *extra.items(), *INTERNAL_COLUMNS]))
