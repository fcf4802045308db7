"""The heads that `select.heads: auto` chose for a folder: kept in its ledger, so that they stay the same.

`heads.json` holds by category the chosen heads, or null for all of them, why, and what each half of
the documents said of the other's choice (`heads.py`). A category that came later is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from longattn.selection.heads import HeadChoice
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.text import without_secrets


def kept_heads(folder: OutputFolder) -> dict[str, tuple[int, ...] | None]:
    """The chosen heads by category; None: all.

    Raises ValueError where none were chosen yet.
    """
    record = read_record(folder.record("heads"))
    if record is None:
        raise ValueError(
            f"select.heads auto: none were chosen for {without_secrets(folder.url)}; `longattn select`, "
            "`run` and `score` with its config choose them"
        )
    return heads_of(record["categories"])


def heads_of(categories: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """Heads by category of what `heads.json` or the record of a selection holds."""
    found = {}
    for category, told in categories.items():
        heads = told["heads"] if isinstance(told, Mapping) else told
        found[category] = None if heads is None else tuple(heads)
    return found


def chosen_categories(folder: OutputFolder) -> set[str]:
    """Categories for which heads were chosen."""
    return {*(read_record(folder.record("heads")) or {}).get("categories", {})}


def keep_choices(folder: OutputFolder, choices: Mapping[str, HeadChoice], alpha: float) -> None:
    """Add choices to the ledger; one that is there stays."""
    kept = (read_record(folder.record("heads")) or {}).get("categories", {})
    new = {
        category: {
            "heads": None if choice.head is None else [choice.head],
            "why": choice.why,
            "alpha": alpha,
            "judgements": [asdict(judgement) for judgement in choice.judgements],
        }
        for category, choice in choices.items()
    }
    write_record(folder.record("heads"), {"categories": {**new, **kept}})
