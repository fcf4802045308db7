"""Names with dots in nested values."""

import re

import pytest

from longattn.corpus.reading import read_split
from longattn.corpus.records import member
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
