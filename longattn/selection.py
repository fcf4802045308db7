"""Selection: LDS from stored scores, an exact threshold a category, and the selected files.

Needs no GPU and no corpus: the narrow score columns are read first, whole rows only to be written.
Sums are exactly rounded (math.fsum), so that the answer does not depend on the layout of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from longattn.config import Keep, Select
from longattn.ledger import FOLDER, parallel
from longattn.overlap import distinct_scores, unique_tokens
from longattn.storage import (
    SELECTED,
    absolute,
    content_name,
    file_metadata,
    join,
    list_files,
    open_parquet,
    parquet_writer,
    remove,
    staged,
    write_json,
)

Standardize = Literal["zscore", "minmax"]
RankBy = Literal["lds", "recurrence", "recurrence_rarity", "recurrence_pairs"]
Overlap = Literal["allow", "prefer_distinct"]
Floats = NDArray[np.float64]


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
    scale = {"zscore": _zscore, "minmax": _minmax}.get(standardize)
    if scale is None:
        raise ValueError(f"standardize {standardize!r}: zscore or minmax is allowed")
    return scale(ds) + alpha * scale(du)


def moments(x: Floats) -> tuple[float, float]:
    """Mean and population deviation, each sum exactly rounded, so independent of order."""
    if not len(x):
        return math.nan, math.nan
    mean = math.fsum(x) / len(x)
    return mean, math.sqrt(math.fsum((x - mean) ** 2) / len(x))


def _zscore(x: Floats) -> Floats:
    if not len(x) or x.min() == x.max():  # a rounded mean would give a deviation above zero
        return np.zeros_like(x)
    mean, deviation = moments(x)
    return (x - mean) / deviation


def _minmax(x: Floats) -> Floats:
    low, high = (x.min(), x.max()) if len(x) else (0.0, 0.0)
    return (x - low) / (high - low) if high > low else np.zeros_like(x)


def kept(lds: Floats, tokens: NDArray[np.int64], keep: Keep) -> NDArray[np.int64]:
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


@dataclass(frozen=True)
class _Part:
    """One selected file to write: of each labelled file, which rows, and their LDS."""

    url: str
    rows: list[tuple[str, NDArray[np.int64], Floats]]
    metadata: dict[str, Any]


def _read_scores(url: str, extra: list[str]) -> pa.Table:
    with open_parquet(url) as parquet:
        columns = [
            "data_id",
            "category",
            "document_id",
            "token_start",
            "token_stop",
            "ds",
            "variance",
        ]
        table = parquet.read(columns=columns + extra)
        fingerprint = file_metadata(parquet).get("fingerprint", "")
    table = table.set_column(1, "category", table["category"].cast(pa.string()))
    table = table.append_column("row", pa.array(np.arange(len(table))))
    return table.replace_schema_metadata({"fingerprint": fingerprint})


def select(
    path: str,
    *,
    alpha: float = 0.5,
    standardize: Standardize = "zscore",
    rank_by: RankBy = "lds",
    overlap: Overlap = "allow",
    keep: Keep | dict[str, float | int | str] | None = None,
    file_bytes: int = 512 * 2**20,
    run: Callable[[Callable[[_Part], None], list[_Part]], object] | None = None,
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
        run: maps a function over the parts to write; default threads here.

    Raises:
        ValueError: no labelled windows, scores of different settings in one folder, or windows
            without the column to rank by.
    """
    keep = Keep.model_validate({"fraction": 0.5} if keep is None else keep)
    path = absolute(path)
    settings = Select(
        alpha=alpha, standardize=standardize, rank_by=rank_by, overlap=overlap, keep=keep
    )
    sizes = list_files(join(path, "labelled"), ".parquet")
    if not sizes:
        raise ValueError(f"{join(path, 'labelled')}: no labelled windows to select from")
    extra: list[str] = [] if rank_by == "lds" else [rank_by]
    tables = parallel(lambda url: _read_scores(url, extra), sizes)
    fingerprints = {t.schema.metadata[b"fingerprint"].decode() for t in tables}
    if len(fingerprints) > 1:
        raise ValueError(f"{path}: labelled files of different settings: {sorted(fingerprints)}")
    scores = pa.concat_tables([t.replace_schema_metadata() for t in tables])
    lengths = [len(t) for t in tables]
    scores = scores.append_column("file", pa.array(np.repeat(np.arange(len(tables)), lengths)))
    scores = scores.sort_by([(key, "ascending") for key in ("category", "data_id", "file", "row")])

    row_bytes = np.array(list(sizes.values())) / np.maximum(1, lengths)
    result: dict[str, CategorySelection] = {}
    parts: list[_Part] = []
    stored = settings.model_dump(mode="json", exclude_none=True)
    metadata = {"fingerprint": fingerprints.pop(), "select": stored}
    for category in scores["category"].unique().to_pylist():
        rows = scores.filter(pa.compute.equal(scores["category"], category))
        chosen, result[category] = _select_category(rows, settings)
        parts += _parts(path, chosen, list(sizes), row_bytes, file_bytes, metadata)
    there = list_files(join(path, "selected"), ".parquet")
    wanted = {part.url for part in parts}
    for url in there.keys() - wanted:
        remove(url)
    missing = [part for part in parts if part.url not in there]
    (run or _threads)(_write_part, missing)
    write_json(
        join(path, FOLDER, "selection.json"),
        {"select": stored, "files": sorted(wanted), "categories": {c: s.to_dict() for c, s in result.items()}},
    )  # fmt: skip
    return result


