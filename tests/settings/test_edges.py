"""What is just allowed and what is not, of selections, mixes and overrides."""

import pytest

from longattn.config import Config, Mix, Select
from longattn.errors import ConfigError

SOURCE = {"category": "book", "path": "x"}
MIX = {"shares": {"book": 1}}
CONFIG = {"sources": [SOURCE], "output": "o"}


@pytest.mark.parametrize(
    "where",
    [
        {"column": "ds", "min": 0, "max": 0},
        {"column": "d", "max": -1.5},
        {"column": "ds", "quantiles": [0, 1]},
        {"column": "ds", "quantiles": ["20%", 0.8]},
    ],
)
def test_bounds_that_are_allowed(where):
    (bound,) = Select.check({"where": [where]}, "select").where
    assert bound.column == where["column"]


@pytest.mark.parametrize(
    "change",
    [
        {"where": [{"column": "", "min": 0}]},
        {"where": [{"column": "ds"}]},
        {"where": [{"column": "ds", "min": 1, "max": 0}]},
        *({"where": [{"column": "ds", end: float("nan")}]} for end in ("min", "max")),
        *({"where": [{"column": "ds", end: float("inf")}]} for end in ("min", "max")),
        *(
            {"where": [{"column": "ds", "quantiles": q}]}
            for q in ([0.5], [0.1, 0.5, 0.9], [0.5, 0.5])
        ),
        *(
            {"where": [{"column": "ds", "quantiles": q}]}
            for q in ([-0.1, 0.5], [0.5, 1.1], [0.8, 0.2])
        ),
        {"heads": []},
        {"heads": [-1]},
        {"keep": {}},
        {"keep": {"fraction": 0.5, "count": 3}},
        {"per_document": 0},
        {"memory": "63MB"},
    ],
    ids=str,
)
def test_selections_that_are_not(change):
    with pytest.raises(ConfigError) as error:
        Select.check(change, "select")
    assert "\n" not in str(error.value)


def test_the_least_memory_is_64_mb():
    assert Select.check({"memory": "64MB"}, "select").memory == 64_000_000


def test_heads_may_be_one_number():
    assert Select.check({"heads": 0}, "select").heads == (0,)
    assert Select.check({"heads": [3]}, "select").heads == (3,)


def test_quantiles_are_two_in_the_schema_as_well():
    (quantiles, _) = Select.model_json_schema()["$defs"]["Bound"]["properties"]["quantiles"][
        "anyOf"
    ]
    assert (quantiles["minItems"], quantiles["maxItems"]) == (2, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"pad_token": 0},
        {"packed": [{**SOURCE, "end_token": 0, "text_column": "t", "ids_column": "i"}]},
        {"shares": {"book": "0.1%", "web": 7}},
    ],
)
def test_mixes_that_are_allowed(change):
    assert Mix.of({**MIX, **change}).shares["book"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"pad_token": -1},
        {"packed": [{**SOURCE, "end_token": -1}]},
        {"packed": [{**SOURCE, "text_column": ""}]},
        {"packed": [{**SOURCE, "ids_column": ""}]},
        {"packed": [SOURCE, SOURCE]},
        {"packed": [{**SOURCE, "category": "web"}]},
        {"shares": {}},
        *({"shares": {"book": share}} for share in (0, -1, float("nan"), float("inf"))),
    ],
    ids=str,
)
def test_mixes_that_are_not(change):
    with pytest.raises(ConfigError, match=r"^mix: ") as error:
        Mix.of({**MIX, **change})
    assert "\n" not in str(error.value)


def test_a_mix_may_be_a_file(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text("shares: {book: 70%, web: 30%}\n")
    assert Mix.of(path) == Mix.of(str(path)) == Mix.of({"shares": {"book": 0.7, "web": 0.3}})
    path.write_text("shares: {book: 0}\n")
    with pytest.raises(ConfigError, match=rf"^{path}: "):
        Mix.of(path)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sources.1.path=x", "sources.1: an index from 0 to 0 is wanted"),
        ("sources.x.path=x", "sources.x: an index from 0 to 0 is wanted"),
        ("output.a.b=x", "output.a: the value above it has no fields"),
        ("sources.0.path.a=x", "sources.0.path.a: the value above it has no fields"),
    ],
)
def test_an_override_that_leads_nowhere_says_how_far_it_led(override, told):
    with pytest.raises(ConfigError, match=f"^--set {override}: {told}$"):
        Config.of(CONFIG, [override])
