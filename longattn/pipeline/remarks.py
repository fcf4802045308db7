"""What of the settings came to nothing in a run, told beside its result."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any

from longattn.config import Config, Keep
from longattn.text import counted, counted_are

log = logging.getLogger("longattn")

SHOWN = 10  # files that are named in the log; of more, how many


def remarks(config: Config, categories: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each category without a window, and for each of which `select.keep` wants too much.

    Args:
        config: of the run.
        categories: by name what `RunSummary.categories` holds, or `CategorySelection.to_dict()`.
    """
    window, found = config.window.tokens, []
    for name, told in sorted(categories.items()):
        keep = config.select.keep_of(name)
        windows, kept = told.get("windows", 0), told.get("kept")
        if not windows:
            found.append(f"{name}: no window, because {_why_none(told, window)}")
            continue
        if kept is not None and told.get("out") and (short := _too_few(keep, told, window)):
            found.append(f"{name}: {kept:,} of {counted_are(windows, 'window')} kept, {short}")
        if kept is None or kept < windows - told.get("duplicate_rows", 0):
            continue
        if keep.count is not None and keep.count > kept:
            found.append(
                f"{name}: {_all(kept)} kept: select.keep.count {keep.count:,} is for each "
                "category, and more than it has"
            )
        elif keep.tokens is not None and keep.tokens >= told["kept_tokens"] + window:
            found.append(
                f"{name}: {_all(kept)} kept: select.keep.tokens {keep.tokens:,} is for each "
                f"category, and it has {told['kept_tokens']:,}"
            )
    return found


def _all(kept: int) -> str:
    return "its only window is" if kept == 1 else f"all {kept:,} windows are"


def _too_few(keep: Keep, category: Mapping[str, Any], window: int) -> str:
    """That bounds leave fewer windows than `keep` pays for; empty where they do not."""
    share = math.floor((keep.fraction or 0) * category["windows"] + 0.5)
    tokens = category["kept_tokens"] + window
    if category["kept"] >= (keep.count or share) and (keep.tokens is None or tokens > keep.tokens):
        return ""
    return "fewer than select.keep pays for: no more are within select.where"


def _why_none(category: Mapping[str, Any], window: int) -> str:
    """Why a category has no window, from what became of its records."""
    records, bad = category.get("records", 0), category.get("quarantine", {})
    documents, short = category.get("documents", 0), category.get("too_short", 0)
    if not records:
        return "its files hold no record"
    if not documents:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in bad.items())
        return f"none of its {counted(records, 'record')} could be used ({reasons})"
    if documents == short:
        return (
            f"each of its {counted(documents, 'document')} is shorter than window.tokens {window}"
        )
    rest = documents - short - category.get("duplicates", 0)
    if category.get("sampled_out"):
        windows = counted(category["sampled_out"], "window")
        return f"its sample takes none of the {windows} of {counted(rest, 'document')}"
    return f"of its {counted(documents, 'document')} {short:,} are too short and the others repeat them"


def log_stale(stale: Mapping[str, int], listed: Collection[str]) -> None:
    """A line for each file whose labelled windows are of what it was: by path, how many."""
    for path, windows in list(stale.items())[:SHOWN]:
        what = "has changed" if path in listed else "is gone from the listing"
        stay = f"{counted(windows, 'window')} labelled from what it was {'stays' if windows == 1 else 'stay'}"
        log.warning("%s %s; %s", path, what, stay)
    if len(stale) > SHOWN:
        log.warning("%d more files are gone or changed", len(stale) - SHOWN)