def _threads(function: Callable[[_Part], None], parts: Iterable[_Part]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(function, parts))


def _select_category(rows: pa.Table, settings: Select) -> tuple[pa.Table, CategorySelection]:
    """The kept rows with their `lds`, in order of file and row, and what was kept. `rows` by data_id."""
    ids = rows["data_id"].to_numpy()
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    duplicates = int((~first).sum())
    rows = rows.filter(pa.array(first)) if duplicates else rows
    ds, variance = rows["ds"].to_numpy(), rows["variance"].to_numpy()
    document, start, stop = _spans(rows)
    tokens = stop - start
    lds, order_by = ranked(rows, settings)
    best = kept(order_by, tokens, settings.keep)
    (ds_mean, ds_std), (du_mean, du_std) = moments(ds), moments(-variance)
    summary = CategorySelection(
        windows=len(rows),
        duplicate_rows=duplicates,
        kept=len(best),
        kept_tokens=int(tokens[best].sum()),
        unique_tokens=unique_tokens(document[best], start[best], stop[best]),
        ds_mean=ds_mean,
        ds_std=ds_std,
        du_mean=du_mean,
        du_std=du_std,
        lds_threshold=float(lds[best].min()) if len(best) else None,
    )
    chosen = rows.append_column("lds", pa.array(lds)).take(pa.array(best))
    return chosen.sort_by([("file", "ascending"), ("row", "ascending")]), summary


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
        order_by = distinct_scores(order_by, *_spans(rows), moments(order_by)[1])
    return lds, order_by


def _spans(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Document, first token and token after the last of each window."""
    document = _numbered(pa.compute.coalesce(rows["document_id"], rows["data_id"]))
    return document, rows["token_start"].to_numpy(), rows["token_stop"].to_numpy()


def _numbered(names: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each name, the same for the same."""
    return names.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)


def _parts(
    path: str,
    chosen: pa.Table,
    urls: list[str],
    row_bytes: Floats,
    file_bytes: int,
    metadata: dict[str, Any],
) -> list[_Part]:
    """Cut the kept rows of a category, in order of file and row, into files of about `file_bytes`."""
    files = chosen["file"].to_numpy()
    total = np.cumsum(row_bytes[files])
    cuts = np.flatnonzero(np.diff(total // file_bytes)) + 1
    parts = []
    for start, stop in pairwise([0, *cuts.tolist(), len(files)]):
        piece = chosen.slice(start, stop - start)
        if not len(piece):
            continue
        category = piece["category"][0].as_py()
        name = content_name(piece["data_id"], piece["lds"])
        url = join(path, "selected", f"category={category}", name)
        rows, lds = piece["row"].to_numpy(), piece["lds"].to_numpy()
        ends = np.flatnonzero(files[start:stop][1:] != files[start:stop][:-1]) + 1
        runs = pairwise([0, *ends.tolist(), stop - start])
        parts.append(
            _Part(url, [(urls[files[start + i]], rows[i:j], lds[i:j]) for i, j in runs], metadata)
        )
    return parts


def _write_part(part: _Part) -> None:
    with staged(part.url) as local, parquet_writer(local, SELECTED, part.metadata) as writer:
        for url, rows, lds in part.rows:
            with open_parquet(url) as parquet:
                start = 0
                for group in range(parquet.num_row_groups):
                    stop = start + parquet.metadata.row_group(group).num_rows
                    inside = (rows >= start) & (rows < stop)
                    if inside.any():
                        table = parquet.read_row_group(group).take(pa.array(rows[inside] - start))
                        table = table.append_column("lds", pa.array(lds[inside]))
                        writer.write_table(table.select(SELECTED.names).cast(writer.schema))
                    start = stop
