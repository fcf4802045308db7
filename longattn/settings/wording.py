"""What pydantic finds wrong with a value, in words of ours: what is allowed, and what was given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def allowed(error: ErrorDetails) -> str:
    """What a value is to be that was refused."""
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    match kind:
        case "missing":
            return "required, and not given"
        case "string_type" if isinstance(given, (int, float)):
            return f"text is required, which it is in quotes: '{value(given)}'"
        case "string_type":
            return "text is required"
        case "string_too_short" | "too_short" if isinstance(given, str):
            return "text is required, not an empty one"
        case "too_short":
            return f"{context['min_length']} or more entries are required"
        case "too_long":
            return f"{context['max_length']} entries at most are allowed"
        case "literal_error":
            return f"{context['expected']} is required"
        case "greater_than":
            return f"a number above {context['gt']:g} is required"
        case "greater_than_equal":
            return f"{_number(context['ge'])} or more is required"
        case "less_than_equal":
            return f"{_number(context['le'])} or less is required"
        case "less_than":
            return f"a number below {context['lt']:g} is required"
        case "string_pattern_mismatch":
            return f"text of the pattern {context['pattern']} is required"
    if kind.startswith("int"):
        return "a whole number is required"
    if kind.startswith(("float", "finite")):
        return "a finite number is required"
    if kind.startswith("bool"):
        return "true or false is required"
    return error["msg"].removeprefix("Value error, ")


def _number(bound: float) -> str:
    return f"{bound:g}" if bound < 1e6 else f"{bound:,}"


def given(error: ErrorDetails) -> str:
    """` (given: 3)`; empty where a whole section was, of which others say what is wrong."""
    if error["type"] == "missing":
        return ""
    section = isinstance(error["input"], (Mapping, BaseModel))
    if section and error["type"] == "value_error":
        return ""
    return f" (given: {'a mapping' if section and error['input'] else value(error['input'])})"


def value(given: Any) -> str:
    """A value as YAML has it, at most 120 letters."""
    if isinstance(given, str):
        return f"{given!r:.120}"
    try:
        return f"{json.dumps(given, default=str, ensure_ascii=False):.120}"
    except ValueError:
        return f"{given!r:.120}"


def taken(schema: Mapping[str, Any]) -> str:
    """In words what a JSON schema allows."""
    if "takes" in schema:
        return str(schema["takes"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if shapes := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(taken, shapes)))
    if schema.get("type") == "array" and "$ref" not in schema["items"]:
        of = taken(schema["items"])
        return f"list of {of}s" if of.endswith("number") else f"list of {of}"
    if schema.get("type") == "object" and "additionalProperties" in schema:
        return "sections by name"
    names = {
        "string": "text",
        "boolean": "true, false",
        "integer": "whole number",
        "number": "number",
        "null": "null",
        "array": "list of sections",
    }
    return names.get(str(schema.get("type")), "section")
