"""The heads that `auto` of `select.heads` chose for a folder: kept in its ledger, so that they stay the same.

`heads.json` holds by category the chosen heads, or null for all of them, why, and what each half of
the documents said of the other's choice (`heads.py`). Of deeper layers a head is [layer, head], and
they stand below the layers that they were chosen among. A category that came later is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from longattn.selection.heads import HeadChoice
from longattn.settings.selection import Select
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.text import without_secrets

Heads = Mapping[str, tuple[Any, ...] | None]
"""The chosen heads by category: numbers of the first layer's, or (layer, head) of a score's; None, or a
category that is not there: all."""


def kept_heads(folder: OutputFolder, select: Select) -> dict[str, tuple[Any, ...] | None]:
    """The chosen heads by category; None: all.

    Raises ValueError where none were chosen yet.
    """
    choices = kept_choices(folder, select)
    if not choices:
        raise ValueError(
            f"select.heads auto: none were chosen for {without_secrets(folder.url)}; `longattn select`, "
            "`run` and `score` with its config choose them"
        )
    return heads_of(choices)


def heads_of(categories: Mapping[str, Any]) -> dict[str, tuple[Any, ...] | None]:
    """Heads by category of what `heads.json` or the record of a selection holds."""
    found = {}
    for category, told in categories.items():
        heads = told["heads"] if isinstance(told, Mapping) else told
        found[category] = (
            None
            if heads is None
            else tuple(tuple(head) if isinstance(head, list) else head for head in heads)
        )
    return found


def heads_record(heads: Heads) -> dict[str, Any]:
    """What the record of a selection and its files hold of them: plain lists, which JSON gives back."""
    return {
        category: None
        if of is None
        else [list(head) if isinstance(head, tuple) else head for head in of]
        for category, of in heads.items()
    }


def kept_choices(folder: OutputFolder, select: Select) -> dict[str, Any]:
    """By category what was chosen for a selection like this, and why; empty where nothing was."""
    record: Mapping[str, Any] = read_record(folder.record("heads")) or {}
    if select.heads_of_score:
        record = record.get("scores", {}).get(select.heads_of_score.layers, {})
    return dict(record.get("categories", {}))


def keep_choices(
    folder: OutputFolder,
    select: Select,
    choices: Mapping[str, HeadChoice],
    heads: Sequence[int] | Sequence[tuple[int, int]],
) -> None:
    """Add choices to the ledger; one that is there stays.

    Args:
        heads: what the numbers of the chosen heads stand for.
    """
    new = {
        category: {
            "heads": None if choice.head is None else [heads[choice.head]],
            "why": choice.why,
            "alpha": select.alpha,
            "judgements": [asdict(judgement) for judgement in choice.judgements],
        }
        for category, choice in choices.items()
    }
    record = read_record(folder.record("heads")) or {"categories": {}}
    categories = {"categories": {**new, **kept_choices(folder, select)}}
    if select.heads_of_score:
        scores = {**record.get("scores", {}), select.heads_of_score.layers: categories}
        write_record(folder.record("heads"), {**record, "scores": scores})
    else:
        write_record(folder.record("heads"), {**record, **categories})
