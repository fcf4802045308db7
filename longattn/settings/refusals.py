"""What refused settings are told in: a line each with the field, the value, what is allowed or meant."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from longattn.errors import ConfigError
from longattn.settings.fields import model_at, setting_fields
from longattn.settings.wording import allowed, given, taken

REPLACED = {
    "select.second_pass": "score exactly instead: leave scorer.query_stride at 1",
    "second_pass": "score exactly instead: leave scorer.query_stride at 1",
    "workers.select": "leave it out: selection runs in one process, in select.memory bytes",
}
"""Settings that are gone -> what to do instead. Read only for what is no field."""
SHAPES = ("tuple_type", "list_type", "too_short", "too_long", "literal_error", "union_tag_invalid")
"""Errors of a value of another shape than its setting takes."""
_SECTIONS = {"type": "array", "items": {"$ref": ""}}

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], values: Any, where: str) -> M:
    """An instance of the model; raises ConfigError, a line a fault, each of which begins with `where`."""
    if not isinstance(values, (Mapping, model)):
        fields = ", ".join(model.model_fields)
        raise ConfigError(
            f"{where}: {model.__name__} or a mapping of its fields ({fields}) is required, "
            f"not {type(values).__name__}"
        )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*(f"{where}: {line}" for line in refusals(error, model))) from None


def refusals(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """All that is wrong, a line each; unknown fields first, without the fields that they stand for."""
    errors = error.errors()
    for one in errors:
        one["loc"] = _path(one["loc"])
        if one["type"] == "missing" and isinstance(one["loc"][-1], int):  # of [smallest, largest]
            one["loc"], one["type"] = one["loc"][:-1], "too_short"
    found = [(_place(one), one) for one in errors]
    above = {place[:n] for place, _ in found for n in range(len(place))}
    inside = [one for place, one in found if place not in above]  # the others follow from these
    unknown = [one for one in inside if one["type"] == "extra_forbidden"]
    meant = {_meant(one["loc"], model) for one in unknown}
    lines: dict[str, list[str]] = {}  # by field: of a value that may be of several shapes the first
    for one in unknown + [one for one in inside if one not in unknown]:
        field = ".".join(map(str, _place(one)))
        if one["type"] == "missing" and f"did you mean {field}?" in meant:
            continue
        texts = one["msg"].split("\n")  # a validator may have found several
        lines.setdefault(field, [_line({**one, "msg": text}, field, model) for text in texts])
    return [line for told in lines.values() for line in told]


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """Where a value stands, without the names of the shapes that it may have."""
    return tuple(part for part in error["loc"] if "[" not in str(part))


def _line(error: ErrorDetails, field: str, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        return f"{field}: no such setting; {_meant(error['loc'], model)}"
    return f"{field}: {_allowed(error, field, model)}{given(error)}".removeprefix(": ")


def _path(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A location without what says which shape of a setting was given, as `(section)`."""
    return tuple(part for part in location if not str(part).startswith("("))


def _allowed(error: ErrorDetails, field: str, model: type[BaseModel]) -> str:
    """What is allowed in place of a value."""
    kind, value = error["type"], error["input"]
    inner = model_at(model, (*error["loc"], ""))
    if kind in ("model_type", "model_attributes_type", "dict_type") and inner is not None:
        return f"a mapping is required, of {', '.join(inner.model_fields)}"
    schema = _schema(_place(error), model)
    shape = taken(schema)
    empty = kind == "too_short" and isinstance(value, str)
    if kind in SHAPES and "list of sections" not in shape and not empty:
        return f"allowed: {shape}"
    if kind in ("tuple_type", "list_type"):
        return "a list is required, each entry of which begins with a dash"
    if shape.startswith("share"):
        zero = "exclusiveMinimum" not in str(schema)
        told = (
            f"a share {'from 0 to' if zero else 'above 0 and up to'} 1 is required, as 0.25 or 25%"
        )
        percent = isinstance(value, (int, float)) and 1 < value <= 100
        return f"{told}; did you mean {value:g}%?" if percent else told
    return allowed(error)


def _schema(place: tuple[int | str, ...], model: type[BaseModel]) -> Mapping[str, Any]:
    """The JSON schema of a setting, or of the one whose entry stands there."""
    while place and isinstance(place[-1], int):
        place = place[:-1]
    schema = (model_at(model, place) or model).model_json_schema()["properties"]
    found: Mapping[str, Any] = schema.get(str(place[-1]) if place else "", _SECTIONS)
    return found


def _meant(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What to write in place of an unknown field."""
    name = str(location[-1])
    path = ".".join(part for part in location if isinstance(part, str))
    if path in REPLACED:
        return REPLACED[path]
    siblings = list((model_at(model, location) or model).model_fields)
    by_name: dict[str, list[str]] = {}
    for field in setting_fields(model):
        by_name.setdefault(field.path.rpartition(".")[2], []).append(field.path)
    if name in by_name:  # of another section
        return f"did you mean {' or '.join(by_name[name])}?"
    if close := get_close_matches(name.lower(), siblings, n=1):
        return f"did you mean {'.'.join(map(str, [*location[:-1], close[0]]))}?"
    if close := get_close_matches(name.lower(), list(by_name), n=1, cutoff=0.8):
        return f"did you mean {' or '.join(by_name[close[0]])}?"
    return f"allowed here: {', '.join(siblings)}"
