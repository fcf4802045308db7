"""Selection: LDS from stored scores, an exact threshold a category, and the selected files.

Needs no GPU and no corpus: the narrow score columns are read first, whole rows only to be written.
The columns lie in partitions, here or on Ray (`longattn.partitions`); sums and the cut are exact
(`longattn.exact`), so the answer depends neither on where nor on the layout of the files. `ranked`
and `kept` say the same of one table in memory, for who checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from longattn.config import Keep, Select
from longattn.exact import FEW, Cut, Floats, Ints, Totals, Words, exact_sum, keys
from longattn.ledger import FOLDER
from longattn.overlap import distinct_scores, unique_tokens
from longattn.partitions import Handle, On, Place, placed
from longattn.scores import (
    Scores,
    by_category,
    estimated_rows,
    gather,
    merged,
    moments_by_category,
)
from longattn.selected import write_selected
from longattn.storage import absolute, join, list_files, write_json

Standardize = Literal["zscore", "minmax"]
RankBy = Literal["lds", "recurrence", "recurrence_rarity", "recurrence_pairs"]
Overlap = Literal["allow", "prefer_distinct"]


def long_distance_scores(
    ds: ArrayLike, variance: ArrayLike, alpha: float = 0.5, standardize: Standardize = "zscore"
) -> Floats:
    """LDS of the windows of one category (Eq. 8): standardised DS + alpha * standardised DU.

    DU = -variance. `zscore` uses the population deviation, as the windows are all there are;
    `minmax` scales to 0..1, as the authors' code does. A constant column counts as all zero.

    Args:
        ds, variance: (n,) floats.
        alpha: weight of DU.

    Returns:
        (n,) float64.

    Raises:
        ValueError: not one-dimensional, of different lengths, not finite, or `standardize` unknown.
    """
    ds = np.asarray(ds, dtype=np.float64)
    du = -np.asarray(variance, dtype=np.float64)
    if ds.ndim != 1 or ds.shape != du.shape:
        raise ValueError(
            f"ds {ds.shape} and variance {du.shape}: two 1-D arrays of one length wanted"
        )
    if not (np.isfinite(ds).all() and np.isfinite(du).all()):
        raise ValueError("ds and variance must be finite")
    if standardize not in ("zscore", "minmax"):
        raise ValueError(f"standardize {standardize!r}: zscore or minmax is allowed")
    of_ds, of_du = (Scale.of(Totals.of(x), moments(x)[1], standardize) for x in (ds, du))
    return Standard(of_ds, of_du, alpha).lds(ds, -du)


def moments(x: Floats) -> tuple[float, float]:
    """Mean and population deviation, each sum exactly rounded, so independent of order."""
    totals = Totals.of(x)
    return totals.mean, totals.deviation(exact_sum((x - totals.mean) ** 2))


@dataclass(frozen=True)
class Scale:
    """(x - origin) / unit; a constant column counts as all zero."""

    origin: float
    unit: float

    @classmethod
    def of(cls, totals: Totals, deviation: float, standardize: Standardize) -> Scale:
        if totals.low >= totals.high:  # a rounded mean would give a deviation above zero
            return cls(0, 0)
        if standardize == "zscore":
            return cls(totals.mean, deviation)
        return cls(totals.low, totals.high - totals.low)

    def __call__(self, x: Floats) -> Floats:
        return (x - self.origin) / self.unit if self.unit else np.zeros_like(x)


@dataclass(frozen=True)
class Standard:
    """What LDS of a category is made with."""

    ds: Scale
    du: Scale
    alpha: float

    def lds(self, ds: Floats, variance: Floats) -> Floats:
        return self.ds(ds) + self.alpha * self.du(-variance)


@dataclass(frozen=True)
class CategorySelection:
    """What was kept of one category."""

    windows: int
    duplicate_rows: int  # rows whose data_id another row has too; counted, used once
    kept: int
    kept_tokens: int
    unique_tokens: int  # of the kept, each token of a document once
    ds_mean: float
    ds_std: float
    du_mean: float
    du_std: float
    lds_threshold: float | None  # lowest LDS of the windows kept; None when none is

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def select(
    path: str,
    *,
    alpha: float = 0.5,
    standardize: Standardize = "zscore",
    rank_by: RankBy = "lds",
    overlap: Overlap = "allow",
    keep: Keep | dict[str, float | int | str] | None = None,
    file_bytes: int = 512 * 2**20,
    on: On = "auto",
) -> dict[str, CategorySelection]:
    """Select from `<path>/labelled` into `<path>/selected`, by category.

    A second call with the same settings rewrites nothing; with other settings it replaces the
    selected files. Exact, and the same set whatever the layout of the labelled files.

    Args:
        path: the output folder of a run.
        rank_by: what the windows are ordered by.
        overlap: `prefer_distinct` orders them as `longattn.overlap` says.
        keep: `{"fraction": 0.5}`, `{"tokens": "1.5B"}` or `{"count": 1000}`; default half.
        file_bytes: aimed size of a selected file.
        on: `local`, in threads here with the score columns in the temporary folder (160 bytes a
            window); `ray`, in tasks on the cluster that is connected to or that RAY_ADDRESS names,
            or one started here; `auto`: on Ray where the columns would take more than half of this
            machine's memory. The files are the same.

    Raises:
        ValueError: no labelled windows, scores of different settings in one folder, scores that
            are not finite, or windows without the column to rank by.
    """
    keep = Keep.model_validate({"fraction": 0.5} if keep is None else keep)
    path = absolute(path)
    settings = Select(
        alpha=alpha, standardize=standardize, rank_by=rank_by, overlap=overlap, keep=keep
    )
    sizes = list_files(join(path, "labelled"), ".parquet")
    if not sizes:
        raise ValueError(f"{join(path, 'labelled')}: no labelled windows to select from")
    stored = settings.model_dump(mode="json", exclude_none=True)
    rows = estimated_rows(sizes)
    with placed(on, rows) as place:
        scores = gather(place, path, sizes, rows, [] if rank_by == "lds" else [rank_by])
        handles, kept_rows, result = _select(place, scores, settings, len(sizes))
        urls = write_selected(
            place,
            handles,
            kept_rows,
            (list(sizes), scores.row_bytes, file_bytes),
            join(path, "selected"),
            {"fingerprint": scores.fingerprint, "select": stored},
        )
    write_json(
        join(path, FOLDER, "selection.json"),
        {"select": stored, "files": urls, "categories": {c: s.to_dict() for c, s in result.items()}},
    )  # fmt: skip
    return result


def _select(
    place: Place, scores: Scores, settings: Select, files: int
) -> tuple[list[Handle], dict[str, Ints], dict[str, CategorySelection]]:
    """Partitions of the kept rows, how many of them each file has by category, and what they are."""
    handles = scores.handles
    found = moments_by_category(place, handles, _ds_du)
    scales = {key: Scale.of(*of, settings.standardize) for key, of in found.items()}
    standards = {
        category: Standard(scales[category, "ds"], scales[category, "du"], settings.alpha)
        for category in scores.categories
    }
    order = _Order(standards, None if settings.rank_by == "lds" else settings.rank_by)
    if settings.overlap == "prefer_distinct":
        spreads = moments_by_category(place, handles, order.columns)
        deviations = {category: deviation for (category, _), (_, deviation) in spreads.items()}
        handles, _ = place.update(
            (partial(_with_worth, order=order, deviations=deviations), handle) for handle in handles
        )
        order = _Order(standards, "worth")
    cuts = _cuts(place, handles, scores, order, settings.keep)
    handles, told = place.update((partial(_keep, order=order, cuts=cuts), h) for h in handles)
    kept_rows = {category: np.zeros(files, np.int64) for category in scores.categories}
    for piece in told:
        for category, (_, own, number) in piece.items():
            kept_rows[category][own] += number
    total = merged({category: some for category, (some, _, _) in piece.items()} for piece in told)
    result = {}
    for category, counted in scores.categories.items():
        (ds, ds_std), (du, du_std) = found[category, "ds"], found[category, "du"]
        result[category] = CategorySelection(
            windows=counted.windows,
            duplicate_rows=counted.duplicate_rows,
            kept=total[category].rows,
            kept_tokens=total[category].tokens,
            unique_tokens=total[category].unique_tokens,
            ds_mean=ds.mean,
            ds_std=ds_std,
            du_mean=du.mean,
            du_std=du_std,
            lds_threshold=total[category].lowest if total[category].rows else None,
        )
    return handles, kept_rows, result


def _cuts(
    place: Place, handles: Sequence[Handle], scores: Scores, order: _Order, keep: Keep
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


@dataclass(frozen=True)
class _Order:
    """What the windows of each category are ranked by."""

    standards: Mapping[str, Standard]
    column: str | None  # in place of LDS

    def lds(self, category: str, rows: pa.Table) -> Floats:
        return self.standards[category].lds(rows["ds"].to_numpy(), rows["variance"].to_numpy())

    def of(self, category: str, rows: pa.Table) -> Floats:
        return rows[self.column].to_numpy() if self.column else self.lds(category, rows)

    def columns(self, category: str, rows: pa.Table) -> dict[str, Floats]:
        return {"order": self.of(category, rows)}


@dataclass(frozen=True)
class _Kept:
    """Of the kept windows of one category."""

    rows: int
    tokens: int
    unique_tokens: int
    lowest: float  # LDS; infinite where there is none

    def __add__(self, other: _Kept) -> _Kept:
        return _Kept(
            self.rows + other.rows,
            self.tokens + other.tokens,
            self.unique_tokens + other.unique_tokens,
            min(self.lowest, other.lowest),
        )


def _ds_du(_: str, rows: pa.Table) -> dict[str, Floats]:
    return {"ds": rows["ds"].to_numpy(), "du": -rows["variance"].to_numpy()}


def _with_worth(
    table: pa.Table, order: _Order, deviations: Mapping[str, float]
) -> tuple[pa.Table, None]:
    """With the column `worth`: the order's value less what `prefer_distinct` takes off."""
    worth = [np.empty(0)]
    for category, rows in by_category(table):
        by_id = pc.sort_indices(rows["data_id"]).to_numpy()
        value, document, start, stop = (x[by_id] for x in (order.of(category, rows), *_spans(rows)))
        own = np.empty(len(rows))
        own[by_id] = distinct_scores(value, document, start, stop, deviations[category])
        worth.append(own)
    return table.append_column("worth", pa.array(np.concatenate(worth))), None


