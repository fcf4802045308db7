"""A plan as tables on a terminal or in a pipe."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from longattn.reports.plan import Plan
from longattn.text import count, counted, duration, share, short, size


def print_plan(result: Plan, console: Console) -> None:
    """The plan as tables, for a person or a pipe."""
    table = _table(
        "category",
        "files",
        "size",
        "read",
        "documents",
        "long enough",
        "windows",
        "tokens",
        "labelled",
        "kept",
        "kept tokens",
        "selected",
    )
    for name, told in result.categories.items():
        about = "" if told.read == 1 else "~"
        error = f" ±{told.error:.0%}" if told.error else ""
        table.add_row(
            name,
            count(told.files),
            size(told.bytes),
            share(told.read),
            about + count(told.documents),
            about + count(told.long),
            about + count(told.windows) + error,
            about + short(told.tokens),
            size(told.labelled_bytes),
            about + count(told.kept),
            short(told.kept_tokens),
            size(told.selected_bytes),
        )
    console.print(table)
    stated = result.rate_from == "stated"
    kind = "scorer" if stated else {"cuda": "GPU", "cpu": "CPU scorer"}[result.rate_from]
    measured = "stated" if stated else "measured here"
    console.print(
        f"\n{counted(result.windows, 'window')} at {result.windows_per_second:.3g} a second ({measured}):"
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
    settings = Table("setting", "value", "from", box=None, pad_edge=False)
    for path, value, origin in result.settings:
        settings.add_row(path, json.dumps(value), origin)
    console.print(settings)
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
    return table
