"""The whole selection on one table in NumPy: what `select_windows` gives at any size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import Keep, Select
from longattn.selection.lds import Floats, long_distance_scores, moments
from longattn.selection.overlap import Ints, distinct_scores


def selected(
    labelled: pa.Table,
    select: Select,
    columns: Mapping[str, Sequence[float | None]] | None = None,
    heads: Sequence[tuple[Sequence[float], Sequence[float]] | None] | None = None,
) -> dict[str, float]:
    """`data_id` -> LDS of the kept windows. Of rows with one id in a category the first counts.

    Args:
        labelled: rows, in order of file and row.
        select: the settings; `heads` are all or given.
        columns: of score tables, a value a row.
        heads: of a row DS and variance of each of the deeper heads that LDS is of, or None; where
            `select.heads` names some.
    """
    kept: dict[str, float] = {}
    for name, values in (columns or {}).items():
        labelled = labelled.append_column(name, pa.array(values, pa.float64()))
    if select.heads_of_score:
        labelled = with_means(labelled, heads or [])
    categories = labelled["category"].cast(pa.string())
    for category in pc.unique(categories).to_pylist():
        rows = labelled.filter(pc.equal(categories, category))
        _, first = np.unique(np.array(rows["data_id"].to_pylist(), object), return_index=True)
        rows = rows.take(pa.array(first))  # by data_id
        rows = rows.append_column("lds", pa.array(long_distance(rows, select), from_pandas=True))
        keep, inside = select.keep_of(category), allowed(rows, select, category)
        budget = budget_of(keep, len(rows))
        rows = rows.filter(pa.array(inside))
        value = worth(rows, select)
        if select.per_document:
            best = first_of_each(rows, value, select.per_document)
            rows, value = rows.take(pa.array(best)), value[best]
        tokens = rows["token_stop"].to_numpy() - rows["token_start"].to_numpy()
        best = within(value, tokens, keep, budget)
        ids, lds = (rows[name].take(pa.array(best)).to_pylist() for name in ("data_id", "lds"))
        kept |= dict(zip(ids, lds, strict=True))
    return kept


def long_distance(rows: pa.Table, select: Select) -> Floats:
    """LDS (Eq. 8) of the windows of one category, of all or the chosen heads; NaN where there is none."""
    of = "deep_" if select.heads_of_score else ""
    ds, variance = (rows[f"{of}{name}"].to_numpy() for name in ("ds", "variance"))
    if isinstance(select.heads, tuple):
        ds, variance = (
            np.array(
                [
                    sum(float(row[head]) for head in select.heads) / len(select.heads)
                    for row in rows[f"{name}_heads"].to_pylist()
                ]
            )
            for name in ("ds", "variance")
        )
    lds = np.full(len(rows), np.nan)
    there = ~np.isnan(ds)
    lds[there] = long_distance_scores(ds[there], variance[there], select.alpha, select.standardize)
    return lds


def with_means(
    labelled: pa.Table, heads: Sequence[tuple[Sequence[float], Sequence[float]] | None]
) -> pa.Table:
    """The rows with means of deeper heads, `deep_ds` and `deep_variance`, NaN where a window has none."""
    for i, name in enumerate(("deep_ds", "deep_variance")):
        means = [np.nan if of is None else sum(of[i]) / len(of[i]) for of in heads]
        labelled = labelled.append_column(name, pa.array(means, pa.float64()))
    return labelled


def allowed(rows: pa.Table, select: Select, category: str) -> list[bool]:
    """Whether all bounds of the category hold, of each window by data_id."""
    inside = [value is not None for value in rows["lds"].to_pylist()]
    if select.rank_by != "lds":
        inside = [
            ok and value is not None
            for ok, value in zip(inside, rows[select.rank_by].to_pylist(), strict=True)
        ]
    for bound in select.where_of(category):
        values = rows[bound.column].to_pylist()
        there = sorted((value, i) for i, value in enumerate(values) if value is not None)
        low, high = (math.floor(q * len(there) + 0.5) for q in bound.quantiles or (0, 1))
        between = {i for _, i in there[low:high]}
        inside = [
            ok
            and i in between
            and (bound.min is None or value >= bound.min)
            and (bound.max is None or value <= bound.max)
            for i, (ok, value) in enumerate(zip(inside, values, strict=True))
        ]
    return inside


def worth(rows: pa.Table, select: Select) -> Floats:
    """The values that rank the windows."""
    value: Floats = rows[select.rank_by].to_numpy()
    if select.overlap == "prefer_distinct":
        document = pc.coalesce(rows["document_id"], rows["data_id"]).to_numpy()
        start, stop = rows["token_start"].to_numpy(), rows["token_stop"].to_numpy()
        value = distinct_scores(value, document, start, stop, moments(value)[1])
    return value


def first_of_each(rows: pa.Table, value: Floats, most: int) -> Ints:
    """Positions of the best windows of each document, at most so many, in order of data_id."""
    document = pc.coalesce(rows["document_id"], rows["data_id"]).to_pylist()
    seen: Counter[str] = Counter()
    best = []
    for i in np.argsort(-value, kind="stable").tolist():
        seen[document[i]] += 1
        if seen[document[i]] <= most:
            best.append(i)
    return np.array(sorted(best), np.int64)


def budget_of(keep: Keep, windows: int) -> int:
    """Windows, or tokens, of a category that are kept at most, of so many in all."""
    if keep.fraction is not None:
        return math.floor(keep.fraction * windows + 0.5)
    return keep.count or keep.tokens or 0


def within(value: Floats, tokens: Ints, keep: Keep, budget: int) -> Ints:
    """Positions of the kept windows, best first; equal values in the order given."""
    order = np.argsort(-value, kind="stable")
    if keep.tokens is None:
        return order[:budget]
    return order[np.cumsum(tokens[order]) <= budget]