def _spans(rows: pa.Table) -> tuple[Ints, ...]:
    return tuple(rows[name].to_numpy() for name in ("document", "start", "stop"))


def _placed_rows(
    table: pa.Table, order: _Order, cuts: Mapping[str, Cut], by_tokens: bool
) -> Iterator[tuple[str, tuple[Words, pa.StringArray, Ints]]]:
    """Keys, ids and weights of the windows of each category that has a cut."""
    for category, rows in by_category(table):
        if category in cuts:
            _, start, stop = _spans(rows)
            weights = stop - start if by_tokens else np.ones(len(rows), np.int64)
            yield category, (keys(order.of(category, rows)), rows["data_id"].chunk(0), weights)


def _histograms(
    table: pa.Table, order: _Order, cuts: Mapping[str, Cut], by_tokens: bool
) -> dict[str, tuple[Ints, Ints, Ints]]:
    placed_rows = _placed_rows(table, order, cuts, by_tokens)
    return {category: cuts[category].histogram(*rows) for category, rows in placed_rows}


def _undecided(
    table: pa.Table, order: _Order, cuts: Mapping[str, Cut], by_tokens: bool
) -> dict[str, list[tuple[int, str, int]]]:
    placed_rows = _placed_rows(table, order, cuts, by_tokens)
    return {category: cuts[category].undecided(*rows) for category, rows in placed_rows}


