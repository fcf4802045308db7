"""Means and deviations in SQL that no order of the rows changes: sums of integers, rounded once.

A double is a whole number of 2**g for some g. All values of a column are whole numbers of the g of
the smallest, so their sum is one of integers. It is taken in pieces of 62 bits, each a BIGINT of its
own that DuckDB sums into a HUGEINT, which no number of rows fills: one piece holds scores as they
come, two their squared deviations, and 34 whatever doubles there are, subnormal and huge ones
together. So there is no value that a scale does not fit, only more pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import duckdb

from longattn.selection.database import literal, small_table

PIECE = 62  # bits
LOWEST = -1074  # every double is a whole number of 2**-1074


@dataclass(frozen=True)
class Moments:
    """Of a column over one category."""

    rows: int
    mean: float
    deviation: float  # of the population
    low: float
    high: float


def moments(
    connection: duckdb.DuckDBPyConnection, table: str, values: Sequence[str]
) -> list[dict[int, Moments]]:
    """Moments of SQL expressions over the rows of each category: what math.fsum would give.

    Args:
        table: with a column `category`.
        values: finite in every row.

    Returns:
        Moments by category, of each expression.

    Raises:
        OverflowError: values so far apart that their sum or the squares of deviations are no doubles.
    """
    extremes = ", ".join(
        f"min({value}), max({value}), min(nullif(abs({value}), 0))" for value in values
    )
    found = connection.execute(
        f"SELECT category, count(*), {extremes} FROM {table} GROUP BY category"
    ).fetchall()
    columns = [
        _Column(value, {row[0]: _Extremes(row[1], *row[2 + 3 * i : 5 + 3 * i]) for row in found})
        for i, value in enumerate(values)
    ]
    if not found:
        return [{} for _ in values]
    expressions = ", ".join(f"{column.value} AS r{i}" for i, column in enumerate(columns))
    totals = _sums(
        connection,
        f"SELECT category, {expressions} FROM {table}",
        [(column.unit, column.largest) for column in columns],
    )
    for column, total in zip(columns, totals, strict=True):
        column.means = {of: float(total[of]) / own.rows for of, own in column.extremes.items()}
    expressions = ", ".join(
        f"({column.value} - mean{i}) * ({column.value} - mean{i}) AS r{i}"
        for i, column in enumerate(columns)
    )
    names = ", ".join(f"mean{i}" for i in range(len(columns)))
    means = {of: [column.means[of] for column in columns] for of in columns[0].extremes}
    small_table(connection, "means", names, means)
    squares = _sums(
        connection,
        f"SELECT category, {expressions} FROM {table} JOIN means USING (category)",
        [column.squares for column in columns],
    )
    return [
        {
            of: Moments(
                own.rows,
                column.means[of],
                math.sqrt(float(square[of]) / own.rows),
                own.low,
                own.high,
            )
            for of, own in column.extremes.items()
        }
        for column, square in zip(columns, squares, strict=True)
    ]


@dataclass(frozen=True)
class _Extremes:
    """Of one column over one category."""

    rows: int
    low: float
    high: float
    least: float | None  # of the values without their sign, but for 0


@dataclass
class _Column:
    """What is known of one column, by category."""

    value: str
    extremes: dict[int, _Extremes]
    means: dict[int, float] = field(default_factory=dict)

    @property
    def unit(self) -> int:
        return min((_unit(own.least or 0.0) for own in self.extremes.values()), default=0)

    @property
    def largest(self) -> float:
        return max(max(abs(own.low), abs(own.high)) for own in self.extremes.values())

    @property
    def squares(self) -> tuple[int, float]:
        """Unit and largest of the squares of deviations."""
        largest = max(
            max(own.high - self.means[of], self.means[of] - own.low)
            for of, own in self.extremes.items()
        )
        if not math.isfinite(largest * largest):
            raise OverflowError("values are too far apart: the square of a deviation is no double")
        unit = min(self.unit, *(_unit(abs(mean)) for mean in self.means.values()))
        return max(LOWEST, 2 * unit), largest * largest


def _unit(value: float) -> int:
    """The g of a double >= 0, or a smaller one."""
    return max(LOWEST, math.frexp(value)[1] - 53) if value else 0


def _sums(
    connection: duckdb.DuckDBPyConnection, rows: str, spans: Sequence[tuple[int, float]]
) -> list[dict[int, Fraction]]:
    """Exact sums by category of r0, r1, ..., each whole numbers of 2**unit of at most `largest`."""
    units = [list(_pieces(unit, largest)) for unit, largest in spans]
    pieces = ", ".join(piece for i, own in enumerate(units) for piece in _summed(f"r{i}", own))
    found = connection.execute(f"SELECT category, {pieces} FROM ({rows}) GROUP BY category")
    sums: list[dict[int, Fraction]] = [{} for _ in units]
    for category, *parts in found.fetchall():
        of_part = iter(parts)
        for total, own in zip(sums, units, strict=True):
            total[category] = sum(
                (int(next(of_part)) * Fraction(2) ** unit for unit in own), Fraction(0)
            )
    return sums


def _summed(value: str, units: Sequence[int]) -> Iterator[str]:
    """SQL sums of the pieces of a value."""
    # Not piece by piece from what the last one left: the planner's time doubles with each such step.
    above = literal(0.0)
    for unit in units:
        upto = value if unit == units[-1] else _truncated(value, unit)
        yield f"sum(CAST(({upto} - {above}) * {_power(-unit)} AS BIGINT))"
        above = upto


def _pieces(unit: int, largest: float) -> Iterator[int]:
    """The unit of each piece, as a power of two, from the highest piece down."""
    own = math.frexp(largest)[1]
    while True:
        own = max(unit, own - PIECE)
        yield own
        if own <= unit:
            return


def _truncated(value: str, unit: int) -> str:
    """A value without what is below 2**unit; of 53 bits above that it stays as it is."""
    whole = f"trunc({value} * {_power(-unit)}) * {_power(unit)}"
    large = literal(math.ldexp(1.0, unit + 53))
    return f"CASE WHEN abs({value}) >= {large} THEN {value} ELSE {whole} END"


def _power(exponent: int) -> str:
    """Two factors, since 2**1074 is no double though 2**-1074 is one."""
    half = exponent // 2
    return f"{literal(math.ldexp(1.0, half))} * {literal(math.ldexp(1.0, exponent - half))}"
