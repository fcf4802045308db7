"""JSON arrays and objects over several lines, against Python's json as the truth."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longattn.corpus import records
from longattn.corpus.json_values import json_layout, json_values
from longattn.corpus.records import BadRecord, Reason
from tests.corpus.files import ROWS, TEXTS, jsonl, put, read, reasons, splits_of, texts
from tests.examples import examples

BOM = b"\xef\xbb\xbf"
LAYOUTS = {
    "array": json.dumps(ROWS).encode(),
    "pretty array": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "array, a value a line": b"[\n" + b",\n".join(jsonl(ROWS).splitlines()) + b"\n]\n",
    "pretty objects": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "lines": jsonl(ROWS),
    "arrays, one a line": b"\n".join(json.dumps([row]).encode() for row in ROWS),
}


@pytest.mark.parametrize("mark", [b"", BOM, b" \n"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_json(tmp_path: Path, layout: str, mark: bytes) -> None:
    data = mark + LAYOUTS[layout]
    for name in ("a.json", "a.jsonl", "a.ndjson"):
        for split_bytes in (1 << 28, 1000):
            items = read(put(tmp_path / name, data), split_bytes=split_bytes)
            assert texts(items) == TEXTS
            for item in items:  # the position is that of the value's first byte
                assert data[item.position :].removeprefix(mark).lstrip()[:1] == b"{"
    assert texts(read(put(tmp_path / "a.json.gz", gzip.compress(data)))) == TEXTS
    with patch.object(records, "CHUNK", 7):
        assert texts(read(tmp_path / "a.json")) == TEXTS


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    row = {"meta": {"tags": ["a", {"b": "}]"}]}, "text": 'quotes " and \\ and ]}\n'}
    data = json.dumps(row, indent=4).encode()
    assert texts(read(put(tmp_path / "a.json", data))) == [row["text"]]


def test_only_lines_are_cut(tmp_path: Path) -> None:
    for layout, data in LAYOUTS.items():
        splits = splits_of(put(tmp_path / "a.json", data), split_bytes=1000)
        assert (len(splits) > 1) == (layout == "lines")


def test_a_bad_value_of_an_array_costs_that_value(tmp_path: Path) -> None:
    values = [
        b'{"text": "first"}',
        b'{"text": NaN}',
        b'{"text": "nan", "score": NaN}',
        b'{"text": "\xff"}',
        b'{"text": }',
        b'"text"',
        b"[1, 2]",
        b"17",
        b'{"other": 1}',
        b'{"text": "' + b"x" * 2000 + b'"}',
        b'{"text": "last"}',
    ]
    expected = [
        "first",
        Reason.NOT_A_STRING,
        "nan",
        Reason.BAD_UTF8,
        Reason.NOT_JSON,
        Reason.NOT_OBJECT,
        Reason.NOT_OBJECT,
        Reason.NOT_OBJECT,
        Reason.NO_TEXT_COLUMN,
        Reason.OVER_SIZE_CAP,
        "last",
    ]
    data = b"[" + b" ,\n ".join(values) + b"]"
    for chunk in (1, 3, 1 << 20):
        with patch.object(records, "CHUNK", chunk):
            items = read(put(tmp_path / "a.json", data), max_record_bytes=1000)
        assert [x.reason if isinstance(x, BadRecord) else x.text for x in items] == expected


@pytest.mark.parametrize("end", [b"", b","])
def test_an_array_that_is_cut_off_says_so(tmp_path: Path, end: bytes) -> None:
    whole = json.dumps(ROWS).encode()
    items = read(put(tmp_path / "a.json", whole[:-1] + end))
    assert texts(items) == TEXTS
    assert reasons(items) == ["not_json"]
    assert "cut off" in items[-1].detail  # type: ignore[union-attr]
    items = read(put(tmp_path / "a.json", whole[: len(whole) // 2]))
    assert texts(items) == TEXTS[: len(texts(items))]
    assert reasons(items) == ["not_json"]


def test_an_empty_array_has_no_records(tmp_path: Path) -> None:
    assert read(put(tmp_path / "a.json", b" [ ]\n")) == []
    assert read(put(tmp_path / "a.json", b"")) == []


def test_a_broken_first_line_does_not_make_an_array_of_the_rest(tmp_path: Path) -> None:
    for first in (b'{"text": "cut', b'{"text": "cut", ', b"{", b'["text"]', b"[[["):
        items = read(put(tmp_path / "a.jsonl", first + b"\n" + jsonl(ROWS)))
        assert texts(items) == TEXTS
        assert len(reasons(items)) == 1


def test_a_value_over_the_cap_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    data = b'[{"text": "' + b"x\\n" * (35 << 20) + b'"}, {"text": "after"}]'
    file = put(tmp_path / "a.json", data)
    del data
    tracemalloc.start()
    items = read(file, max_record_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(items) == ["over_size_cap"]
    assert texts(items) == ["after"]
    assert peak < 40 << 20


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(200), deadline=None)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=5), VALUE, max_size=4), max_size=6),
    indent=st.none() | st.integers(0, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_values_are_those_of_json(values: list[dict], indent: int | None, sizes: list[int]) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    pieces, place, turn = [], 0, 0
    while place < len(data):
        pieces.append(data[place : place + sizes[turn % len(sizes)]])
        place, turn = place + len(pieces[-1]), turn + 1
    found = list(json_values(iter(pieces), 1 << 20))
    assert [json.loads(item[0]) for item in found if not isinstance(item, BadRecord)] == values
    assert len(found) == len(values)
    assert all(data.startswith(value, at) for value, at in found)  # type: ignore[misc]
    if values:
        assert json_layout(data) == "values"


@settings(max_examples=examples(300), deadline=None)
@given(
    data=st.lists(
        st.sampled_from(
            [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"\n", b"1", b"a", b'{"text": "t"}']
        ),
        max_size=30,
    ).map(b"".join),
    chunk=st.integers(1, 12),
)
def test_no_bytes_of_an_array_vanish(data: bytes, chunk: int) -> None:
    data = b"[{}" + data
    pieces = [data[i : i + chunk] for i in range(0, len(data), chunk)]
    found = list(json_values(iter(pieces), 1 << 20))
    assert found == list(json_values(iter([data]), 1 << 20))
    held = bytearray(data)
    for item in found:
        if not isinstance(item, BadRecord):
            assert data.startswith(item[0], item[1]) and item[0]
            held[item[1] : item[1] + len(item[0])] = b" " * len(item[0])
    assert not bytes(held).translate(None, b"[], \n")
