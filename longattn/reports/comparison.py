"""Selections of one folder side by side: what each keeps, and what of it the others keep, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import Select
from longattn.selection.selection_record import SelectionRecord
from longattn.storage.files import parallel
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.tables import open_parquet, own_files

SHARES = (0.1, 0.5, 0.9)  # of the kept windows, whose values are shown
COLUMNS = ("ds", "variance", "lds", "recurrence_pairs")


@dataclass(frozen=True)
class Compared:
    """One selection beside the others.

    Attributes:
        name: as people are told; the one without a name is `selected`.
        rule: what ranks, within which bounds, and how much is kept.
        windows, tokens: kept, of all categories.
        overlap: name of each selection -> category -> share of this one's windows that it keeps, too;
            None where this one keeps none.
        values: category -> column -> its values at `SHARES` of the kept windows.
    """

    name: str
    rule: str
    windows: int
    tokens: int
    overlap: dict[str, dict[str, float | None]]
    values: dict[str, dict[str, list[float]]]


def compared_selections(folder: OutputFolder) -> list[Compared]:
    """All selections of a folder; empty where there are fewer than two."""
    names = folder.selections()
    if len(names) < 2:
        return []
    records = {name: record for name in names if (record := SelectionRecord.read(folder, name))}
    kept = {name: _kept(folder, name) for name in names}
    return [
        Compared(
            _shown(name),
            _rule(record.select),
            sum(of.kept for of in record.categories.values()),
            sum(of.kept_tokens for of in record.categories.values()),
            {
                _shown(other): {
                    category: _share(table, kept[other].get(category))
                    for category, table in sorted(kept[name].items())
                }
                for other in names
            },
            {
                category: {column: _quantiles(table[column]) for column in COLUMNS}
                for category, table in sorted(kept[name].items())
            },
        )
        for name, record in records.items()
    ]


def _shown(name: str | None) -> str:
    return name or "selected"


def _rule(select: Select) -> str:
    ranked = "LDS" if select.rank_by == "lds" else select.rank_by
    if select.heads != "all":
        heads = list(select.heads) if isinstance(select.heads, tuple) else select.heads
        ranked += f", {heads}" if select.heads_of_score else f", heads {heads}"
    if select.rank_by == "lds" and select.alpha != 0.5:
        ranked += f", alpha {select.alpha:g}"
    parts = [f"by {ranked}", *map(str, select.where)]
    if select.overlap != "allow":
        parts.append("distinct windows preferred")
    if select.per_document:
        parts.append(f"at most {select.per_document} of a document")
    parts.append(str(select.keep))
    own = ", ".join(sorted(select.categories))
    return "; ".join([*parts, *([f"of its own: {own}"] if own else [])])


def _kept(folder: OutputFolder, name: str | None) -> dict[str, pa.Table]:
    """Narrow columns of the kept windows by category."""
    urls = own_files(folder.selected_files(name))
    found: dict[str, list[pa.Table]] = {}
    for url, table in zip(urls, parallel(_narrow, urls), strict=True):
        found.setdefault(category_of(url), []).append(table)
    return {category: pa.concat_tables(tables) for category, tables in found.items()}


def _narrow(url: str) -> pa.Table:
    with open_parquet(url) as parquet:
        return parquet.read(columns=["data_id", *COLUMNS]).replace_schema_metadata()


def _share(table: pa.Table, other: pa.Table | None) -> float | None:
    if other is None:
        return 0.0
    both = pc.sum(pc.is_in(table["data_id"], value_set=other["data_id"].combine_chunks())).as_py()
    return (both or 0) / len(table) if len(table) else None


def _quantiles(column: Any) -> list[float]:
    values: list[float] = pc.quantile(column, q=list(SHARES)).to_pylist()
    return values
