"""Types of the user's columns, and values made to fit them: against Arrow's own casts and Python's json."""

import json
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from longattn.corpus.columns import arrow_type, common_type, fitted, type_name, type_of

KEPT = [
    pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.string(),
    pa.large_string(), pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.duration("us"),
    pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ms", tz="Europe/Berlin"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KEPT, ids=str)
def test_single_values_keep_their_type(kind: pa.DataType) -> None:
    assert arrow_type(type_name(kind)) == kind
    assert type_name(pa.dictionary(pa.int8(), kind)) == type_name(kind)


@pytest.mark.parametrize(
    "kind",
    [
        pa.binary(), pa.large_binary(), pa.binary_view(), pa.list_(pa.int8()), pa.decimal128(9, 2),
        pa.struct([("a", pa.int8())]), pa.month_day_nano_interval(), pa.binary(4), pa.string_view(),
    ],
    ids=str,
)  # fmt: skip
def test_others_become_strings(kind: pa.DataType) -> None:
    assert arrow_type(type_name(kind)) == pa.string()


def test_a_column_of_nulls_has_no_type_yet() -> None:
    assert type_name(pa.null()) == common_type([]) == common_type(["", ""]) == ""


@pytest.mark.parametrize(
    "name", ["binary", "large_binary", "null", "month_day_nano_interval", "nonsense"]
)
def test_names_that_no_column_has_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        arrow_type(name)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, ""), (True, "bool"), (0, "int64"), (2**63 - 1, "int64"), (-(2**63), "int64"),
        (2**63, "string"), (-(2**63) - 1, "string"), (0.5, "double"), ("x", "string"),
        ([1], "string"), ({"a": 1}, "string"),
    ],
)  # fmt: skip
def test_types_of_json(value: object, kind: str) -> None:
    assert type_of(value) == kind
    assert kind in ("", "string") or fitted(value, kind) == value


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        (["int64", ""], "int64"),
        (["int8", "uint16"], "int64"),
        (["int64", "double"], "double"),
        (["float", "int8", ""], "double"),
        (["bool", "int64"], "string"),
        (["date32[day]", "int64"], "string"),
        (["timestamp[us]", "timestamp[ns]"], "string"),
        (["string", "large_string"], "string"),
        (["large_string"], "large_string"),
        (["string", "double"], "string"),
    ],
)
def test_one_type_for_several(kinds: list[str], common: str) -> None:
    assert common_type(kinds) == common_type(reversed(kinds)) == common


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (None, "int64", None), (None, "string", None), ({"a": 1}, "", {"a": 1}),
        (3, "double", 3.0), (3.0, "int64", 3), (3.5, "int64", None), (float("nan"), "int64", None), (0.5, "float", 0.5), (300, "int8", None),
        ("3", "int64", None), ("x", "double", None), 
        (True, "int64", None), (1, "bool", None), (True, "bool", True), (False, "string", "false"),
        (1.5, "string", "1.5"), ("é", "large_string", "é"), ("\ud800", "string", None),
        ({"é": [1, None]}, "string", '{"é": [1, null]}'), ([b"\x00\xff"], "string", '["AP8="]'),
        ({"d": date(2026, 1, 2)}, "string", '{"d": "2026-01-02"}'),
        (b"abc", "string", '"YWJj"'), (Decimal("1.50"), "string", '"1.50"'),
        (date(2026, 1, 2), "date32[day]", date(2026, 1, 2)),
    ],
)  # fmt: skip
def test_values_fit_their_column_or_are_null(value: object, kind: str, expected: object) -> None:
    found = fitted(value, kind)
    assert found == expected and type(found) is type(expected)


def test_arrow_scalars_are_fitted_as_what_they_hold() -> None:
    def scalar(value: object, kind: pa.DataType) -> pa.Scalar:
        return pa.scalar(value, kind)

    assert fitted(scalar(None, pa.int8()), "int64") is None
    assert fitted(scalar(3, pa.int8()), "double") == 3.0
    assert fitted(pa.array(["a", "b"]).dictionary_encode()[1], "string") == "b"
    nanoseconds = scalar(10**18 + 1, pa.timestamp("ns"))
    assert fitted(nanoseconds, "timestamp[ns]") is nanoseconds  # not a nanosecond is lost
    assert fitted(nanoseconds, "string").endswith("000000001")
    assert fitted(scalar(datetime(2026, 1, 2), pa.timestamp("us")), "timestamp[ns]") is None
    assert fitted(scalar([1, 2], pa.list_(pa.int8())), "string") == json.dumps([1, 2])
