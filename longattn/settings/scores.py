"""Settings of further scores, each a column or several beside the labelled windows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, model_validator

from longattn.errors import ConfigError
from longattn.settings.base import Settings
from longattn.settings.numbers import Count, TokenLength
from longattn.settings.paths import absolute_model
from longattn.settings.selection import Bound

TAKEN = re.compile(
    r"(ds|variance)(_heads|_k\d+)?|recurrence(_rarity|_pairs)?|lds|data_id|content|input_ids|category"
    r"|source|document_id|window_index|token_start|token_stop|split|fingerprint"
)
"""Columns that labelled and selected files have of their own."""
MEASURES = ("compression_ratio", "repetition")


def check_score_name(value: str) -> str:
    """Raises ValueError for a name that is no column and folder of its own."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,47}", value):
        raise ValueError(
            "a score names a column and a folder: 1 to 48 of a-z 0-9 _, starting with a letter"
        )
    if TAKEN.fullmatch(value):
        raise ValueError("labelled windows have a column of this name; choose another")
    return value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def head_columns(name: str) -> tuple[str, str]:
    """Columns of DS and variance of every head of every layer, lists, of a score of kind attention."""
    return f"{name}_heads", f"{name}_variance_heads"


def single_values(kind: str, columns: Sequence[str]) -> list[str]:
    """Those of the columns of a score that hold a number a window, and not a list."""
    return list(columns[:2] if kind == "attention" else columns)


Layers = (
    Literal["all"]
    | Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
)


class Score(Settings):
    """A further score of labelled windows, kept in tables of its own below scores/<name>."""

    name: Annotated[str, AfterValidator(check_score_name)] = Field(
        description="of its folder and, but for measures, of its columns"
    )
    kind: Literal["loss_gap", "attention", "measures"] = Field(
        description="loss_gap: how much better a language model predicts with the whole window; "
        "attention: DS and variance of its layers; measures: compression_ratio and repetition, on CPUs"
    )
    model: Annotated[str | None, BeforeValidator(absolute_model)] = Field(
        None,
        description="causal language model: a local folder, a hub id, or a folder on s3:// or any fsspec "
        "URL, of which each machine keeps a copy below LONGATTN_CACHE; none for measures",
    )
    short: TokenLength | None = Field(
        None,
        description="of a loss gap, the short context in tokens; null: an eighth of the window",
    )
    layers: Layers = Field(
        "all", description="of attention: numbers of layers, from 0, or all that look far"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="number format of the model; null: bfloat16 on a GPU, float32 on a CPU"
    )
    batch: Count = Field(8, description="windows that are under way at a time; changes no number")
    where: tuple[Bound, ...] = Field(
        (),
        description="score only windows within bounds of cheaper columns: those of labelled files, or "
        "of scores before this one in the list; the others get null",
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> Score:
        if (self.model is None) != (self.kind == "measures"):
            wants = "takes no" if self.kind == "measures" else "needs a"
            raise ValueError(f"{self.name}: kind {self.kind} {wants} model")
        for field, kinds, default in (
            ("short", ("loss_gap",), None),
            ("layers", ("attention",), "all"),
            ("dtype", ("loss_gap", "attention"), None),
        ):
            if self.kind not in kinds and getattr(self, field) != default:
                raise ValueError(f"{self.name}: kind {self.kind} takes no {field}")
        if own := sorted({b.column for b in self.where} & {*self.columns}):
            raise ValueError(f"{self.name}: where: {own[0]} is a column of this score itself")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Of its tables, beside data_id; `single_values` says which of them are no lists."""
        name = self.name
        if self.kind == "loss_gap":
            return name, f"{name}_weighted"
        if self.kind == "attention":
            means = name, f"{name}_variance", f"{name}_layers", f"{name}_variance_layers"
            return *means, *head_columns(name)
        return MEASURES

    def short_of(self, window: int) -> int:
        """The short context of a loss gap of windows of so many tokens."""
        return self.short or max(1, window // 8)


def check_scores(scores: Sequence[Score], window: int, carried: Mapping[str, Any]) -> None:
    """Raises ConfigError for what `score_faults` gives, a line each."""
    if faults := list(score_faults(scores, window, carried)):
        raise ConfigError(*faults)


def score_faults(scores: Sequence[Score], window: int, carried: Mapping[str, Any]) -> Iterator[str]:
    """What of scores cannot stand side by side, or beside such windows, a line each.

    Args:
        window: its tokens.
        carried: by name, further columns of the windows.
    """
    owner: dict[str, str] = {}
    for i, score in enumerate(scores):
        if score.kind == "loss_gap" and 2 * score.short_of(window) >= window:
            yield (
                f"scores.{i}.short {score.short_of(window)}: allowed: less than half of the window "
                f"of {window} tokens"
            )
        if score.name in (other.name for other in scores[:i]):
            yield f"scores.{i}.name: two scores are named {score.name!r}"
            continue
        for column in score.columns:
            if column in carried:
                yield f"scores.{i}: sources.columns has a column {column!r}, too"
                break
            if column in owner:
                yield f"scores.{i}: {owner[column]!r} has a column {column!r}, too; rename one"
                break
            owner[column] = score.name
