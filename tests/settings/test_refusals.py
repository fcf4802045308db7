import math
import re
from typing import Any

import pytest

from longattn.config import Config, Keep, Sample, Source
from longattn.errors import ConfigError
from longattn.settings import refusals
from longattn.settings.fields import setting_fields

MINIMAL = {"sources": [{"category": "book", "path": "x.jsonl"}], "output": "out"}


def told(values):
    with pytest.raises(ConfigError) as caught:
        Config.parse({**MINIMAL, **values}, "c.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"windw": {"tokens": 3}}, "windw: no such setting; did you mean window?"),
        ({"scorer": {"modle": "x"}}, "scorer.modle: no such setting; did you mean scorer.model?"),
        ({"select": {"Alpha": 1}}, "select.Alpha: no such setting; did you mean select.alpha?"),
        ({"alpha": 1}, "alpha: no such setting; did you mean select.alpha?"),
        ({"select": {"min_distance": 5}},
         "select.min_distance: no such setting; did you mean scorer.min_distance?"),
        ({"select": {"keep": {"token": 5}}},
         "select.keep.token: no such setting; did you mean select.keep.tokens?"),
        ({"sources": [{"category": "a", "path": "x", "text_colum": "text"}]},
         "sources.0.text_colum: no such setting; did you mean sources.0.text_column?"),
        ({"window": {"zzz": 1}}, "window.zzz: no such setting; allowed here: tokens"),
        ({"tokens": 5}, "tokens: no such setting; did you mean window.tokens or select.keep.tokens?"),
    ],
)  # fmt: skip
def test_an_unknown_setting_is_told_what_was_meant(values, line):
    assert told(values) == f"c.yaml: {line}"


def test_an_unknown_setting_is_told_before_what_follows_from_it():
    with pytest.raises(
        ConfigError, match=r"^config: source: no such setting; did you mean sources"
    ):
        Config.parse({"source": MINIMAL["sources"], "output": "out"})


def test_all_faults_are_told_at_once_a_line_each():
    values = {
        "sources": [{"category": "a b", "path": "x"}, {"category": "book"}],
        "window": {"tokens": 3},
        "scorer": {"modle": "x", "batch": 0},
        "select": {"keep": {"fraction": 50}},
        "scores": [{"name": "deep", "kind": "attention", "model": "m", "layers": "some"}],
    }
    with pytest.raises(ConfigError) as caught:
        Config.parse(values, "c.yaml")
    lines = str(caught.value).splitlines()
    assert tuple(lines) == caught.value.lines
    fields = [line.split(": ")[1] for line in lines]
    assert all(line.startswith("c.yaml: ") for line in lines)
    assert fields[0] == "scorer.modle"
    assert sorted(fields[1:]) == [
        "output", "scorer.batch", "scores.0.layers", "select.keep.fraction", "sources.0.category",
        "sources.1.path", "window.tokens",
    ]  # fmt: skip


def test_all_that_does_not_go_together_is_told_at_once():
    values = {
        **MINIMAL,
        "window": {"tokens": 512},
        "scorer": {"min_distance": [1024, 1024]},
        "select": {"name": "book", "categories": {"code": {}}},
        "scores": [{"name": "text", "kind": "measures"}, {"name": "text", "kind": "measures"}],
    }
    with pytest.raises(ConfigError) as caught:
        Config.parse(values, "c.yaml")
    wanted = [
        "c.yaml: scorer.min_distance 1024 is over window.tokens 512",
        "c.yaml: scorer.min_distance [1024, 1024] names one twice",
        "c.yaml: scores.1.name: two scores are named 'text'",
        "c.yaml: select.categories: no source has the category 'code'; there are: book",
        "c.yaml: select.name 'book' is a category, whose folder it would share",
    ]
    assert str(caught.value).splitlines() == wanted


def test_all_overrides_that_are_not_understood_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Config.of(MINIMAL, ["alpha", "sources.7.path=x", "select.keep.count=1"])
    first, second = str(caught.value).splitlines()
    assert first.startswith("--set alpha: ") and second.startswith("--set sources.7.path=x: ")


