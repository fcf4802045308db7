"""Means and deviations in SQL that no order of the rows changes: sums of integers, rounded once.

A double is a whole number of 2**g for some g. All values of a column are whole numbers of the g of
the smallest, so their sum is one of integers. It is taken in pieces of 62 bits, each a BIGINT of its
own that DuckDB sums into a HUGEINT, which no number of rows fills: one piece holds scores as they
come, two their squared deviations, and 34 whatever doubles there are, subnormal and huge ones
together. So there is no value that a scale does not fit, only more pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

import duckdb

from longattn.selection.database import literal

PIECE = 62  # bits
LOWEST = -1074  # every double is a whole number of 2**-1074


@dataclass(frozen=True)
class Moments:
    """Of a column over one category."""

    mean: float
    deviation: float  # of the population
    low: float
    high: float


def moments(connection: duckdb.DuckDBPyConnection, table: str, value: str) -> dict[int, Moments]:
    """Moments of an SQL expression over the rows of each category: what math.fsum would give.

    Args:
        table: with a column `category`.
        value: finite in every row.

    Raises:
        OverflowError: values so far apart that their sum or the squares of deviations are no doubles.
    """
    extremes = {
        category: tuple(values)
        for category, *values in connection.execute(
            f"SELECT category, count(*), min({value}), max({value}), "
            f"min(abs({value})) FILTER ({value} <> 0) FROM {table} GROUP BY category"
        ).fetchall()
    }
    if not extremes:
        return {}
    smallest = [least for *_, least in extremes.values() if least is not None]
    unit = min(map(_unit, smallest), default=0)
    largest = max(max(abs(low), abs(high)) for _, low, high, _ in extremes.values())
    totals = _sums(connection, f"SELECT category, {value} AS r FROM {table}", unit, largest)
    means = {category: float(totals[category]) / of[0] for category, of in extremes.items()}

    distances = [
        max(high - means[category], means[category] - low)
        for category, (_, low, high, _) in extremes.items()
    ]
    largest = max(distance * distance for distance in distances)
    if not math.isfinite(largest):
        raise OverflowError("values are too far apart: the square of a deviation is no double")
    unit = max(LOWEST, 2 * min(unit, *(_unit(abs(mean)) for mean in means.values())))
    squares = _sums(
        connection,
        f"SELECT category, ({value} - mean) * ({value} - mean) AS r "
        f"FROM {table} JOIN {_values(means)} USING (category)",
        unit,
        largest,
    )
    return {
        category: Moments(
            means[category], math.sqrt(float(squares[category]) / rows), low, high
        )
        for category, (rows, low, high, _) in extremes.items()
    }  # fmt: skip


def _unit(value: float) -> int:
    """The g of a double >= 0, or a smaller one."""
    return max(LOWEST, math.frexp(value)[1] - 53) if value else 0


def _values(means: Mapping[int, float]) -> str:
    rows = ", ".join(f"({category}, {literal(mean)})" for category, mean in means.items())
    return f"(VALUES {rows}) AS means(category, mean)"


def _sums(
    connection: duckdb.DuckDBPyConnection, rows: str, unit: int, largest: float
) -> dict[int, Fraction]:
    """Exact sums by category of `r`, whole numbers of 2**unit of at most `largest`."""
    units = list(_pieces(unit, largest))
    # Not piece by piece from what the last one left: the planner's time doubles with each such step.
    above = [literal(0.0), *map(_truncated, units[:-1])]
    upto = [*above[1:], "r"]
    pieces = ", ".join(
        f"sum(CAST(({one} - {other}) * {_power(-own)} AS BIGINT))"
        for one, other, own in zip(upto, above, units, strict=True)
    )
    found = connection.execute(f"SELECT category, {pieces} FROM ({rows}) GROUP BY category")
    return {
        category: sum(
            (int(part) * Fraction(2) ** own for part, own in zip(parts, units, strict=True)),
            Fraction(0),
        )
        for category, *parts in found.fetchall()
    }


def _pieces(unit: int, largest: float) -> Iterator[int]:
    """The unit of each piece, as a power of two, from the highest piece down."""
    own = math.frexp(largest)[1]
    while True:
        own = max(unit, own - PIECE)
        yield own
        if own <= unit:
            return


def _truncated(unit: int) -> str:
    """`r` without what is below 2**unit; values of 53 bits above it stay as they are."""
    whole = f"trunc(r * {_power(-unit)}) * {_power(unit)}"
    return f"CASE WHEN abs(r) >= {literal(math.ldexp(1.0, unit + 53))} THEN r ELSE {whole} END"


def _power(exponent: int) -> str:
    """Two factors, since 2**1074 is no double though 2**-1074 is one."""
    half = exponent // 2
    return f"{literal(math.ldexp(1.0, half))} * {literal(math.ldexp(1.0, exponent - half))}"
