"""What of the settings came to nothing in a run, told beside its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longattn.config import Config


def remarks(config: Config, categories: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each category without a window, and for each of which `select.keep` wants too much.

    Args:
        config: of the run.
        categories: by name what `RunSummary.categories` holds, or `CategorySelection.to_dict()`.
    """
    keep, window, found = config.select.keep, config.window.tokens, []
    for name, told in sorted(categories.items()):
        windows, kept = told.get("windows", 0), told.get("kept")
        if not windows:
            if told.get("documents") and told["documents"] == told.get("too_short"):
                found.append(
                    f"{name}: no window, because each of its {told['documents']:,} documents is "
                    f"shorter than window.tokens {window}"
                )
            continue
        if kept is None or kept < windows - told.get("duplicate_rows", 0):
            continue
        if keep.count is not None and keep.count > kept:
            found.append(
                f"{name}: all {kept:,} windows are kept: select.keep.count {keep.count:,} is for each "
                "category, and more than it has"
            )
        elif keep.tokens is not None and keep.tokens >= told["kept_tokens"] + window:
            found.append(
                f"{name}: all {kept:,} windows are kept: select.keep.tokens {keep.tokens:,} is for each "
                f"category, and it has {told['kept_tokens']:,}"
            )
    return found
