"""Where the budget of each category ends, in the order of LDS or of another column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from longattn.config import Keep
from longattn.exact import FEW, Cut, Floats, Ints, Words, keys
from longattn.lds import Standard
from longattn.partitions import Handle, Place
from longattn.scores import Scores, by_category, merged


@dataclass(frozen=True)
class Order:
    """What the windows of each category are ranked by."""

    standards: Mapping[str, Standard]
    column: str | None  # in place of LDS

    def lds(self, category: str, rows: pa.Table) -> Floats:
        if "lds" in rows.column_names:  # exact, or fitted by a second pass
            return rows["lds"].to_numpy()
        return self.standards[category].lds(rows["ds"].to_numpy(), rows["variance"].to_numpy())

    def of(self, category: str, rows: pa.Table) -> Floats:
        return rows[self.column].to_numpy() if self.column else self.lds(category, rows)

    def columns(self, category: str, rows: pa.Table) -> dict[str, Floats]:
        return {"order": self.of(category, rows)}


def find_cuts(
    place: Place, handles: Sequence[Handle], scores: Scores, order: Order, keep: Keep
) -> dict[str, Cut]:
    """Where the budget of each category ends."""
    by_tokens = keep.tokens is not None
    cuts = {category: Cut(_budget(keep, of.windows)) for category, of in scores.categories.items()}
    at = {category: of.windows for category, of in scores.categories.items()}
    depth = {category: 1 + math.ceil(of.longest / 8) for category, of in scores.categories.items()}
    while wide := {
        category: cut
        for category, cut in cuts.items()
        if at[category] > FEW and len(cut.words) < depth[category]
    }:
        sums = {category: cut.nothing() for category, cut in wide.items()}
        count = partial(_histograms, order=order, cuts=wide, by_tokens=by_tokens)
        for told in place.each((count, handle) for handle in handles):
            for category, (bins, weights, rows) in told.items():
                sums[category][0][bins] += weights
                sums[category][1][bins] += rows
        for category, cut in wide.items():
            cuts[category], at[category] = cut.narrowed(*sums[category])
    open_ = {category: cut for category, cut in cuts.items() if not cut.all}
    collect = partial(_undecided, order=order, cuts=open_, by_tokens=by_tokens)
    found = merged(place.each((collect, handle) for handle in handles))
    return cuts | {category: cut.decided(found[category]) for category, cut in open_.items()}


def _budget(keep: Keep, windows: int) -> int:
    if keep.fraction is not None:
        return math.floor(keep.fraction * windows + 0.5)
    return keep.count or keep.tokens or 0


# --- on one partition ----------------------------------------------------------------------------


def spans(rows: pa.Table) -> tuple[Ints, ...]:
    return tuple(rows[name].to_numpy() for name in ("document", "start", "stop"))


def _placed_rows(
    table: pa.Table, order: Order, cuts: Mapping[str, Cut], by_tokens: bool
) -> Iterator[tuple[str, tuple[Words, pa.StringArray, Ints]]]:
    """Keys, ids and weights of the windows of each category that has a cut."""
    for category, rows in by_category(table):
        if category in cuts:
            _, start, stop = spans(rows)
            weights = stop - start if by_tokens else np.ones(len(rows), np.int64)
            yield category, (keys(order.of(category, rows)), rows["data_id"].chunk(0), weights)


def _histograms(
    table: pa.Table, order: Order, cuts: Mapping[str, Cut], by_tokens: bool
) -> dict[str, tuple[Ints, Ints, Ints]]:
    placed_rows = _placed_rows(table, order, cuts, by_tokens)
    return {category: cuts[category].histogram(*rows) for category, rows in placed_rows}


def _undecided(
    table: pa.Table, order: Order, cuts: Mapping[str, Cut], by_tokens: bool
) -> dict[str, list[tuple[int, str, int]]]:
    placed_rows = _placed_rows(table, order, cuts, by_tokens)
    return {category: cuts[category].undecided(*rows) for category, rows in placed_rows}
