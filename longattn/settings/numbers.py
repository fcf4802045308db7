"""Numbers as people write them: 1.5B windows, 32K tokens, 512M bytes, 50%.

What K means depends on the field. Counts are decimal: 100K windows are 100,000. Lengths in tokens
are powers of two: a window of 32K has 32768. Bytes are as in GNU tools: 512M and 512MiB are binary,
512MB is decimal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from operator import index
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from longattn.errors import ConfigError
from longattn.settings.wording import allowed

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.[0-9]*)?(?:[eE]\+?[0-9]{1,2})?"

DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
BINARY = {"": 1, "K": 2**10, "M": 2**20}
BYTES = {
    "": 1,
    "B": 1,
    **{unit + end: 2 ** (10 * n) for n, unit in enumerate("KMGT", 1) for end in ("", "I", "IB")},
    **{f"{unit}B": 10 ** (3 * n) for n, unit in enumerate("KMGT", 1)},
}
BYTES_TAKEN = "bytes"
SECONDS = {"": 1, "S": 1, "M": 60, "MIN": 60, "H": 3600, "D": 86400}


def count(value: Any) -> int:
    """A number of things; `1.5B` is 1,500,000,000. Raises ValueError."""
    return _whole(value, DECIMAL, "200K, 1.5B or 3e9")


def token_length(value: Any) -> int:
    """A length in tokens; `32K` is 32768. Raises ValueError."""
    return _whole(value, BINARY, "4096, 32K (32768) or 1M")


def byte_size(value: Any) -> int:
    """Bytes; `1G` is 2^30, `1GB` is 10^9. Raises ValueError."""
    return _whole(value, BYTES, "512M (binary), 2GiB or 500MB (decimal)")


def seconds(value: Any) -> int:
    """A span of time in seconds; `10m` is 600. Raises ValueError."""
    return _whole(value, SECONDS, "60s, 10m, 1h or 2d")


def percent(value: Any) -> Any:
    """`50%` as 0.5; everything else unchanged."""
    if isinstance(value, str) and (match := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        return float(match[1]) / 100
    return value


def _whole(value: Any, units: Mapping[str, int], example: str) -> int:
    match value:
        case bool():
            pass
        case str():
            parts = re.fullmatch(rf"\s*({_NUMBER})\s*([A-Za-z]*)\s*", value)
            scale = units.get(parts[2].upper()) if parts else None
            if parts and scale is not None:
                number = Decimal(parts[1].replace(",", "").replace("_", "")) * scale
                if scale > 1 or number == int(number):
                    return round(number)
        case float():
            if value.is_integer():
                return int(value)
        case _:
            try:
                return index(value)
            except TypeError:
                pass
    raise ValueError(f"a whole number is required, as in {example}")


def _schema(units: Mapping[str, int], at_least: int, takes: str) -> WithJsonSchema:
    """What an editor accepts: the number itself, or text with one of the units."""
    letters = "|".join(sorted(filter(None, units), key=lambda unit: (-len(unit), unit)))
    folded = "".join(f"[{c}{c.lower()}]" if c.isalpha() else c for c in letters)
    return WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": at_least},
                {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*({folded})?\s*$"},
            ],
            "takes": takes,
        }
    )


def _or_list(one: WithJsonSchema, of: dict[str, Any], takes: str) -> WithJsonSchema:
    """What an editor accepts: one, or a list of them."""
    single = (one.json_schema or {})["anyOf"]
    items = {"anyOf": [*single, {"type": "null"}] if "maxItems" in of else single}
    return WithJsonSchema(
        {"anyOf": [*single, {"type": "array", "items": items, **of}], "takes": takes}
    )


def _share(at_least: str) -> WithJsonSchema:
    number = {"type": "number", at_least: 0, "maximum": 1}
    text = {"type": "string", "pattern": r"^\s*[0-9.]+\s*%\s*$"}
    return WithJsonSchema({"anyOf": [number, text], "takes": "share"})


def _ascending(value: tuple[int, int | None]) -> tuple[int, int | None]:
    if value[1] is not None and value[0] > value[1]:
        raise ValueError("the first number is the smallest pool, the second the largest")
    return value


_COUNT, _LENGTH = _schema(DECIMAL, 1, "whole number"), _schema(BINARY, 1, "tokens")
Count = Annotated[int, BeforeValidator(count), Field(ge=1), _COUNT]
TokenLength = Annotated[int, BeforeValidator(token_length), Field(ge=1), _LENGTH]
WindowLength = Annotated[
    int, BeforeValidator(token_length), Field(ge=16), _schema(BINARY, 16, "tokens")
]
ByteSize = Annotated[int, BeforeValidator(byte_size), Field(ge=1), _schema(BYTES, 1, BYTES_TAKEN)]
TokenLengths = Annotated[
    tuple[TokenLength, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, (int, str)) else value),
    Field(min_length=1),
    _or_list(_LENGTH, {"minItems": 1}, "tokens, or a list of them"),
]
"""One length, or several."""
Seconds = Annotated[int, BeforeValidator(seconds), Field(ge=1), _schema(SECONDS, 1, "seconds")]
Fraction = Annotated[float, BeforeValidator(percent), Field(gt=0, le=1), _share("exclusiveMinimum")]
FractionOrZero = Annotated[float, BeforeValidator(percent), Field(ge=0, le=1), _share("minimum")]
"""A share that may be 0."""
Pool = Annotated[
    tuple[Count, Count | None],
    BeforeValidator(lambda value: (value, value) if isinstance(value, (int, str)) else value),
    AfterValidator(_ascending),
    _or_list(_COUNT, {"minItems": 2, "maxItems": 2}, "[smallest, largest], or one number"),
]
"""The smallest and the largest number of workers; null: as many as there can be."""


def read_number(kind: Any, name: str, value: Any) -> int:
    """A number of one of the kinds above, as in `read_number(Count, "--tokens", "36B")`.

    Raises ConfigError, one line that names it.
    """
    try:
        return int(TypeAdapter(kind).validate_python(value))
    except ValidationError as error:
        raise ConfigError(f"{name} {value}: {allowed(error.errors()[0])}") from None
