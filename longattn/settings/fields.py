"""The fields of a settings model by dotted path, as `--set` names them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class SettingField(NamedTuple):
    """One setting, or a section of settings."""

    path: str
    """Dotted; `0` stands for the index of a list."""
    info: FieldInfo
    section: type[BaseModel] | None
    """The model of a section; None for a single setting."""
    schema: dict[str, Any]
    """Its JSON schema."""


def setting_fields(model: type[BaseModel], prefix: str = "") -> Iterator[SettingField]:
    """Every field of a model and below it, a section before its own fields; of each kind once."""
    yield from _fields(model, prefix, set())


def _fields(
    model: type[BaseModel], prefix: str, seen: set[type[BaseModel]]
) -> Iterator[SettingField]:
    properties = model.model_json_schema()["properties"]
    for name, info in model.model_fields.items():
        path, section = f"{prefix}{name}", section_of(info.annotation)
        yield SettingField(path, info, section, properties[name])
        if section is not None and section not in seen:
            seen.add(section)
            yield from _fields(section, f"{path}.{_inside(info.annotation)}", seen)


def _inside(annotation: Any) -> str:
    """What a path has between a field and those of its section."""
    if get_origin(annotation) is dict:
        return "<name>."
    return "0." if Ellipsis in get_args(annotation) else ""  # tuple[Source, ...]


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `tuple[Source, ...]` or `Sample | None`; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (section_of(argument) for argument in get_args(annotation))
    return next((model for model in found if model is not None), None)


def model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that holds the last part of a location; None where there is none."""
    here: type[BaseModel] | None = model
    named = False  # whether the next part is a key of a mapping
    for part in location[:-1]:
        if isinstance(part, int) or here is None:
            continue
        if named:
            named = False
            continue
        info = here.model_fields.get(part)
        named = info is not None and get_origin(info.annotation) is dict
        here = section_of(info.annotation) if info else None
    return here
