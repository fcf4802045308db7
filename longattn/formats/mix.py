"""The share of each category in an export: how many tokens of it are taken, and which sequences.

Those that come first by the hash of the seed and their data_id, as many as the share holds: the same
ones on any machine and whatever the layout of the files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from longattn.config import Mix
from longattn.errors import ConfigError
from longattn.formats.pieces import PieceTable
from longattn.text import counted, share, short

log = logging.getLogger("longattn")

_KEPT = """
CREATE TABLE kept AS SELECT * EXCLUDE (spent, budget) FROM (
    SELECT *, sum(length) OVER (PARTITION BY category ORDER BY place, name, bin) AS spent FROM pieces
) JOIN (VALUES {budgets}) AS budgets(category, budget) USING (category)
WHERE spent <= budget
"""  # pieces of one sequence are peers in this order: `spent` is that at its end


def apply_shares(table: PieceTable, mix: Mix) -> None:
    """Keep in `pieces` what the shares hold; tells each in a line.

    Raises ConfigError for a share of what is not there.
    """
    there = {name: tokens for name, (_, _, tokens) in table.totals().items()}
    if strange := sorted(mix.shares.keys() - there.keys()):
        raise ConfigError(
            f"shares.{strange[0]}: no such category; there are {', '.join(sorted(there))}"
        )
    budgets = token_budgets(mix, there)
    rows = ", ".join(f"({table.categories.index(name)}, {n})" for name, n in budgets.items())
    connection = table.connection
    connection.execute(_KEPT.format(budgets=rows))
    connection.execute("DROP TABLE pieces")
    connection.execute("ALTER TABLE kept RENAME TO pieces")
    _tell(mix, there, table.totals())


def token_budgets(mix: Mix, there: Mapping[str, int]) -> dict[str, int]:
    """Tokens of each category: its share of `mix.tokens`, or of the most that all shares can be had of."""
    total = sum(mix.shares.values())
    weights = {name: weight / total for name, weight in mix.shares.items()}
    tokens = mix.tokens or min(there[name] / weight for name, weight in weights.items())
    return {name: round(weight * tokens) for name, weight in weights.items()}


def _tell(mix: Mix, there: Mapping[str, int], kept: Mapping[str, tuple[int, int, int]]) -> None:
    budgets, total = token_budgets(mix, there), sum(mix.shares.values())
    tokens = sum(of for _, _, of in kept.values())
    for name, weight in mix.shares.items():
        sequences, _, of = kept.get(name, (0, 0, 0))
        told = f"{share(of, tokens)} of the tokens, {share(weight, total)} asked"
        if there[name] < budgets[name]:
            log.warning(
                "mix: %s: %s: %s tokens are wanted, and %s are there",
                name,
                told,
                short(budgets[name]),
                short(there[name]),
            )
        else:
            log.info(
                "mix: %s: %s: %s, %s tokens", name, told, counted(sequences, "window"), short(of)
            )
    for name in sorted(there.keys() - mix.shares.keys()):
        log.warning("mix: %s has no share: left out", name)