def test_a_setting_that_is_gone_is_refused_with_a_word_about_what_to_use(monkeypatch):
    monkeypatch.setitem(refusals.REPLACED, "scorer.stride", "use scorer.query_stride")
    line = "c.yaml: scorer.stride: no such setting; use scorer.query_stride"
    assert told({"scorer": {"stride": 2}}) == line


def test_each_setting_that_is_gone_names_what_there_is_instead():
    there = {field.path for field in setting_fields(Config)}
    gone = {path: word for path, word in refusals.REPLACED.items() if path not in there}
    for path, word in gone.items():
        section, _, name = path.rpartition(".")
        assert told({section: {name: 1}} if section else {name: 1}).endswith(f"; {word}")
    for path, word in refusals.REPLACED.items():  # nothing that is named is gone itself
        assert not [other for other in gone if other != path and other in word]


def test_settings_of_any_kind_are_checked_in_one_line():
    assert Keep.check({"count": "100K"}, "keep").count == 100_000
    source = Source(category="a", path="/x")
    assert Source.check(source, "source") == source
    for kind, value, line in (
        (
            Sample,
            0.1,
            "sample: Sample or a mapping of its fields (fraction, seed) is required, not float",
        ),
        (
            Sample,
            {"fraction": 2},
            "sample: fraction: a share above 0 and up to 1 is required, as 0.25 or 25%; did you mean 2%? "
            "(given: 2)",
        ),
        (
            Sample,
            {"fraction": "120%"},
            "sample: fraction: a share above 0 and up to 1 is required, as 0.25 or 25% (given: '120%')",
        ),
        (Source, {"category": "a"}, "sample: path: required, and not given"),
    ):
        with pytest.raises(ConfigError) as caught:
            kind.check(value, "sample")
        assert str(caught.value) == line


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"select": {"keep": {"count": "many"}}}, "select.keep.count: a whole number is required"),
        ({"sources": [{"category": 3, "path": "x"}]}, "which it is in quotes: '3' (given: 3)"),
        ({"sources": [{"category": None, "path": "x"}]}, "text is required (given: null)"),
        ({"sources": []}, "sources: 1 or more entries are required (given: [])"),
        ({"output": ""}, "output: text is required, not an empty one (given: '')"),
        ({"scorer": {"add_bos": "x"}}, "add_bos: true or false is required (given: 'x')"),
        (
            {"scorer": {"min_distance": 1.5}},
            "allowed: tokens, or a list of them or null (given: 1.5)",
        ),
        ({"workers": {"score": [1, 2, 3]}}, "or one number (given: [1, 2, 3])"),
        (
            {"workers": {"score": []}},
            "score: allowed: [smallest, largest], or one number (given: [])",
        ),
        ({"select": {"heads": "x"}}, "allowed: all, auto or list of whole numbers or section"),
        ({"select": {"alpha": {}}}, "select.alpha: a finite number is required (given: {})"),
    ],
)
def test_what_is_allowed_is_told_in_words_of_ours(values, line):
    assert line in told(values)


def test_no_wording_of_pydantic_reaches_people():
    """Values of every kind in every setting, and what is refused of them."""
    bad = ("x", -1, 0, 1.5, None, True, [], {}, [1, 2, 3], {"a": 1}, math.nan, 10**30, "", [None])
    lines = []
    for field in setting_fields(Config):
        for value in bad:
            values: Any = value
            for part in reversed(field.path.split(".")):
                values = [values] if part.isdigit() else {part.replace("<name>", "book"): values}
            try:
                Config.parse({**MINIMAL, **values}, "c.yaml")
            except ConfigError as error:
                lines += error.lines
    assert len(lines) > 500
    theirs = re.compile("Input|should|Field required|validation|unable to|valid |None|True")
    assert not [line for line in lines if theirs.search(line)]
