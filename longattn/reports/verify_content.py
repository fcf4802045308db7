"""Whether the text of a window and its ids are of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from longattn.windows.tokenizer import DocumentTokenizer

EDGES = (64, 8, 3)  # ids at either end that may be others: 64, an eighth, a third of the window


def content_findings(row: dict[str, Any], decoder: Tokenizer) -> Iterator[str]:
    """A finding where content is not what the ids decode to, a character cut by an edge left out."""
    decoded = decoder.decode(row["input_ids"], skip_special_tokens=False)
    text = row["content"].strip("\ufffd")
    if decoded.strip("\ufffd") not in (text, text.removeprefix(" ")):
        yield f"content {row['data_id']}: content is not what its ids decode to"


def ids_of_text_differ(ids: NDArray[np.int32], content: str, tokenizer: DocumentTokenizer) -> bool:
    """Whether content tokenizes to other ids, but for those near the edges, where the text was cut.

    Only where ids far from a cut do not depend on it, as `DocumentTokenizer` proves of its fast ones.
    """
    again = tokenizer.encode(content).ids
    if np.array_equal(again, ids):
        return False
    first, eighth, third = EDGES
    for edge in sorted({min(first, len(ids) // third), len(ids) // eighth, len(ids) // third}):
        core = ids[edge : len(ids) - edge]
        if _is_part(core, again):
            return False
    return True


def _is_part(core: NDArray[np.int32], ids: NDArray[np.int32]) -> bool:
    if not len(core):
        return True
    starts = (
        np.flatnonzero(ids[: len(ids) - len(core) + 1] == core[0]) if len(ids) >= len(core) else ()
    )
    return any(np.array_equal(ids[start : start + len(core)], core) for start in starts)
