"""How much longer a tokenizer makes a text: bounded, since one that may do anything takes all memory.

`Replace` of one letter by a thousand, some times in a row, made of a word 8.6 GB, and ended the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longattn.windows.spec import Spec, Step

MOST = 1000  # times that the steps of a normalizer may lengthen a text at the worst
USUAL = 16  # times that they may lengthen a text that is there; those of models in use: 3
STEP = 1024  # characters that are looked at together: a megabyte at the worst


def worst_growth(spec: Spec) -> float:
    """How many times as long the `Replace` steps of a tokenizer.json may make a text, in bytes.

    Raises ValueError for more than MOST. (What Unicode itself lengthens is not counted: 11 times.)
    """
    growth = 1.0
    for step in _steps(spec.get("normalizer")):
        if step.get("type") != "Replace":
            continue
        pattern, content = step.get("pattern") or {}, len(str(step.get("content", "")).encode())
        taken = len(str(pattern.get("String", "")).encode()) if isinstance(pattern, dict) else 0
        # A regular expression, and an empty string, may match between any two bytes.
        growth *= max(1.0, content / taken) if taken else 1.0 + content
    if growth > MOST:
        raise ValueError(
            f"its normalizer may make a text {growth:.3g} times as long; {MOST} times is allowed"
        )
    return growth


def require_usual_growth(normalizer: Any, text: str) -> None:
    """Raises ValueError for a text that a normalizer of `tokenizers` makes over USUAL times as long."""
    most = USUAL * len(text) + STEP
    length = 0
    for start in range(0, len(text), STEP):
        length += len(normalizer.normalize_str(text[start : start + STEP]))
        if length > most:
            raise ValueError(f"the tokenizer makes it over {USUAL} times as long")


def _steps(normalizer: Any) -> Iterator[Step]:
    """The single steps of a normalizer, in order."""
    if not isinstance(normalizer, dict):
        return
    if normalizer.get("type") == "Sequence":
        for step in normalizer.get("normalizers") or ():
            yield from _steps(step)
    else:
        yield normalizer
