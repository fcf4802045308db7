"""Selection: LDS from stored scores, a threshold a category, and the selected files.

Needs no GPU and no corpus: narrow columns go into a database that spills to the temporary folder
(`database.py`), whole rows are read only to be written. What is selected is that of
`reference.py`, whatever the layout of the files and the memory.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longattn.config import Config, ConfigLike, Keep, Select, is_config_file, output_of
from longattn.selection.columns import columns_of
from longattn.selection.database import database, literal, small_table
from longattn.selection.dataset_card import write_card
from longattn.selection.exact_sums import Moments, moments
from longattn.selection.kept_heads import kept_heads
from longattn.selection.lds import Scale
from longattn.selection.overlap import distinct_scores
from longattn.selection.score_table import ScoreTable, batches
from longattn.selection.selected_files import remove_others, write_selected
from longattn.selection.selection_record import CategorySelection, SelectionRecord
from longattn.selection.table_heads import TableHeads
from longattn.selection.where import BUCKETS, FEW, apply_bounds, cap_documents
from longattn.settings.numbers import ByteSize, read_number
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import write_record

log = logging.getLogger("longattn")

_RANKED = """
CREATE OR REPLACE VIEW ranked AS
SELECT *, {value} AS value FROM (
    SELECT windows.*,
        CASE WHEN ds IS NULL THEN NULL WHEN ds_unit = 0 THEN 0 ELSE (ds - ds_origin) / ds_unit END
        + {alpha} * CASE WHEN du_unit = 0 THEN 0 ELSE (-variance - du_origin) / du_unit END AS lds
    FROM windows JOIN scales USING (category)
)
"""
_BEST = """
CREATE OR REPLACE TABLE best AS
SELECT category, position, lds, value, {weight} AS weight
FROM ranked JOIN spans USING (category) WHERE value >= low
"""
_UNIQUE_TOKENS = """
SELECT category, sum(greatest(0, stop - greatest(start, reached))) FROM (
    SELECT category, start, stop, coalesce(max(stop) OVER (
        PARTITION BY category, document, document_check ORDER BY start
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS reached
    FROM kept
) GROUP BY category
"""


def select(
    path: ConfigLike,
    settings: Select | None = None,
    *,
    file_bytes: int | str | None = None,
    **overrides: Any,
) -> dict[str, CategorySelection]:
    """What was kept, by category, of `<path>/labelled`; `longattn.select` says the rest.

    Writes `<path>/selected` and its card, and leaves the reports of the run as they are.
    """
    path, settings, size = resolved(path, settings, file_bytes, overrides)
    folder = OutputFolder(path)
    sizes = folder.labelled_files()
    if not sizes:
        raise ValueError(f"{folder.labelled}: no labelled windows to select from")
    kept = kept_heads(folder, settings) if settings.chooses_heads else None
    record = SelectionRecord(settings, kept)
    columns = columns_of(folder, settings, sizes, kept)
    with database(settings.memory) as connection, ScoreTable(connection, columns) as table:
        files = table.insert_labelled(folder.url, sizes)
        _check_names(table, settings, folder)
        result = choose_windows(table, settings, folder.url)
        there = folder.selected_files(settings.name).keys()
        urls = write_selected(
            table,
            files,
            size,
            folder.selection(settings.name),
            there,
            {"fingerprint": files.fingerprint, **record.rule()},
        )
    record = replace(record, files=urls, categories=result)
    write_record(folder.selection_record(settings.name), record.to_dict())
    remove_others(there, urls)
    if settings.name is None:  # the folder's own page
        write_card(folder.url, record)
    return result


def resolved(
    path: ConfigLike,
    settings: Select | None,
    file_bytes: int | str | None,
    overrides: Mapping[str, Any],
) -> tuple[str, Select, int]:
    """The output folder, the settings and the size of a file that the arguments of `select` mean."""
    if not isinstance(path, (str, Path)) or is_config_file(path):
        config = Config.of(path)
        path, settings = config.output, settings or config.select
        file_bytes = config.file_bytes if file_bytes is None else file_bytes
    given = settings.model_dump(exclude_unset=True) if settings else {}
    settings = Select.check({**given, **overrides}, "select")
    default = Config.model_fields["file_bytes"].default
    size = read_number(ByteSize, "file_bytes", default if file_bytes is None else file_bytes)
    return output_of(path), settings, size


def _check_names(table: ScoreTable, settings: Select, folder: OutputFolder) -> None:
    """Raises ValueError for a category with the folder of a selection; names one without windows."""
    there = ", ".join(sorted(table.categories))
    for name in sorted(settings.categories.keys() - {*table.categories}):
        log.warning("select.categories: no windows of category %r; there are: %s", name, there)
    names = [settings.name] if settings.name else folder.selections()
    for name in {*names} & {*table.categories}:
        raise ValueError(
            f"select.name {name!r}: a category and a selection cannot share a folder; there are the "
            f"categories {there}"
        )


def choose_windows(table: ScoreTable, settings: Select, path: str) -> dict[str, CategorySelection]:
    """Make a table `kept` of the rows of `windows` to keep, with `lds`.

    Raises ValueError naming `path` where scores are too far apart for their deviation to be a number, or
    where LDS is of a score table that has nothing for a category.
    """
    table.drop_copies()
    try:
        rows = dict(_fetch(table, "SELECT category, count(*) FROM windows GROUP BY category"))
        of_ds, of_du = _moments(table, rows)
        _rank(table, settings, of_ds, of_du)
        out = apply_bounds(table, settings, list(of_ds))
        if settings.overlap == "prefer_distinct":
            _prefer_distinct(table, settings)
        if settings.per_document:
            for category, windows in cap_documents(table, settings.per_document).items():
                out.setdefault(category, {})["per_document"] = windows
        _cut(table, settings, rows)
    except OverflowError as error:
        raise ValueError(f"{path}: scores cannot be standardised: {error}") from None
    told = {
        category: values
        for category, *values in _fetch(
            table,
            "SELECT category, count(*), sum(stop - start), min(lds), min(value) FROM kept "
            "GROUP BY category",
        )
    }
    unique = dict(_fetch(table, _UNIQUE_TOKENS))
    result = {}
    for name in sorted(table.categories):
        category = table.categories.index(name)
        kept, tokens, lds, value = told.get(category, (0, 0, None, None))
        result[name] = CategorySelection(
            windows=rows[category],
            duplicate_rows=table.copies.get(category, 0),
            kept=kept,
            kept_tokens=int(tokens),
            unique_tokens=int(unique.get(category, 0)),
            ds_mean=of_ds[category].mean,
            ds_std=of_ds[category].deviation,
            du_mean=of_du[category].mean,
            du_std=of_du[category].deviation,
            lds_threshold=lds,
            threshold=value,
            out=out.get(category, {}),
        )
    return result


def _fetch(table: ScoreTable, query: str) -> list[tuple[Any, ...]]:
    return table.connection.execute(query).fetchall()


# --- what the windows are ranked by --------------------------------------------------------------


def _moments(table: ScoreTable, rows: dict[int, int]) -> list[dict[int, Moments]]:
    """Of DS and of -variance, over the windows that have them."""
    heads = table.columns.heads
    if not isinstance(heads, TableHeads):
        return moments(table.connection, "windows", ["ds", "-variance"])
    scored = "(FROM windows WHERE ds IS NOT NULL) AS scored"
    found = moments(table.connection, scored, ["ds", "-variance"])
    for category in rows.keys() - found[0].keys():
        raise ValueError(
            f"select.heads: no window of category {table.categories[category]!r} has a value of the "
            f"score {heads.asked.score}"
        )
    return found


def _rank(
    table: ScoreTable, settings: Select, of_ds: dict[int, Moments], of_du: dict[int, Moments]
) -> None:
    """Make a view `ranked`: `windows` with `lds` and `value`, which is the higher the better."""
    connection = table.connection
    scales: dict[int, list[float]] = {category: [] for category in of_ds}
    for category, numbers in scales.items():
        for of in (of_ds[category], of_du[category]):
            extremes = of.low, of.high
            scale = Scale.of(of.mean, of.deviation, extremes, settings.standardize)
            numbers += [scale.origin, scale.unit]
    small_table(connection, "scales", "ds_origin, ds_unit, du_origin, du_unit", scales)
    alpha = literal(float(settings.alpha))
    value = "lds" if settings.rank_by == "lds" else "rank"
    connection.execute(_RANKED.format(alpha=alpha, value=value))


def _prefer_distinct(table: ScoreTable, settings: Select) -> None:
    """Rank by what windows are worth beside those of their document that are bought before."""
    (of_value,) = moments(table.connection, "ranked", ["value"])
    _replace_rank(table, {category: of.deviation for category, of in of_value.items()})
    alpha = literal(float(settings.alpha))
    table.connection.execute(_RANKED.format(alpha=alpha, value="rank"))


def _replace_rank(table: ScoreTable, deviations: dict[int, float]) -> None:
    """Write `windows` again with what `prefer_distinct` ranks by in the column `rank`."""
    connection = table.connection
    of_windows = ", ".join(name for name in table.columns.in_database if name != "rank")
    connection.execute(
        f"CREATE TABLE distinct_windows AS SELECT {of_windows}, 0::DOUBLE AS rank FROM windows LIMIT 0"
    )
    ordered = batches(
        connection,
        f"SELECT {of_windows}, value FROM ranked ORDER BY category, document, document_check, data_id",
    )
    for documents in _whole_documents(ordered):
        category = documents["category"].to_numpy()
        value, start, stop = (documents[name].to_numpy() for name in ("value", "start", "stop"))
        number = np.cumsum(_begins(documents))
        rank = np.empty(len(documents))
        for one in np.unique(category).tolist():
            own = category == one
            rank[own] = distinct_scores(
                value[own], number[own], start[own], stop[own], deviations[one]
            )
        rows = documents.drop_columns(["value"]).append_column("rank", pa.array(rank))
        connection.register("rows", rows)
        connection.execute("INSERT INTO distinct_windows BY NAME FROM rows")
        connection.unregister("rows")
    connection.execute("DROP TABLE windows")
    connection.execute("ALTER TABLE distinct_windows RENAME TO windows")


def _begins(rows: pa.Table) -> np.ndarray:
    """(n,) which rows are of another document than the row before."""
    begins = np.ones(len(rows), bool)
    columns = [rows[name].to_numpy() for name in ("category", "document", "document_check")]
    begins[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return begins


def _whole_documents(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Rows ordered by document, in tables that no document reaches out of."""
    held: list[pa.Table] = []
    for table in tables:
        rows = pa.concat_tables([*held, table])
        if not len(rows):
            continue
        last = int(np.flatnonzero(_begins(rows))[-1])
        if last:
            yield rows.slice(0, last)
        held = [rows.slice(last)]
    yield from held


# --- where the budget of each category ends ------------------------------------------------------


@dataclass
class _Span:
    """Of a category: values between which its budget ends; what is above them fits."""

    low: float
    high: float
    rows: int
    left: int  # of the budget, for the rows between

    @property
    def wide(self) -> bool:
        """To be narrowed by counting: more rows than are sorted, and of different values."""
        return self.rows > FEW and 0 < self.high - self.low < math.inf


def _cut(table: ScoreTable, settings: Select, rows: dict[int, int]) -> None:
    """Make a table `kept`: the best rows by (value descending, data_id) that each budget pays for.

    Args:
        rows: windows of each category, also those that bounds took out.

    Raises OverflowError where a value is no finite double.
    """
    keeps = {of: settings.keep_of(table.categories[of]) for of in rows}
    by_tokens = [of for of, keep in keeps.items() if keep.tokens is not None]
    weight = "stop - start" if by_tokens else "1"
    if 0 < len(by_tokens) < len(keeps):
        among = ", ".join(map(str, by_tokens))
        weight = f"(CASE WHEN category IN ({among}) THEN stop - start ELSE 1 END)"
    spans = {
        category: _Span(low, high, rows[category], _budget(keeps[category], rows[category]))
        for category, low, high in _fetch(
            table, "SELECT category, min(value), max(value) FROM ranked GROUP BY category"
        )
    }
    if not all(math.isfinite(span.low) and math.isfinite(span.high) for span in spans.values()):
        raise OverflowError("their LDS is no double: select.alpha is too large")
    while wide := {category: span for category, span in spans.items() if span.wide}:
        for category, span in _narrowed(table, weight, wide).items():
            spans[category] = span
    small_table(table.connection, "spans", "low", {of: [span.low] for of, span in spans.items()})
    table.connection.execute(_BEST.format(weight=weight))
    for category, span in spans.items():
        _drop_beyond(table, category, span)
    table.name_kept()


def _budget(keep: Keep, rows: int) -> int:
    if keep.fraction is not None:
        return math.floor(keep.fraction * rows + 0.5)
    return keep.count or keep.tokens or 0


def _narrowed(table: ScoreTable, weight: str, spans: dict[int, _Span]) -> dict[int, _Span]:
    """Each span cut down to the bucket that its budget ends in, by counting what each bucket holds."""
    extremes = {category: [span.low, span.high] for category, span in spans.items()}
    small_table(table.connection, "spans", "low, high", extremes)
    weights = "count(*)" if weight == "1" else f"sum({weight})"
    counted = defaultdict(list)
    for category, *bucket in _fetch(
        table,
        f"SELECT category, count(*), {weights}, min(value), max(value) FROM ranked "
        "JOIN spans USING (category) WHERE value BETWEEN low AND high GROUP BY category, "
        f"CAST(least({BUCKETS - 1}, floor((high - value) / (high - low) * {BUCKETS})) AS INTEGER) "
        "ORDER BY max(value) DESC",
    ):
        counted[category].append(bucket)
    narrowed = {}
    for category, span in spans.items():
        left = span.left
        narrowed[category] = _Span(-math.inf, -math.inf, 0, 0)  # all fit
        for rows, spent, low, high in counted[category]:
            if spent > left:
                narrowed[category] = _Span(low, high, rows, left)
                break
            left -= int(spent)
    return narrowed


def _drop_beyond(table: ScoreTable, category: int, span: _Span) -> None:
    """Leave of a category's rows in the table `best` those alone that its budget pays for."""
    connection = table.connection
    of_category = f"FROM best WHERE category = {category} AND value"
    found = _fetch(
        table,
        "SELECT value, rows, spent - weight FROM (SELECT *, sum(weight) OVER (ORDER BY value DESC) "
        "AS spent FROM (SELECT value, sum(weight) AS weight, count(*) AS rows "
        f"{of_category} BETWEEN {literal(span.low)} AND {literal(span.high)} GROUP BY value)) "
        f"WHERE spent > {span.left} ORDER BY value DESC LIMIT 1",
    )
    for value, rows, before in found:
        connection.execute(f"DELETE {of_category} < {literal(value)}")
        equal = f"{of_category} = {literal(value)}"
        last = _last(table, equal, span.left - int(before)) if rows > 1 else None
        beyond = (
            "" if last is None else "AND position IN (SELECT position FROM tied WHERE data_id > ?)"
        )
        connection.execute(f"DELETE {equal} {beyond}", [] if last is None else [last])


def _last(table: ScoreTable, equal: str, left: int) -> str | None:
    """The last data_id that fits, of rows of `best` with equal values; named in a table `tied`."""
    last = None
    table.name("tied", f"SELECT position {equal}")
    ordered = batches(
        table.connection,
        f"SELECT data_id, weight FROM tied JOIN (SELECT position, weight {equal}) USING (position) "
        "ORDER BY data_id",
    )
    for rows in ordered:
        spent = np.cumsum(rows["weight"].to_numpy())
        fits = int(np.searchsorted(spent, left, side="right"))
        if fits:
            last = str(rows["data_id"][fits - 1])
        if fits < len(rows):
            break
        left -= int(spent[-1])
    return last
