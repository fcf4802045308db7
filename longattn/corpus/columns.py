"""Columns of the user's that go with each document into the labelled windows: their types and values.

A column has one type in all files of a run, that of the first look over its sources: as it is in
Parquet and Arrow; of JSON int64, double, bool or string. Where types differ, int64 and double are
double, and all else is string: a string as it is, any other value as JSON text, as are nested values.
A value that its column cannot hold is null.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import pyarrow as pa

STRING = "string"
NOT_KEPT = ("binary", "large_binary", "binary_view", "null", "interval")  # interval: not in Parquet


def type_name(kind: pa.DataType) -> str:
    """The name of the type that a column of an Arrow type gets."""
    if pa.types.is_null(kind):
        return ""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    try:
        return str(kind) if arrow_type(str(kind)) == kind else STRING
    except ValueError:
        return STRING


@cache
def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a name that `type_name` or `common_type` gave.

    Raises ValueError for others: only booleans, numbers, strings, dates and times are kept as they are.
    """
    zoned = re.fullmatch(r"timestamp\[(s|ms|us|ns), tz=([^\]]+)\]", name)
    if zoned:
        return pa.timestamp(zoned[1], tz=zoned[2])
    kind = pa.type_for_alias(name or STRING)
    if pa.types.is_string_view(kind):
        return pa.string()  # views cannot be picked by row, as the sink does
    if any(getattr(pa.types, f"is_{test}")(kind) for test in NOT_KEPT):
        raise ValueError(f"{name}: not a type of a column that is kept as it is")
    return kind


def type_of(value: Any) -> str:
    """The type of a JSON value; "" of null."""
    match value:
        case None:
            return ""
        case bool():
            return "bool"
        case int():
            return "int64" if -(2**63) <= value < 2**63 else STRING
        case float():
            return "double"
        case _:
            return STRING


def common_type(names: Iterable[str]) -> str:
    """One type for values of several; "" where all are null."""
    kinds = set(names) - {""}
    if len(kinds) < 2:
        return next(iter(kinds), "")
    if kinds <= {"string", "large_string", "string_view"}:
        return STRING
    types = [arrow_type(kind) for kind in kinds]
    if all(map(pa.types.is_integer, types)):
        return "int64"
    number = [pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in types]
    return "double" if all(number) else STRING


def fitted(value: Any, kind: str) -> Any:
    """A value, plain or an Arrow scalar, as one of a column's type; None where it cannot be one.

    With no type yet, as it is.
    """
    if isinstance(value, pa.Scalar):
        if not value.is_valid:
            return None
        if pa.types.is_dictionary(value.type):
            return fitted(value.as_py(), kind)
        if pa.types.is_temporal(value.type):  # as_py loses nanoseconds
            if str(value.type) == kind:
                return value
            value = str(value)
        else:
            value = value.as_py()
    if value is None or not kind:
        return value
    if kind in (STRING, "large_string", "string_view"):
        text = value if isinstance(value, str) else _json(value)
        return text if _encodes(text) else None
    if isinstance(value, bool) != (kind == "bool"):
        return None
    of = arrow_type(kind)
    if isinstance(value, float) and not (value.is_integer() or pa.types.is_floating(of)):
        return None  # Arrow would drop what is behind the point
    try:
        return pa.scalar(value, of).as_py()
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
