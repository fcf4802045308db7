"""What an export is mixed of: shares of categories, and short documents that are packed into windows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from longattn.settings.base import Settings, check_category
from longattn.settings.numbers import Count, percent
from longattn.settings.overrides import read_mapping
from longattn.settings.paths import LocalOrURL


class PackedSource(Settings):
    """Short documents, or windows, that are packed into windows."""

    category: Annotated[str, AfterValidator(check_category)] = Field(
        description="name under which it has a share"
    )
    path: LocalOrURL = Field(
        description="file, folder or glob; local (relative to where the command runs) or any "
        "fsspec URL"
    )
    text_column: str = Field(
        "content", min_length=1, description="column that holds the text of documents"
    )
    ids_column: str | None = Field(
        None,
        min_length=1,
        description="column of Parquet files with lists of ids of the scorer's tokenizer, as input_ids; "
        "null: the text is tokenized",
    )
    end_token: Annotated[int, Field(ge=0)] | None = Field(
        None, description="id put after each document that is tokenized; null: none"
    )


class Mix(Settings):
    """What an export is mixed of: the file of `longattn export --mix`."""

    shares: Annotated[
        dict[str, Annotated[float, BeforeValidator(percent), Field(gt=0, allow_inf_nan=False)]],
        Field(min_length=1),
        WithJsonSchema({"type": "object", "takes": "a share for each category"}),
    ] = Field(
        description="share of the tokens of each category, selected or packed, as {book: 70%, web: 30%}; "
        "they are scaled to a sum of one, and a category without one is left out"
    )
    tokens: Count | None = Field(
        None,
        description="tokens of the export, as in 2B (decimal); null: as many as the scarcest category "
        "allows",
    )
    packed: tuple[PackedSource, ...] = Field(
        (), description="further documents, packed into windows by best fit, none cut that fits one"
    )
    pad_token: int = Field(
        0, ge=0, description="id that fills windows where a format needs them of one length"
    )

    @model_validator(mode="after")
    def _categories(self) -> Mix:
        names = [source.category for source in self.packed]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"packed: two sources of category {min(twice)!r}")
        for name in names:
            if name not in self.shares:
                raise ValueError(f"packed: {name!r} has no share")
        return self

    @classmethod
    def of(cls, value: MixLike) -> Mix:
        """The mix that `value` is or names. Raises ConfigError, one line."""
        if isinstance(value, (str, Path)):
            return cls.check(read_mapping(value, "a mapping with `shares`", "a mix"), str(value))
        return cls.check(value, "mix")


MixLike = Mix | Mapping[str, Any] | str | Path
