"""Splits, bad records and time stamps; names with dots in nested values."""

import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from longattn.corpus.reading import read_split
from longattn.corpus.records import (
    Reason,
    Split,
    _same_time,
    _seconds,
    bad_record,
    member,
    pack_task,
    shown_columns,
    too_long,
    unpack_task,
)
from longattn.corpus.sources import list_splits
from tests.corpus.files import Source, jsonl, put, reasons, texts

VALUE = {
    "a": {"b": 1, "c.d": 2, "e": {"f": 3}, "long": {"er": 4}},
    "a.b": {"c": 5},
    "a.e": None,
    "x.y": {"z": 6},
    "s": "text",
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.b", {"c": 5}),  # a name of its own comes first
        ("a.c.d", 2),
        ("a.e.f", 3),
        ("a.long.er", 4),
        ("a.b.c", 5),  # `a` has a `b` without a `c`
        ("a.e", None),
        ("x.y.z", 6),
    ],
)
def test_a_name_with_dots_leads_into_nested_values(name, found):
    assert member(VALUE, name) == found


@pytest.mark.parametrize(
    "name", ["b", "a.x", "a.e.x", "s.t", "a.", ".a", "", "x.y.z.w", "axb", "a,b"]
)
def test_what_is_not_there_is_named(name):
    with pytest.raises(KeyError, match=f"^{re.escape(repr(name))}$"):
        member(VALUE, name)


def test_the_text_of_json_may_be_nested(tmp_path):
    rows = [{"meta": {"body": "one", "n": 1}}, {"meta.body": "two"}, {"meta": {}}, {"body": "x"}]
    put(tmp_path / "a.jsonl", jsonl(rows))
    (split,) = list_splits([Source(str(tmp_path / "a.jsonl"), text_column="meta.body")])
    items = list(read_split(split))
    assert texts(items) == ["one", "two"] and reasons(items) == ["no_text_column"] * 2


LINES = Split("a", "/x/a.jsonl", "text", "jsonl", None, 0, 100, 100, "100:1")


def test_what_of_a_file_a_split_is():
    assert not LINES.is_part and LINES.size == 100
    for part, size in ((replace(LINES, stop=99), 99), (replace(LINES, start=1), 99)):
        assert part.is_part and part.size == size
    groups = replace(LINES, format="parquet", start=0, stop=None)
    assert not groups.is_part and groups.size == 100
    assert replace(groups, stop=1).is_part and replace(groups, start=2, stop=3).size == 100
    assert replace(LINES, compression="gzip", stop=None).size == 100


def test_a_split_is_the_same_whoever_asks_for_it():
    """Passwords and signatures expire; another file, or version of it, is another split."""
    url = "https://h/a.jsonl"
    known = replace(LINES, path=url)
    for path in ("https://me:pw@h/a.jsonl", f"{url}?X-Amz-Signature=1&X-Amz-Date=2"):
        assert replace(LINES, path=path).id == known.id
    for path in (f"{url}?versionId=2", "https://h/b.jsonl", "https://h/me@a.jsonl"):
        assert replace(LINES, path=path).id != known.id
    assert replace(LINES, path="https://me:pw@h/a.jsonl").source == "https://***@h/a.jsonl"


def test_tasks_are_packed_whole():
    marked = replace(LINES, marks=(("etag", "x"), ("time", "1")), columns=(("id", "int64"),))
    assert unpack_task(pack_task([LINES, marked])) == [LINES, marked]
    assert unpack_task(pack_task([])) == []


def test_details_are_printable_and_bounded():
    for detail, shown in (
        ("a\nb\x1b", "a\\nb\\x1b"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200),
        ("\n" * 150, ("\\n" * 100)[:199] + "…"),
        ("日\u202e", "日\\u202e"),
    ):
        assert bad_record(0, Reason.NOT_JSON, detail).detail == shown
    assert too_long(3, 12, 10).detail == "12 bytes, the cap is 10"
    assert bad_record(1, Reason.UNREADABLE, "", records=4, lost_bytes=9).records == 4


def test_some_columns_are_shown():
    assert shown_columns([]) == "its columns are none"
    assert shown_columns(["a", "b" * 70]) == f"its columns are 'a', '{'b' * 60}'"
    twelve = [f"c{i}" for i in range(12)]
    assert shown_columns(twelve) == f"its columns are {', '.join(map(repr, twelve))}"
    assert shown_columns([*twelve, "x"]) == f"its columns are {', '.join(map(repr, twelve))}, ..."


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("20260102030405", NOW),  # FTP
        ("20260102030405.5", NOW + 0.5),
        (str(NOW), NOW),
        (str(int(NOW)), NOW),
        (str(int(NOW) * 1000 + 250), NOW + 0.25),  # webhdfs
        ("2026-01-02T03:04:05Z", NOW),
        ("2026-01-02T03:04:05", NOW),
        ("2026-01-02T04:04:05+01:00", NOW),
        ("Fri, 02 Jan 2026 03:04:05 GMT", NOW),
        ("yesterday", None),
        ("", None),
    ],
)
def test_time_stamps_of_all_kinds_of_stores(stamp, seconds):
    assert _seconds(stamp) == seconds


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (NOW, NOW + 0.9, True),  # one of the two tells whole seconds alone
        (NOW, NOW + 1, False),
        (NOW, NOW - 1, False),
        (NOW + 0.25, NOW + 0.2509, True),
        (NOW + 0.25, NOW + 0.252, False),
        ("x", NOW, True),
        (NOW, "x", True),
    ],
)
def test_times_are_the_same_at_the_precision_of_the_coarser_one(one, other, same):
    assert _same_time(str(one), str(other)) == _same_time(str(other), str(one)) == same
