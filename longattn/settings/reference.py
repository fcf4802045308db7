"""All settings explained, from their own descriptions: a first config, a page, a JSON schema."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longattn.errors import ConfigError
from longattn.samples import SAMPLES
from longattn.settings.fields import SettingField, setting_fields
from longattn.settings.numbers import BYTES_TAKEN
from longattn.settings.wording import taken
from longattn.text import without_secrets

WIDTH = 96
OFTEN_SET = {
    "sources",
    "sources.0.category",
    "sources.0.path",
    "output",
    "window",
    "window.tokens",
    "scorer",
    "scorer.model",
    "select",
    "select.alpha",
    "select.keep",
    "workers",
    "workers.window",
    "workers.score",
}
"""Settings that a first config sets; the others stand in it as comments."""


def first_config(model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """A commented YAML config: every setting with its description, `values` and the defaults.

    Args:
        model: the settings.
        values: what has no default: `output`, and `sources`, of which the first is explained.
    """
    lines = [
        "# Settings of a longattn run, all of them. Lines such as `#text_column: content` show defaults, "
        "or",
        "# examples: take the `#` away to set one. Numbers may be written 32K, 1.5B, 512M, 50%.",
        "# `longattn config FILE` shows what is in force, `longattn plan FILE` what a run would "
        "give.",
    ]
    for field in setting_fields(model):
        parts = field.path.split(".")
        name, depth = parts[-1], len(parts) - 1
        if depth > 1 and (parts[1] != "0" or parts[0] != "sources"):
            continue  # a section in a section is one line, and explained above it
        value = values.get(name) if depth == 0 else None
        if parts[0] == "sources" and depth:
            if depth > 2:
                continue
            value = values["sources"][0].get(name)
        if depth == 0:
            lines.append("")
        lines += _explained(field, "  " * depth)
        lines += _lines(field, name, depth, value)
        if field.path.startswith("sources.") and name == list(field_names(model, "sources"))[-1]:
            lines += [f"  - {_flow(source)}" for source in values["sources"][1:]]
    return "\n".join(lines) + "\n"


def write_first_config(model: type[BaseModel], path: str) -> None:
    """Write a config that runs on the documents of this package; its output is `out/<name of file>`.

    Raises ConfigError where a file is already there, or none can be written.
    """
    names = [
        name.removesuffix(".jsonl.gz") for name in sorted(p.name for p in SAMPLES.glob("*.gz"))
    ]
    sources = [{"category": name, "path": f"samples:{name}.jsonl.gz"} for name in names]
    text = first_config(model, {"sources": sources, "output": f"out/{Path(path).stem}"})
    try:
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{path}: is already there, and stays as it is; name a new file"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def field_names(model: type[BaseModel], section: str) -> Iterator[str]:
    """Names of the settings directly in a section."""
    for field in setting_fields(model):
        if field.path == section and field.section is not None:
            yield from field.section.model_fields


def settings_page(model: type[BaseModel], mix: type[BaseModel]) -> str:
    """All settings as a Markdown page, a table a section; those of a mix under a title of their own."""
    tables: dict[str, list[str]] = {}
    below: dict[type[BaseModel], str] = {}  # where each kind of section is explained
    whole = [("The config", field) for field in setting_fields(model)]
    whole += [("The file of `longattn export --mix`", field) for field in setting_fields(mix)]
    for title, field in whole:
        section, _, name = _plain(field.path).rpartition(".")
        text = " ".join((field.info.description or "").split()).replace("|", "\\|")
        default = _default(field) if _has_default(field) else "required"
        if field.section is not None:
            default = default if isinstance(field.info.default, str) else ""
            text += f" (see `{below.setdefault(field.section, _plain(field.path))}` below)"
        takes = taken(field.schema).replace("|", "\\|")
        tables.setdefault(section or title, []).append(
            f"| `{name}` | {takes} | {default} | {text} |"
        )
    lines = [
        "# Settings",
        "",
        "Written by `longattn config --reference`. `--set a.b=value` sets any of them for one run;",
        "`longattn init FILE` writes a config with all of them as comments, and `longattn config "
        "--schema`",
        "a JSON schema for editors.",
        "",
        "Numbers may be written as text. Counts are decimal (`1.5B`, `100K`), lengths in tokens "
        "are powers",
        "of two (`32K` is 32768), bytes are binary as `512M` or `512MiB` and decimal as `512MB`, "
        "shares may",
        "be percentages (`10%`). A local path counts from the folder in which the command runs.",
    ]
    for section, rows in tables.items():
        lines += [
            "",
            f"## {section}",
            "",
            "| setting | takes | default | what it is |",
            "|---|---|---|---|",
            *rows,
        ]
    return "\n".join(lines) + "\n"


def _plain(path: str) -> str:
    """A path without the index of a list and the key of a mapping."""
    return path.replace(".0.", ".").replace(".<name>.", ".")


def editor_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a config, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def settings_in_force(
    settings: BaseModel, given: list[str], prefix: str = "", inherited: str = "file"
) -> Iterator[tuple[str, Any, str]]:
    """Each setting with its value and where it comes from: default, file or --set.

    Args:
        settings: checked settings.
        given: the fields that `--set` names.
        prefix: of the paths.
        inherited: where the settings themselves come from.
    """
    for name in type(settings).model_fields:
        path, value = f"{prefix}{name}", getattr(settings, name)
        origin = inherited if name in settings.model_fields_set else "default"
        if any(path == other or path.startswith(f"{other}.") for other in given):
            origin = "--set"
        if isinstance(value, BaseModel):
            yield from settings_in_force(value, given, f"{path}.", origin)
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            for i, item in enumerate(value):
                yield from settings_in_force(item, given, f"{path}.{i}.", origin)
        elif isinstance(value, dict) and value:
            for key, item in value.items():
                yield from settings_in_force(item, given, f"{path}.{key}.", origin)
        else:
            yield path, list(value) if isinstance(value, tuple) else value, origin


def print_settings(settings: BaseModel, overrides: Sequence[str], console: Console) -> None:
    """The settings in force as a table, secrets in URLs masked."""
    table = Table("setting", "value", "from", box=None, pad_edge=False)
    given = [override.partition("=")[0] for override in overrides]
    for path, value, origin in settings_in_force(settings, given):
        shown = without_secrets(json.dumps(value, ensure_ascii=False))
        table.add_row(path, escape(shown), origin)
    console.print(table, highlight=False)


def _explained(field: SettingField, indent: str) -> list[str]:
    text = " ".join((field.info.description or "").split())
    shown = field.info.examples or (field.section is None and field.path in OFTEN_SET)
    if shown and _has_default(field):
        text += f" (default {_default(field)})"
    width = WIDTH - len(indent) - 2
    lines = textwrap.wrap(text, width)
    if field.section is not None and ("." in field.path or field.info.default == ()):
        for name, info in field.section.model_fields.items():
            told = f"- {name}: {' '.join((info.description or '').split())}"
            lines += textwrap.wrap(told, width, subsequent_indent="  ")
    return [f"{indent}# {line}" for line in lines]


def _lines(field: SettingField, name: str, depth: int, value: Any) -> list[str]:
    """A setting, in force or behind a `#`: at its value, as an example, or at its default."""
    dash = "- " if field.path == "sources.0.category" else ""
    if field.path.startswith("sources.0."):
        depth = 1 if dash else 2
    before = f"{'  ' * depth}{'' if field.path in OFTEN_SET else '#'}"
    head = f"{before}{dash}{name}:"
    if field.section is not None and "." not in field.path and field.info.default != ():
        return [head]
    if value is not None:
        return [f"{head} {_flow(value)}"]
    if not field.info.examples:
        return [f"{head} {_default(field)}"]
    example = field.info.examples[0]
    if isinstance(example, list) and isinstance(example[0], dict):
        return [head, *(f"{before}  - {_flow(entry)}" for entry in example)]
    return [f"{head} {_flow(example)}"]


def _has_default(field: SettingField) -> bool:
    return field.info.default is not PydanticUndefined


def _default(field: SettingField) -> str:
    value = field.info.default
    if field.schema.get("takes") == BYTES_TAKEN and value % 2**20 == 0:
        return f"{value >> 20}M"
    return _flow(value)


def _flow(value: Any) -> str:
    """A value as one line of YAML."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()
