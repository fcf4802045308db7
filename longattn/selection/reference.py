"""The whole selection on one table in NumPy: what `select_windows` gives at any size."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import Keep, Select
from longattn.selection.lds import Floats, long_distance_scores, moments
from longattn.selection.overlap import Ints, distinct_scores


def selected(labelled: pa.Table, select: Select) -> dict[str, float]:
    """`data_id` -> LDS of the kept windows. Of rows with one id in a category the first counts."""
    kept: dict[str, float] = {}
    categories = labelled["category"].cast(pa.string())
    for category in pc.unique(categories).to_pylist():
        rows = labelled.filter(pc.equal(categories, category))
        _, first = np.unique(np.array(rows["data_id"].to_pylist(), object), return_index=True)
        rows = rows.take(pa.array(first))  # by data_id
        lds, value = ranked(rows, select)
        tokens = rows["token_stop"].to_numpy() - rows["token_start"].to_numpy()
        best = within(value, tokens, select.keep)
        kept |= dict(zip(rows["data_id"].take(pa.array(best)).to_pylist(), lds[best], strict=True))
    return kept


def ranked(rows: pa.Table, select: Select) -> tuple[Floats, Floats]:
    """LDS (Eq. 8) of the windows of one category, by data_id, and the values that rank them."""
    lds = long_distance_scores(
        rows["ds"].to_numpy(), rows["variance"].to_numpy(), select.alpha, select.standardize
    )
    value = lds if select.rank_by == "lds" else rows[select.rank_by].to_numpy()
    if select.overlap == "prefer_distinct":
        document = pc.coalesce(rows["document_id"], rows["data_id"]).to_numpy()
        start, stop = rows["token_start"].to_numpy(), rows["token_stop"].to_numpy()
        value = distinct_scores(value, document, start, stop, moments(value)[1])
    return lds, value


def within(value: Floats, tokens: Ints, keep: Keep) -> Ints:
    """Positions of the kept windows, best first; equal values in the order given."""
    order = np.argsort(-value, kind="stable")
    if keep.fraction is not None:
        return order[: math.floor(keep.fraction * len(value) + 0.5)]
    if keep.count is not None:
        return order[: keep.count]
    return order[np.cumsum(tokens[order]) <= (keep.tokens or 0)]
