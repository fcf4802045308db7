"""Selection: LDS from stored scores, an exact threshold a category, and the selected files.

Needs no GPU and no corpus: the narrow score columns are read first, whole rows only to be written.
The columns lie in partitions, here or on Ray (`longattn.partitions`); sums and the cut are exact
(`longattn.exact`), so the answer depends neither on where nor on the layout of the files. `ranked`
and `kept` say the same of one table in memory, for who checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import Keep, Select
from longattn.cuts import Order, find_cuts, spans
from longattn.exact import Cut, Floats, Ints, keys
from longattn.lds import Scale, Standard, Standardize, long_distance_scores, moments
from longattn.overlap import distinct_scores, unique_tokens
from longattn.partitions import Handle, On, Place, placed
from longattn.scores import (
    Scores,
    by_category,
    ds_du,
    estimated_rows,
    gather,
    merged,
    moments_by_category,
)
from longattn.second_pass import fitted, look
from longattn.selected import write_selected
from longattn.storage.files import absolute, join, list_files, parallel, write_json
from longattn.storage.output_folder import FOLDER
from longattn.storage.tables import EXACT, open_parquet

RankBy = Literal["lds", "recurrence", "recurrence_rarity", "recurrence_pairs"]
Overlap = Literal["allow", "prefer_distinct"]


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
    second_pass: float | None = None,
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
        second_pass: of estimated windows: how likely exact scores of all, standardised as the
            drawn ones tell, may select others (`longattn.second_pass`). Means, deviations and the
            threshold told are then those, and `lds` is fitted where a window has no exact scores.
        file_bytes: aimed size of a selected file.
        on: `local`, in threads here with the score columns in the temporary folder (160 bytes a
            window); `ray`, in tasks on the cluster that is connected to or that RAY_ADDRESS names,
            or one started here; `auto`: on Ray where the columns would take more than half of this
            machine's memory. The files are the same.

    Raises:
        ValueError: no labelled windows, scores of different settings in one folder, scores that
            are not finite, windows without the column to rank by, or, for `second_pass`, windows
            that want exact scores first.
    """
    keep = Keep.model_validate({"fraction": 0.5} if keep is None else keep)
    settings = Select(
        alpha=alpha, standardize=standardize, rank_by=rank_by, overlap=overlap, keep=keep,
        second_pass=second_pass,
    )  # fmt: skip
    path = absolute(path)
    stored = settings.model_dump(mode="json", exclude_none=True)
    with _gathered(path, settings, on) as (place, scores, sizes):
        handles, kept_rows, result = _select(place, scores, settings, path)
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


def undecided(path: str, settings: Select, on: On = "auto") -> dict[str, list[int]]:
    """Rows of labelled files that want exact scores before `second_pass` can select."""
    with _gathered(absolute(path), settings, on) as (place, scores, sizes):
        wanted = look(place, scores, settings).wanted
        return {url: wanted[file] for file, url in enumerate(sizes) if file in wanted}


def unscored(path: str, rows: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Of rows that were to get exact scores, by file below `labelled`, those of the files left."""

    def left(name: str) -> bool:
        url = join(absolute(path), "labelled", name)
        try:
            with open_parquet(url) as parquet:
                scores = parquet.read(columns=[EXACT[0]])[EXACT[0]]
        except FileNotFoundError:
            return False
        return bool(scores.take(rows[name]).null_count)

    return {
        join(absolute(path), "labelled", name): rows[name]
        for name, here in zip(rows, parallel(left, rows), strict=True)
        if here
    }


@contextmanager
def _gathered(
    path: str, settings: Select, on: On
) -> Iterator[tuple[Place, Scores, dict[str, int]]]:
    """A place with the scores, and the labelled files with their sizes."""
    sizes = list_files(join(path, "labelled"), ".parquet")
    if not sizes:
        raise ValueError(f"{join(path, 'labelled')}: no labelled windows to select from")
    rows = estimated_rows(sizes)
    further: list[str] = [] if settings.rank_by == "lds" else [settings.rank_by]
    further += [] if settings.second_pass is None else EXACT
    with placed(on, rows) as place:
        yield place, gather(place, path, sizes, rows, further), sizes


def _select(
    place: Place, scores: Scores, settings: Select, path: str
) -> tuple[list[Handle], dict[str, Ints], dict[str, CategorySelection]]:
    """Partitions of the kept rows, how many of them each file has by category, and what they are."""
    if settings.second_pass is None:
        handles, order, found = _ranked(place, scores, settings)
        cuts = find_cuts(place, handles, scores, order, settings.keep)
    else:
        looked = look(place, scores, settings)
        if looked.wanted:
            n = sum(map(len, looked.wanted.values()))
            raise ValueError(
                f"{path}: {n} windows want exact scores first: `longattn run` gives them"
            )
        handles, found, cuts = looked.handles, looked.found, looked.cuts
        order = Order({}, "lds")
    handles, told = place.update((partial(_keep, order=order, cuts=cuts), h) for h in handles)
    files = len(scores.row_bytes)
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
            ds_mean=ds,
            ds_std=ds_std,
            du_mean=du,
            du_std=du_std,
            lds_threshold=total[category].lowest if total[category].rows else None,
        )
    return handles, kept_rows, result


def _ranked(
    place: Place, scores: Scores, settings: Select
) -> tuple[list[Handle], Order, dict[tuple[str, str], tuple[float, float]]]:
    """The partitions, their order, and mean and deviation of `ds` and `du` by category."""
    handles = scores.handles
    of_all = moments_by_category(place, handles, ds_du)
    found = {key: (totals.mean, deviation) for key, (totals, deviation) in of_all.items()}
    scales = {key: Scale.of(*of, settings.standardize) for key, of in of_all.items()}
    standards = {
        category: Standard(scales[category, "ds"], scales[category, "du"], settings.alpha)
        for category in scores.categories
    }
    order = Order(standards, None if settings.rank_by == "lds" else settings.rank_by)
    if settings.overlap == "prefer_distinct":
        spreads = moments_by_category(place, handles, order.columns)
        deviations = {category: deviation for (category, _), (_, deviation) in spreads.items()}
        handles, _ = place.update(
            (partial(_with_worth, order=order, deviations=deviations), handle) for handle in handles
        )
        order = Order(standards, "worth")
    return handles, order, found


# --- on one partition ----------------------------------------------------------------------------


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


def _with_worth(
    table: pa.Table, order: Order, deviations: Mapping[str, float]
) -> tuple[pa.Table, None]:
    """With the column `worth`: the order's value less what `prefer_distinct` takes off."""
    worth = [np.empty(0)]
    for category, rows in by_category(table):
        by_id = pc.sort_indices(rows["data_id"]).to_numpy()
        value, document, start, stop = (x[by_id] for x in (order.of(category, rows), *spans(rows)))
        own = np.empty(len(rows))
        own[by_id] = distinct_scores(value, document, start, stop, deviations[category])
        worth.append(own)
    return table.append_column("worth", pa.array(np.concatenate(worth))), None


def _keep(
    table: pa.Table, order: Order, cuts: Mapping[str, Cut]
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
        document, start, stop = (x[inside] for x in spans(rows))
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
    if settings.second_pass is not None:
        lds = fitted(rows, settings)
        return lds, lds
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
