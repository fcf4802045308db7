"""Settings of a selection: by what windows are ranked, which may be kept, and how many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from longattn.settings.base import Settings, check_category, check_selection_name
from longattn.settings.numbers import ByteSize, Count, Fraction, FractionOrZero, count, seconds
from longattn.text import short

MIN_SELECT_MEMORY = 64 * 10**6
"""With less, the database that selects has no room for what it reads."""

Quantiles = Annotated[
    tuple[FractionOrZero, FractionOrZero],
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string"}]
            },
            "minItems": 2,
            "maxItems": 2,
            "takes": "[low, high], two shares",
        }
    ),
]


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


Numbers = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(_one_or_more),
    Field(min_length=1),
]


def _shape(value: Any) -> str:
    if isinstance(value, (Mapping, BaseModel)):
        return "(section)"
    return "(word)" if isinstance(value, str) else "(numbers)"


class HeadsOfScore(Settings):
    """Heads of deeper layers, whose scores the tables of a further score hold."""

    score: str = Field(pattern="^[a-z][a-z0-9_]*$", description="name of a score of kind attention")
    layer: Annotated[
        Annotated[Literal["all"], Tag("(word)")] | Annotated[Numbers, Tag("(numbers)")],
        Discriminator(_shape),
    ] = Field(
        "all",
        description="a layer by its number in the model, from 0, or several; all: those of the score",
    )
    head: Annotated[
        Annotated[Literal["all", "auto"], Tag("(word)")] | Annotated[Numbers, Tag("(numbers)")],
        Discriminator(_shape),
    ] = Field(
        "all",
        description="a head of these layers, or several; all; auto: the one of all of these that tells "
        "documents from splices in each category, chosen as the first layer's",
    )

    def among(self, layers: Sequence[int], heads: int) -> list[tuple[int, int]]:
        """(layer, head) of each that is named; for `auto` those that are chosen among.

        Args:
            layers: of the score.
            heads: of a layer.

        Raises:
            ValueError: a layer or a head that the score has not.
        """
        chosen = list(layers) if self.layer == "all" else [*self.layer]
        if not {*chosen} <= {*layers}:
            raise ValueError(
                f"select.heads.layer {chosen}: layers of the score {self.score}: "
                f"{', '.join(map(str, layers))}"
            )
        numbers = [*self.head] if isinstance(self.head, tuple) else list(range(heads))
        if max(numbers) >= heads:
            raise ValueError(
                f"select.heads.head {numbers}: heads of a layer of the score {self.score}: 0 to {heads - 1}"
            )
        return [(layer, head) for layer in chosen for head in numbers]

    @property
    def layers(self) -> str:
        """`layers 3, 7 of deep`, or `deep` of all of them."""
        if self.layer == "all":
            return self.score
        return (
            f"{'layer' if len(self.layer) == 1 else 'layers'} {_listed(self.layer)} of {self.score}"
        )

    def __str__(self) -> str:
        """`head 3 of layer 7 of deep` and the like."""
        if not isinstance(self.head, tuple):
            return (
                f"{self.head} heads of {self.layers}"
                if self.head == "all"
                else f"auto of {self.layers}"
            )
        return f"{'head' if len(self.head) == 1 else 'heads'} {_listed(self.head)} of {self.layers}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


Heads = Annotated[
    Annotated[Literal["all", "auto"], Tag("(word)")]
    | Annotated[Numbers, Tag("(numbers)")]
    | Annotated[HeadsOfScore, Tag("(section)")],
    Discriminator(_shape),
]


class Keep(Settings):
    """How much of each category is kept: exactly one of the three. None is a total of all."""

    fraction: Fraction | None = Field(None, description="share of each category's windows")
    tokens: Count | None = Field(
        None, description="a budget of tokens for each category, as in 1.5B (decimal)"
    )
    count: Count | None = Field(None, description="windows of each category, as in 100K (decimal)")

    @model_validator(mode="after")
    def _one(self) -> Keep:
        if sum(v is not None for v in (self.fraction, self.tokens, self.count)) != 1:
            raise ValueError("exactly one of fraction, tokens, count")
        return self

    def __str__(self) -> str:
        """`0.5 of the windows of each category`, `1.5 B tokens of each category`."""
        if self.fraction is not None:
            return f"{self.fraction:.3g} of the windows of each category"
        if self.tokens is not None:
            return f"{short(self.tokens)} tokens of each category"
        return f"{self.count:,} windows of each category"


class Bound(Settings):
    """A range of one column. A window outside of it, or without a value, is not kept."""

    column: str = Field(
        min_length=1,
        description="lds, or a column of numbers in labelled files or in a score table",
    )
    min: float | None = Field(
        None, allow_inf_nan=False, description="the lowest value that may be kept"
    )
    max: float | None = Field(
        None, allow_inf_nan=False, description="the highest value that may be kept"
    )
    quantiles: Quantiles | None = Field(
        None,
        description="[0.2, 0.8] keeps what lies between these shares of the category's windows that "
        "have a value, lowest first; of equal values the smaller data_id comes first",
    )

    @model_validator(mode="after")
    def _some(self) -> Bound:
        if self.min is None and self.max is None and self.quantiles is None:
            raise ValueError("one or more of min, max, quantiles")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}")
        if self.quantiles and self.quantiles[0] >= self.quantiles[1]:
            raise ValueError("quantiles: the first share is to be below the second")
        return self

    def __str__(self) -> str:
        """`repetition at most 0.3`, `lds at least 0, quantiles 0.2 to 0.8`."""
        parts = [
            *([f"at least {self.min:g}"] if self.min is not None else []),
            *([f"at most {self.max:g}"] if self.max is not None else []),
            *(["quantiles {:g} to {:g}".format(*self.quantiles)] if self.quantiles else []),
        ]
        return f"{self.column} {', '.join(parts)}"


class CategorySelect(Settings):
    """What differs in one category."""

    keep: Keep | None = Field(
        None, description="how much of this category is kept; null: as of the others"
    )
    where: tuple[Bound, ...] | None = Field(
        None, description="its own bounds in place of select.where; null: those, []: none"
    )


class Every(NamedTuple):
    """When a run that goes on selects anew: by time, by windows, or, where both are 0, at its pauses."""

    seconds: int = 0
    windows: int = 0


def read_every(text: Any) -> Every:
    """`end`, a span of time (`1h`) or a number of windows (`10000 windows`). Raises ValueError."""
    number = text.removesuffix("windows") if isinstance(text, str) else None
    try:
        if text == "end":
            return Every()
        every = Every(seconds(text)) if number == text else Every(windows=count(number))
    except ValueError:
        every = Every()
    if not any(every) or min(every) < 0:
        raise ValueError("end, a span of time as 30m or 1h, or `10000 windows` is required")
    return every


def _every(text: Any) -> str:
    read_every(text)
    return str(text)


class Select(Settings):
    name: Annotated[str | None, AfterValidator(check_selection_name)] = Field(
        None,
        description="of the selection: it goes to selected/<name>/<category>, beside others; null: to "
        "selected/<category>",
    )
    alpha: float = Field(0.5, ge=0, allow_inf_nan=False, description="weight of DU in LDS (Eq. 8)")
    standardize: Literal["zscore", "minmax"] = Field(
        "zscore", description="how DS and DU are brought to one scale, within each category"
    )
    heads: Heads = Field(
        "all",
        description="heads that DS and variance of LDS are means of: all, as in the paper; [9], of "
        "stored scores; auto: the one that tells documents from splices in each category, chosen once "
        "when the run is scored, else all (longattn/selection/heads.py); {score: deep, layer: 7, head: 3} "
        "or {score: deep, head: auto}: of deeper layers, by the tables of a score of kind attention",
    )
    rank_by: Annotated[str, Field(min_length=1)] = Field(
        "lds",
        description="the paper's LDS, or a column of numbers in labelled files (recurrence, "
        "recurrence_pairs, ...) or in a score table; the higher the better",
    )
    where: tuple[Bound, ...] = Field(
        (),
        description="bounds that a kept window is within, as [{column: recurrence_pairs, max: 0.9}]; "
        "quantiles, LDS and keep.fraction count all windows of a category, also those outside",
        examples=[[{"column": "recurrence_pairs", "max": 0.9}]],
    )
    overlap: Literal["allow", "prefer_distinct"] = Field(
        "allow",
        description="prefer_distinct: windows that share tokens with kept ones count for less "
        "(longattn/selection/overlap.py)",
    )
    per_document: Count | None = Field(
        None,
        description="windows of one document that are kept at most, best first; null: any number",
    )
    keep: Keep = Field(
        Keep(fraction=0.5),
        description="how much of each category is kept, best first; one of fraction, tokens, count. Each "
        "category is ranked alone and has the whole budget for itself",
    )
    categories: dict[Annotated[str, AfterValidator(check_category)], CategorySelect] = Field(
        {},
        description="what differs in some categories, as {code: {keep: {count: 100K}}}",
        examples=[{"book": {"keep": {"count": "100K"}}}],
    )
    every: Annotated[str, AfterValidator(_every)] = Field(
        "end",
        description="when `run --follow` selects anew: 1h, `10000 windows` (once so many more are "
        "labelled), or end: when no file has come for as long as --idle says. Then it does in any case",
    )
    memory: Annotated[ByteSize, Field(ge=MIN_SELECT_MEMORY)] = Field(
        10**9,
        description="bytes of memory for its tables; what outgrows them lies in the temporary "
        "folder",
    )

    @property
    def chooses_heads(self) -> bool:
        """Whether heads are chosen by foils of the corpus."""
        return "auto" in (self.heads, self.heads_of_score and self.heads_of_score.head)

    @property
    def heads_of_score(self) -> HeadsOfScore | None:
        """The heads of deeper layers that LDS is of; None where it is of the first layer."""
        return self.heads if isinstance(self.heads, HeadsOfScore) else None

    def keep_of(self, category: str) -> Keep:
        own = self.categories.get(category)
        return own.keep if own and own.keep else self.keep

    def where_of(self, category: str) -> tuple[Bound, ...]:
        own = self.categories.get(category)
        return self.where if own is None or own.where is None else own.where

    def counts_tokens(self) -> bool:
        """Whether some category's budget is one of tokens."""
        keeps = [self.keep, *(own.keep for own in self.categories.values() if own.keep)]
        return any(keep.tokens is not None for keep in keeps)

    def bound_columns(self) -> tuple[str, ...]:
        """Columns of all bounds, each once."""
        bounds = [*self.where, *(b for own in self.categories.values() for b in own.where or ())]
        return tuple(dict.fromkeys(bound.column for bound in bounds))

    def record(self) -> dict[str, Any]:
        """What decides the selection, as its record and files hold it.

        A setting that is at its default and came later than the first version is left out, so that
        files of earlier versions stay as they are.
        """
        values = self.model_dump(mode="json", exclude={"memory", "every"}, exclude_none=True)
        later: Mapping[str, Any] = {"heads": "all", "where": [], "categories": {}}
        return {key: value for key, value in values.items() if later.get(key, ...) != value}
