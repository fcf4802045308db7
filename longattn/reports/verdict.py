"""What the last selection made of one window: its LDS, and whether it was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.selection.columns import NAMES, Columns
from longattn.selection.lds import Floats, Scale
from longattn.selection.selection_record import SelectionRecord
from longattn.storage.files import parallel
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.records import read_record
from longattn.storage.tables import open_parquet, own_files
from longattn.text import digits


@dataclass(frozen=True)
class Verdict:
    """What a selection made of a window."""

    kept: bool
    lds: float
    """NaN where the scores that it is of have no value."""
    ranked_by: str
    """`LDS`, or the column that the windows were ranked by."""
    value: float | None
    """What the window was ranked by, before overlaps were taken off; None where it has no value."""
    threshold: float | None
    """The lowest value of a kept window of its category; None where none was kept."""
    overlap: str
    bounded: bool = False
    """Whether there are bounds on columns, or on the windows of a document."""
    heads: str = ""
    """That LDS is of; empty: all of the first layer."""

    def sentence(self) -> str:
        """`Kept: LDS 1.23, kept from 0.12.` and the like."""
        lds = "" if self.ranked_by == "LDS" or isnan(self.lds) else f", LDS {digits(self.lds)}"
        off = " after overlaps are taken off" if self.overlap == "prefer_distinct" else ""
        within = " within the bounds" if self.bounded else ""
        heads = f" (of {self.heads})" if self.heads else ""
        value = "no value" if self.value is None else digits(self.value)
        return (
            f"{'Kept' if self.kept else 'Dropped'}: {self.ranked_by} {value}, "
            f"kept from {digits(self.threshold)}{off}{within}{lds}{heads}."
        )


def last_selection(folder: OutputFolder) -> str | None:
    """The name of the selection that the summary tells of, else of the first that is there."""
    there = folder.selections()
    told = (read_record(folder.record("summary")) or {}).get("selection_name")
    return told if told in there or not there else there[0]


def verdict_of(output: str, data_id: str, row: Mapping[str, Any]) -> Verdict | None:
    """The verdict on a labelled window; None where nothing was selected yet.

    Args:
        row: its `category`.
    """
    folder = OutputFolder(output)
    name = last_selection(folder)
    selection = SelectionRecord.read(folder, name)
    category = row["category"]
    if selection is None or category not in selection.categories:
        return None
    select, figures = selection.select, selection.categories[category]
    urls = own_files(folder.labelled_files(category))
    columns = selection.columns(folder, urls)
    kept_lds = _kept_lds(folder, name, category, data_id)
    minmax = select.standardize == "minmax"
    tables = parallel(lambda url: _scores(url, columns, None if minmax else data_id), urls)
    scores = pa.concat_tables([table for table in tables if table is not None])
    of_ds, of_du = (
        [Scale.of_column(x[~np.isnan(x)], "minmax") for x in _ds_and_du(scores)]
        if minmax
        else [Scale(figures.ds_mean, figures.ds_std), Scale(figures.du_mean, figures.du_std)]
    )
    one = scores.filter(pc.equal(scores["data_id"], data_id)).slice(0, 1)
    ds, du = _ds_and_du(one)
    lds = float(of_ds(ds)[0] + select.alpha * of_du(du)[0]) if kept_lds is None else kept_lds
    return Verdict(
        kept=kept_lds is not None,
        lds=lds,
        ranked_by="LDS" if select.rank_by == "lds" else select.rank_by,
        value=one["rank"][0].as_py() if select.rank_by != "lds" else None if isnan(lds) else lds,
        threshold=figures.threshold,
        overlap=select.overlap,
        bounded=bool(figures.out),
        heads=columns.told_heads(category),
    )


def _ds_and_du(scores: pa.Table) -> tuple[Floats, Floats]:
    return scores["ds"].to_numpy(), -scores["variance"].to_numpy()


def _scores(url: str, columns: Columns, only: str | None) -> pa.Table | None:
    """Scores of the windows of a file; where `only` one is asked for, None if it is not there."""
    with open_parquet(url) as parquet:
        if only is not None:
            ids = parquet.read(columns=["data_id"])["data_id"]
            if pc.index(ids, only).as_py() < 0:
                return None
        table = parquet.read(columns=[*NAMES, *columns.labelled]).replace_schema_metadata()
    return columns.of_rows(url, table)


def _kept_lds(folder: OutputFolder, name: str | None, category: str, data_id: str) -> float | None:
    """LDS of a kept window as it is stored; None of one that was dropped."""
    for url in own_files(folder.selected_files(name)):
        if category_of(url) != category:
            continue
        with open_parquet(url) as parquet:
            table = parquet.read(columns=["data_id", "lds"])
            place = pc.index(table["data_id"], data_id).as_py()
            if place >= 0:
                lds: float = table["lds"][place].as_py()
                return lds
    return None
