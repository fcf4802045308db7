"""Which windows may be kept: bounds on columns, and at most so many of a document. In SQL, exact.

A bound by quantiles takes ranks: of n windows of a category that have a value, ordered by (value,
data_id), those after the first round(low n) and up to round(high n). So its count is known
beforehand, and equal values are parted by data_id.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from longattn.selection.database import literal
from longattn.selection.score_table import ScoreTable
from longattn.settings.selection import Bound, Select

Out = dict[int, dict[str, int]]
"""By category, what takes windows out -> how many."""

NO_VALUE = " has no value"
BUCKETS = 4096  # that values are counted in, to find one by its rank
FEW = 1 << 17  # values that are sorted
_OVER = """
CREATE OR REPLACE TABLE over_cap AS SELECT position, category FROM (
    SELECT position, category, row_number() OVER (
        PARTITION BY category, document, document_check ORDER BY value DESC, data_id) AS place
    FROM ranked SEMI JOIN (
        SELECT category, document, document_check FROM ranked GROUP BY ALL HAVING count(*) > {most}
    ) USING (category, document, document_check)
) WHERE place > {most}
"""


def apply_bounds(table: ScoreTable, select: Select, categories: Sequence[int]) -> Out:
    """Leave in `ranked` only what each category's bounds allow; what each bound takes out by itself.

    A window that two bounds take out counts for both. Bounds see all windows of the view.
    """
    tests = {
        category: dict(_tests(table, select, category, table.categories[category]))
        for category in categories
    }
    most = max(map(len, tests.values()), default=0)
    if not most:
        return {}
    each = [
        _by_category(
            {of: test for of, own in tests.items() for test in [*own.values()][i : i + 1]},
            len(tests),
        )
        for i in range(most)
    ]
    counts = ", ".join(f"count(*) FILTER (NOT {test})" for test in each)
    connection = table.connection
    out: Out = {}
    for category, *numbers in connection.execute(
        f"SELECT category, {counts} FROM ranked GROUP BY category"
    ).fetchall():
        told = zip(tests[category], numbers, strict=False)
        out[category] = {what: n for what, n in told if n or not what.endswith(NO_VALUE)}
    # The tests are made again with each look: a table of what they leave would be written and spilled.
    connection.execute("DROP VIEW IF EXISTS unbounded")
    connection.execute("ALTER VIEW ranked RENAME TO unbounded")
    connection.execute(f"CREATE VIEW ranked AS FROM unbounded WHERE {' AND '.join(each)}")
    return out


def cap_documents(table: ScoreTable, most: int) -> dict[int, int]:
    """Leave in `windows` at most so many of each document, best first; what was taken out."""
    connection = table.connection
    connection.execute(_OVER.format(most=most))
    found = connection.execute("SELECT category, count(*) FROM over_cap GROUP BY category")
    out = dict(found.fetchall())
    if out:
        connection.execute(
            "DELETE FROM windows USING over_cap WHERE windows.position = over_cap.position"
        )
    connection.execute("DROP TABLE over_cap")
    return out


def _tests(
    table: ScoreTable, select: Select, category: int, name: str
) -> Iterator[tuple[str, str]]:
    """What a window of a category is to pass: in words, and in SQL that is never null."""
    if select.rank_by in table.columns.tables:
        yield f"{select.rank_by}{NO_VALUE}", "(rank IS NOT NULL)"
    if table.columns.lds_of_table:
        yield f"lds{NO_VALUE}", "(ds IS NOT NULL)"
    for bound in select.where_of(name):
        column = table.columns.in_sql(bound.column)
        parts = []
        if bound.min is not None:
            parts.append(f"{column} >= {literal(float(bound.min))}")
        if bound.max is not None:
            parts.append(f"{column} <= {literal(float(bound.max))}")
        if bound.quantiles:
            parts += _between(table, category, column, bound)
        yield str(bound), f"coalesce({' AND '.join(parts)}, false)"


def _between(table: ScoreTable, category: int, column: str, bound: Bound) -> Iterator[str]:
    """SQL of the ranks that quantiles allow."""
    low, high = bound.quantiles or (0.0, 1.0)
    ((rows,),) = table.connection.execute(
        f"SELECT count({column}) FROM ranked WHERE category = {category}"
    ).fetchall()
    first, last = (math.floor(share * rows + 0.5) for share in (low, high))
    yield f"{column} IS NOT NULL"
    if first > 0:
        yield f"NOT {_up_to(table, category, column, first)}"
    if last < rows:
        yield _up_to(table, category, column, last) if last else "false"


def _up_to(table: ScoreTable, category: int, column: str, rank: int) -> str:
    """SQL of the first `rank` rows by (value, data_id); 1 or more, and as many as there are at most."""

    def ask(query: str) -> Any:
        ((answer,),) = table.connection.execute(f"SELECT {query}").fetchall()
        return answer

    rows = f"FROM ranked WHERE category = {category} AND {column} IS NOT NULL"
    of_value = literal(_nth(table, column, rows, rank))
    ties = rank - ask(f"count(*) {rows} AND {column} < {of_value}")
    equal = f"{rows} AND {column} = {of_value}"
    if ties == ask(f"count(*) {equal}"):
        return f"({column} <= {of_value})"
    first = f"first_{category}_{column}_{rank}"
    table.name("tied", f"SELECT position {equal}")
    table.connection.execute(
        f"CREATE OR REPLACE TABLE {first} AS SELECT position FROM tied ORDER BY data_id LIMIT {ties}"
    )
    return f"({column} < {of_value} OR ({column} = {of_value} AND position IN (FROM {first})))"


def _nth(table: ScoreTable, column: str, rows: str, rank: int) -> float:
    """The value of a rank, lowest first: found by counting, so that few values are sorted."""
    connection = table.connection
    extremes = f"SELECT count(*), min({column}), max({column}) {rows}"
    ((n, low, high),) = connection.execute(extremes).fetchall()
    while n > FEW and 0 < high - low < math.inf:
        between = f"AND {column} BETWEEN {literal(low)} AND {literal(high)}"
        share = f"({column} - {literal(low)}) / {literal(high - low)}"
        counted = connection.execute(
            f"{extremes} {between} GROUP BY CAST(least({BUCKETS - 1}, floor({share} * {BUCKETS})) "
            "AS INTEGER) ORDER BY 2"
        )
        for bucket in counted.fetchall():
            n, low, high = bucket
            if rank <= n:
                break
            rank -= n
    between = f"AND {column} BETWEEN {literal(low)} AND {literal(high)}"
    ((value,),) = connection.execute(
        f"SELECT {column} {rows} {between} ORDER BY {column} LIMIT 1 OFFSET {rank - 1}"
    ).fetchall()
    return float(value)


def _by_category(tests: dict[int, str], categories: int) -> str:
    """One test of all rows; `categories`: how many there are, of which some may have no test."""
    different = {*tests.values()}
    if len(different) == 1 and len(tests) == categories:
        return different.pop()
    cases = " ".join(f"WHEN {category} THEN {test}" for category, test in tests.items())
    return f"(CASE category {cases} ELSE true END)"
