"""A tokenizer.json as JSON gives it: what its steps are."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]
"""A tokenizer.json: `model`, `added_tokens`, `normalizer`, `pre_tokenizer` and so on."""
Step = dict[str, Any]
"""A normalizer, a pre-tokenizer or an added token: its `type` or `content`, and fields of its own."""


def normalizers(spec: Spec) -> list[Step]:
    """The steps of the normalizer, in order."""
    return _steps(spec.get("normalizer"), "normalizers")


def pre_tokenizers(spec: Spec) -> list[Step]:
    """The steps of the pre-tokenizer, in order."""
    return _steps(spec.get("pre_tokenizer"), "pretokenizers")


def _steps(step: Step | None, of_sequence: str) -> list[Step]:
    if not step:
        return []
    steps: list[Step] = step[of_sequence] if step["type"] == "Sequence" else [step]
    return steps
