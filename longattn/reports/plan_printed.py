"""A plan as tables on a terminal or in a pipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from longattn.corpus.records import Split
from longattn.corpus.suffixes import suffix_of
from longattn.reports.plan import Plan, PlanWatcher
from longattn.reports.plan_sample import CategoryPlan
from longattn.text import count, counted, duration, share, short, size


class PlanPrinter(PlanWatcher):
    """Prints a plan while it is made: what is there, what a sample says, then what was measured."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def settings(self, settings: Sequence[tuple[str, Any, str]]) -> None:
        table = Table("setting", "value", "from", box=None, pad_edge=False)
        for path, value, origin in settings:
            table.add_row(path, escape(json.dumps(value)), origin)
        self._show(table)

    def files(self, files: Mapping[str, Sequence[Split]]) -> None:
        table = _table("category", "files", "size", "suffixes")
        for name, of in files.items():
            suffixes = Counter(suffix_of(split.path) for split in of).most_common()
            table.add_row(
                name,
                count(len(of)),
                size(sum(split.file_size for split in of)),
                ", ".join(f"{n:,} {suffix}" for suffix, n in suffixes),
            )
        self._show(table)

    def counts(self, categories: Mapping[str, CategoryPlan]) -> None:
        found = _table("category", "read", "documents", "repeated", "long", "windows", "tokens")
        given = _table("category", "kept", "tokens", "labelled files", "selected files")
        for name, told in categories.items():
            about = "" if told.read == 1 else "~"
            error = f" ±{told.error:.0%}" if told.error else ""
            found.add_row(
                name,
                share(told.read),
                about + count(told.documents),
                about + count(told.repeated),
                about + count(told.long),
                about + count(told.windows) + error,
                about + short(told.tokens),
            )
            given.add_row(
                name,
                about + count(told.kept),
                short(told.kept_tokens),
                size(told.labelled_bytes),
                size(told.selected_bytes),
            )
        self._show(found)
        self._show(given)

    def _show(self, table: Table) -> None:
        """A table, at once also where a pipe reads it."""
        for column in table.columns:
            if column.no_wrap:
                column.min_width = max(map(len, map(str, [column.header, *column.cells])))
        wide = self.console.options.update(width=1000)
        least = Measurement.get(self.console, wide, table).minimum  # numbers are never cut
        if least > self.console.width:
            Console(file=self.console.file, width=least).print(table)
        else:
            self.console.print(table)
        self.console.print()
        self.console.file.flush()


def print_rest(result: Plan, console: Console) -> None:
    """What a plan tells beside its tables of categories."""
    stated = result.rate_from == "stated"
    kind = "scorer" if stated else {"cuda": "GPU", "cpu": "CPU scorer"}[result.rate_from]
    measured = "stated" if stated else "measured here"
    console.print(
        f"{counted(result.windows, 'window')} at {result.windows_per_second:.3g} a second ({measured}):"
        f" {result.device_hours:.3g} {kind} hours"
    )
    for scorers in sorted(set(result.scorers)):
        plural = "" if scorers == 1 else "s"
        console.print(f"  on {scorers} {kind}{plural}: {duration(result.wall_seconds(scorers))}")
    for cost in result.scores:
        console.print(cost.line(), markup=False, highlight=False)
    if result.done:
        console.print(result.done)
    for lines in (result.heads, result.checks):
        for name, line in lines.items():
            console.print(f"{name}: {line}", markup=False, highlight=False)
    console.print()
    for warning in result.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, style="yellow")
    console.print(
        f"nothing was written; `longattn run` would write to {result.output}", markup=False
    )


def _table(*columns: str) -> Table:
    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = column.header != "suffixes"
    table.columns[0].min_width = len("category")
    table.columns[0].overflow = "fold"  # a long name stays whole
    return table
