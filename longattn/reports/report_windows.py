"""What a report reads of labelled and selected files: narrow columns, and the text of a few windows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longattn.config import Select
from longattn.selection.columns import Columns
from longattn.selection.lds import long_distance_scores
from longattn.storage.files import READERS, parallel
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import open_parquet, own_files

RECURRENCE = ("recurrence", "recurrence_rarity", "recurrence_pairs")
NARROW = (
    "data_id",
    "document_id",
    "source",
    "token_start",
    "token_stop",
    "ds",
    "variance",
    *RECURRENCE,
)


@dataclass(frozen=True)
class Windows:
    """Narrow columns of one category, in order of data_id, and which windows were kept."""

    table: pa.Table
    ds: NDArray[np.float64]
    variance: NDArray[np.float64]
    lds: NDArray[np.float64]
    ranked: NDArray[np.float64]
    """What `rank_by` names; `lds` by default."""
    kept: NDArray[np.bool_]

    def rows(self, chosen: NDArray[np.int64]) -> Windows:
        return Windows(
            self.table.take(pa.array(chosen)),
            self.ds[chosen],
            self.variance[chosen],
            self.lds[chosen],
            self.ranked[chosen],
            self.kept[chosen],
        )


def labelled_by_category(output: str) -> dict[str, list[str]]:
    """Labelled files by category, each list sorted by name."""
    found: dict[str, list[str]] = defaultdict(list)
    folder = OutputFolder(output)
    for url in own_files(folder.labelled_files()):
        found[category_of(url)].append(url)
    if not found:
        raise ValueError(f"{folder.labelled}: no labelled windows to report on")
    return found


def read_windows(
    urls: list[str],
    most: int,
    kept_ids: pa.ChunkedArray,
    select: Select,
    columns: Columns,
) -> Windows:
    """The windows of one category: all, or whole files of at least `most` windows."""
    tables: list[pa.Table] = []
    for start in range(0, len(urls), READERS):
        tables += parallel(lambda url: _narrow(url, columns), urls[start : start + READERS])
        if sum(map(len, tables)) > most:
            break
    table = pa.concat_tables(tables).sort_by("data_id")
    ds, variance = table["ds"].to_numpy(), table["variance"].to_numpy()
    there = ~np.isnan(ds)  # of a score table, some windows may have none
    lds = np.full(len(ds), math.nan)
    lds[there] = long_distance_scores(ds[there], variance[there], select.alpha, select.standardize)
    kept = pa.compute.is_in(table["data_id"], value_set=kept_ids)
    ranked = lds if select.rank_by == "lds" else table["rank"].fill_null(math.nan).to_numpy()
    return Windows(table, ds, variance, lds, ranked, kept.to_numpy())


def window_length(categories: Iterable[Windows]) -> int:
    """Tokens of a window."""
    lengths = [
        pa.compute.subtract(c.table["token_stop"], c.table["token_start"]) for c in categories
    ]
    return max((pa.compute.max(of).as_py() or 0 for of in lengths), default=0)


def _narrow(url: str, columns: Columns) -> pa.Table:
    """Columns of a file, with the scores that the selection is of: its heads, and what ranked."""
    read = dict.fromkeys([*NARROW, "category", *columns.labelled])
    with open_parquet(url) as parquet:
        rows = parquet.read(columns=list(read)).replace_schema_metadata()
    scores, table = columns.of_rows(url, rows), rows.select(NARROW)
    for name in ("ds", "variance"):
        table = table.append_column(f"all_{name}", rows[name])
        table = table.set_column(table.column_names.index(name), name, scores[name])
    table = table.append_column("rank", scores["rank"])
    url_of = pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), [url])
    return table.append_column("url", url_of).append_column("row", pa.array(np.arange(len(table))))


def selected_ids(url: str) -> pa.ChunkedArray:
    with open_parquet(url) as parquet:
        return parquet.read(columns=["data_id"])["data_id"]


def mean_heads(urls: list[str], most: int) -> list[float]:
    """Mean DS of each head, over whole files of at least `most` windows; empty where none is stored."""
    total: NDArray[np.float64] | None = None
    count = 0
    for url in urls:
        with open_parquet(url) as parquet:
            heads = parquet.read(columns=["ds_heads"])["ds_heads"].combine_chunks()
        if not len(heads) or heads.null_count:
            continue
        ds_wh = heads.flatten().to_numpy().reshape(len(heads), -1)
        total = ds_wh.sum(0, dtype=np.float64) + (0.0 if total is None else total)
        count += len(ds_wh)
        if count >= most:
            break
    return [] if total is None else (total / count).tolist()


def content_of_row(url: str, row: int) -> str:
    with open_parquet(url) as parquet:
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if row < size:
                text: str = parquet.read_row_group(group, columns=["content"])["content"][
                    row
                ].as_py()
                return text
            row -= size
    raise ValueError(f"{url}: it has no row {row}")
