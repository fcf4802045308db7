"""What the report says of the rule that selected: the heads it is of, and how to do without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longattn.config import Select
from longattn.selection.columns import Columns
from longattn.selection.lds import long_distance_scores

if TYPE_CHECKING:
    from longattn.reports.report_windows import Windows


@dataclass(frozen=True)
class HeadsTold:
    """Whose attention the scores of a category are of."""

    category: str
    heads: str
    """`head 9`, or `all heads`."""
    why: str
    agreement: float | None
    """Share of the kept windows that all heads would keep, where not all are taken."""


def cleared(select: Select) -> dict[str, str]:
    """What `--set` takes to leave out settings that the sliders know nothing of."""
    changes = {"rank_by": "lds", "overlap": "allow"}
    for name, nothing in (("where", "[]"), ("categories", "{}"), ("per_document", "null")):
        if getattr(select, name):
            changes[name] = nothing
    return changes


def heads_told(
    select: Select,
    columns: Columns,
    choices: Mapping[str, Any],
    categories: Mapping[str, Windows],
) -> list[HeadsTold]:
    """Where heads were chosen: by category which, why, and what of the kept all heads would keep.

    Args:
        choices: of `auto`, by category.
    """
    if select.heads == "all":
        return []
    return [
        HeadsTold(
            category=name,
            heads=columns.told_heads(name) or "all heads",
            why=choices.get(name, {}).get("why", "as the settings say"),
            agreement=_kept_by_all(windows, select) if columns.heads_of(name) else None,
        )
        for name, windows in sorted(categories.items())
    ]


def _kept_by_all(windows: Windows, select: Select) -> float | None:
    """Share of the kept windows that as many of the best by LDS of all heads would hold."""
    ds, variance = (windows.table[f"all_{of}"].to_numpy() for of in ("ds", "variance"))
    lds = long_distance_scores(ds, variance, select.alpha, select.standardize)
    kept = int(windows.kept.sum())
    best = np.argsort(-lds, kind="stable")[:kept]
    return float(windows.kept[best].mean()) if kept else None