def _keep(
    table: pa.Table, order: _Order, cuts: Mapping[str, Cut]
) -> tuple[pa.Table, dict[str, tuple[_Kept, Ints, Ints]]]:
    """The kept rows with their LDS; what they are, and how many each file has, by category."""
    within = np.zeros(len(table), bool)
    lds = np.empty(len(table))
    told = {}
    at = 0
    for category, rows in by_category(table):
        here = slice(at, at + len(rows))
        at += len(rows)
        key = keys(order.of(category, rows))
        inside = within[here] = cuts[category].within(key, rows["data_id"].chunk(0))
        lds[here] = order.lds(category, rows)
        document, start, stop = (x[inside] for x in _spans(rows))
        kept = _Kept(
            len(document),
            int((stop - start).sum()),
            unique_tokens(document, start, stop),
            float(lds[here][inside].min(initial=np.inf)),
        )
        told[category] = (kept, *np.unique(rows["file"].to_numpy()[inside], return_counts=True))
    table = table.select(["data_id", "category", "file", "row"]).append_column("lds", pa.array(lds))
    return table.filter(pa.array(within)), told


# --- on one table in memory ----------------------------------------------------------------------


def ranked(rows: pa.Table, settings: Select) -> tuple[Floats, Floats]:
    """LDS of the windows of one category, in order of data_id, and what they are ranked by.

    Raises ValueError where a window lacks the column that `rank_by` names.
    """
    ds, variance = rows["ds"].to_numpy(), rows["variance"].to_numpy()
    lds = long_distance_scores(ds, variance, settings.alpha, settings.standardize)
    order_by = lds
    if settings.rank_by != "lds":
        if rows[settings.rank_by].null_count:
            raise ValueError(f"select.rank_by: some windows have no {settings.rank_by}")
        order_by = rows[settings.rank_by].to_numpy()
    if settings.overlap == "prefer_distinct":
        document = pc.coalesce(rows["document_id"], rows["data_id"]).to_numpy()
        start, stop = rows["token_start"].to_numpy(), rows["token_stop"].to_numpy()
        order_by = distinct_scores(order_by, document, start, stop, moments(order_by)[1])
    return lds, order_by


def kept(lds: Floats, tokens: Ints, keep: Keep) -> Ints:
    """Positions of the kept windows, best first.

    Args:
        lds: (n,) in order of data_id, which breaks ties.
        tokens: (n,) tokens a window.
        keep: a fraction of the windows (rounded, halves up), a count, or the most whole windows
            that a budget of tokens buys, best first.
    """
    order = np.argsort(-lds, kind="stable")
    if keep.fraction is not None:
        return order[: math.floor(keep.fraction * len(lds) + 0.5)]
    if keep.count is not None:
        return order[: keep.count]
    bought = np.cumsum(tokens[order]) <= (keep.tokens or 0)
    return order[: bought.sum()]
