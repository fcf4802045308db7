"""What the commands print: tables that fit a terminal, and lines that explain them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from longattn.text import count, counted, duration, short, size, without_secrets

if TYPE_CHECKING:
    from longattn.reports.evaluation_record import Auc, Evaluation, HeadsEvaluation

LONG = 12  # letters of a column's name that fit in one line beside all others
WIDTH = 80  # of what is not shown in a terminal


def console(width: int = WIDTH) -> Console:
    """As wide as the terminal; where there is none, `width`."""
    return Console(width=None if sys.stdout.isatty() else width)


def table(first: str, *columns: str) -> Table:
    """A table of numbers, each column but the first set to the right."""
    made = Table(first, *columns, box=None, pad_edge=False)
    for column in made.columns[1:]:
        column.justify = "right"
    return made


def show_categories(categories: Mapping[str, Mapping[str, Any]], rank_by: str) -> None:
    """One table of what became of each category, and a line that explains its columns.

    Args:
        categories: by name, what `CategorySummary.to_dict` or `CategorySelection.to_dict` gives.
        rank_by: what the windows were ranked by, as in the settings.
    """
    ranked = "LDS" if rank_by == "lds" else rank_by.removeprefix("recurrence_")
    read = any("documents" in category for category in categories.values())
    columns = {
        **({"read": "documents", "short": "too_short", "bad": "bad"} if read else {}),
        "windows": "windows",
        "kept": "kept",
        "tokens": "kept_tokens",
        "DS": "ds_mean",
        "variance": "variance",
        f"{ranked.replace('_', chr(10) + '_') if len(ranked) > LONG else ranked} from": "threshold",
    }
    rows = table("category", *columns)
    for column in rows.columns[1:-1]:
        column.no_wrap = True
    for column in (rows.columns[0], rows.columns[-1]):
        column.min_width = len("category")
    rows.columns[0].overflow = rows.columns[-1].overflow = "fold"  # a long name stays whole
    for name, category in sorted(categories.items()):
        du = category.get("du_mean")
        values = {
            **category,
            "bad": sum(category.get("quarantine", {}).values()),
            "variance": None if du is None else -du,
        }
        rows.add_row(name, *(_cell(values.get(key)) for key in columns.values()))
    shown = console()
    least = Measurement.get(
        shown, shown.options.update(width=1000), rows
    ).minimum  # numbers are never cut
    Console(width=max(shown.width, least)).print(rows)
    for name, category in sorted(categories.items()):
        for what, windows in category.get("out", {}).items():
            print(
                f"{name}: {what}: takes out {windows:,} of {counted(category['windows'], 'window')}"
            )
    console().print(
        f"{'short: documents below one window; ' if read else ''}DS, variance: means over all windows; "
        f"{ranked} from: the lowest kept. Each category is ranked and kept for itself.",
        style="dim",
        highlight=False,
    )


def show_evaluation(result: Evaluation, labels: Mapping[str, str], few: int) -> None:
    """A table for each category: AUC with its interval, a row a score, a column a kind of foil.

    Args:
        labels: what scores are called here.
        few: documents below which intervals are too narrow.
    """
    from longattn.reports.evaluation_record import FEW_HEADS, lds_of

    for name, category in result.categories.items():
        kinds = list(category.auc["LDS"])
        rows = table(f"{name}: AUC, native against", *kinds)
        for scorer, cells in category.auc.items():
            rows.add_row(labels.get(scorer, scorer), *(str(cells[kind]) for kind in kinds))
        console(160).print(rows)
        every = range(len(category.heads.names))
        _show_heads(f"{name}: AUC of each head", category.heads, every, _aucs(category.auc["LDS"]))
        for of, heads in category.deeper_heads.items():
            _show_heads(
                f"{name}, {of}: AUC of the best of {len(heads.names)} heads",
                heads,
                heads.best(FEW_HEADS),
                _aucs(category.auc[lds_of(of)]),
            )
        if category.documents < few:
            print(f"intervals from {counted(category.documents, 'document')} are too narrow")
        worth = [pair for pair in category.pairs if pair.worth]
        for pair in worth[:2]:
            a, b = (labels.get(scorer, scorer) for scorer in pair.scores)
            print(
                f"splices: {a} + {b} has AUC {pair.auc:.2f}, the better of the two "
                f"{pair.better:.2f} (chosen on these windows)"
            )
        if not worth:
            print("splices: no two scores together are better than the better of them")
    for name, seconds in result.costs.items():
        print(f"score {name}: {duration(seconds)} a window here")


def _aucs(cells: Mapping[str, Auc]) -> dict[str, float]:
    return {kind: cell.auc for kind, cell in cells.items()}


def _show_heads(
    title: str, heads: HeadsEvaluation, shown: Sequence[int], mean: Mapping[str, float]
) -> None:
    """AUC of some heads and of their mean, and what choosing one gives on documents that did not choose."""
    rows = table(title, *heads.auc)
    for head in shown:
        rows.add_row(heads.names[head], *(f"{cells[head]:.2f}" for cells in heads.auc.values()))
    rows.add_row("mean of all", *(f"{mean[kind]:.2f}" for kind in heads.auc))
    console(160).print(rows)
    print(f"{title.partition(':')[0]}: {heads.choice.why}")
    for half in heads.choice.judgements:
        told = ", ".join(
            f"{kind} {auc:.2f} ({low:.2f}-{high:.2f}), mean of heads {half.mean_auc[kind][0]:.2f}"
            for kind, (auc, low, high) in half.auc.items()
        )
        print(f"  {heads.names[half.head]}, chosen on half, on the unseen documents: {told}")


def show_stages(summary: Mapping[str, Any]) -> None:
    """A line of what a run did and how long it took, or that there was nothing to do."""
    window, score = summary["stages"]["window"], summary["stages"]["score"]
    if not summary["splits"]["read"]:
        print("nothing to score: all of it was labelled before")
        return
    again = sum(of.get("duplicates", 0) for of in summary["categories"].values())
    repeats = f", of which {again:,} repeat others and are left out" if again else ""
    print(
        f"read {counted(window['documents'], 'document')}{repeats} ({size(window['bytes'])}), "
        f"scored {counted(score['windows'], 'window')} at {short(score['tokens_per_second'])} tokens/s "
        f"a scorer, in {duration(summary['seconds'])}"
    )


def show_scores(scores: Mapping[str, Mapping[str, Any]], written: Mapping[str, int]) -> None:
    """A line for each further score: its tables, and what computing them took.

    Args:
        scores: by name, as the summary of a run holds them: of it and of those before.
        written: by name, tables that this run wrote.
    """
    for name, of in scores.items():
        if not written.get(name):
            print(f"score {name}: nothing to compute: {_there(of['tables'])}")
            continue
        within = "" if of["scored"] == of["windows"] else f"{count(of['scored'])} of "
        each = of["seconds"] / of["scored"] if of["scored"] else None
        print(
            f"score {name}: {counted(of['tables'], 'table')}, {within}{counted(of['windows'], 'window')} at "
            f"{duration(each)} each"
        )


def _there(tables: int) -> str:
    return (
        "its table was there before" if tables == 1 else f"all {tables:,} tables were there before"
    )


def show_written(output: str, places: Sequence[str]) -> None:
    """What of an output folder a person may want to look at, each place as it is named below it."""
    root = output.rstrip("/") + "/"
    below = "  ".join(place.removeprefix(root) for place in places)
    print(f"written: {without_secrets(output)}")
    for line in textwrap.wrap(without_secrets(below), WIDTH - 2, break_long_words=False):
        print(f"  {line}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.3f}"
