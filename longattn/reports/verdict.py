"""What the last selection made of one window: its LDS, and whether it was kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.selection.lds import Scale
from longattn.storage.files import parallel, read_json
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import open_parquet, own_files
from longattn.text import digits


@dataclass(frozen=True)
class Verdict:
    """What a selection made of a window."""

    kept: bool
    lds: float
    ranked_by: str
    """`LDS`, or the column that the windows were ranked by."""
    value: float
    """What the window was ranked by, before overlaps were taken off."""
    threshold: float | None
    """The lowest value of a kept window of its category; None where none was kept."""
    overlap: str

    def sentence(self) -> str:
        """`Kept: LDS 1.23, kept from 0.12.` and the like."""
        lds = "" if self.ranked_by == "LDS" else f", LDS {digits(self.lds)}"
        off = " after overlaps are taken off" if self.overlap == "prefer_distinct" else ""
        return (
            f"{'Kept' if self.kept else 'Dropped'}: {self.ranked_by} {digits(self.value)}, "
            f"kept from {digits(self.threshold)}{off}{lds}."
        )


def verdict_of(output: str, data_id: str, row: Mapping[str, Any]) -> Verdict | None:
    """The verdict on a labelled window; None where nothing was selected yet.

    Args:
        row: its `category`, `ds`, `variance` and recurrence columns.
    """
    folder = OutputFolder(output)
    selection = read_json(folder.record("selection"))
    category = row["category"]
    if selection is None or category not in selection["categories"]:
        return None
    select, figures = selection["select"], selection["categories"][category]
    kept_lds = _kept_lds(folder, category, data_id)
    lds = kept_lds
    if lds is None:
        of_ds, of_du = (
            _scales(folder, category)
            if select["standardize"] == "minmax"
            else [Scale(figures[f"{of}_mean"], figures[f"{of}_std"]) for of in ("ds", "du")]
        )
        ds, du = np.array([row["ds"]]), np.array([-row["variance"]])
        lds = float(of_ds(ds)[0] + select["alpha"] * of_du(du)[0])
    rank_by = select.get("rank_by", "lds")
    return Verdict(
        kept=kept_lds is not None,
        lds=lds,
        ranked_by="LDS" if rank_by == "lds" else rank_by,
        value=lds if rank_by == "lds" else row[rank_by],
        threshold=figures["threshold"],
        overlap=select.get("overlap", "allow"),
    )


def _scales(folder: OutputFolder, category: str) -> list[Scale]:
    """Of DS and DU, by their extremes, which the record of a selection lacks."""
    tables = parallel(_scores, own_files(folder.labelled_files(category)))
    ds, variance = (
        np.concatenate([table[name].to_numpy() for table in tables]) for name in ("ds", "variance")
    )
    return [Scale.of_column(ds, "minmax"), Scale.of_column(-variance, "minmax")]


def _scores(url: str) -> pa.Table:
    with open_parquet(url) as parquet:
        return parquet.read(columns=["ds", "variance"])


def _kept_lds(folder: OutputFolder, category: str, data_id: str) -> float | None:
    """LDS of a kept window as it is stored; None of one that was dropped."""
    for url in own_files(folder.selected_files()):
        if category_of(url) != category:
            continue
        with open_parquet(url) as parquet:
            table = parquet.read(columns=["data_id", "lds"])
            place = pc.index(table["data_id"], data_id).as_py()
            if place >= 0:
                lds: float = table["lds"][place].as_py()
                return lds
    return None
