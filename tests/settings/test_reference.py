import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from longattn.config import Config, Mix
from longattn.errors import ConfigError
from longattn.settings.fields import setting_fields
from longattn.settings.reference import (
    editor_schema,
    first_config,
    settings_in_force,
    settings_page,
    write_first_config,
)

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "mine.yaml"
    write_first_config(Config, str(path))
    return path.read_text()


def test_every_setting_has_a_description():
    fields = list(setting_fields(Config))
    assert {f.path for f in fields} > {"sources.0.sample.seed", "select.keep.tokens", "output"}
    assert [f.path for f in fields if len(f.info.description or "") < 15] == []


def test_the_first_config_is_the_quickstart_with_an_output_of_its_own(text):
    first = Config.parse(yaml.safe_load(text))
    quickstart = Config.from_yaml(CONFIGS / "quickstart.yaml")
    assert first.output == str(Path("out/mine").absolute())
    assert first.model_copy(update={"output": quickstart.output}) == quickstart


EXAMPLE = re.compile(r"^( *)#(\w+:.*(?:\n *#  - .*)*)", re.MULTILINE)


def uncommented(text, which=None):
    """The text with the n-th example as a setting; with all of them."""
    places = iter(range(1000))

    def bare(match):
        if which not in (None, next(places)):
            return match[0]
        return re.sub(r"^( *)#", r"\1", match[0], flags=re.MULTILINE)

    return EXAMPLE.sub(bare, text)


def test_each_example_of_the_first_config_loads_once_its_mark_is_taken_away(text):
    plain = Config.parse(yaml.safe_load(text))
    examples = list(EXAMPLE.finditer(text))
    assert len(examples) > 20
    shown = {name: field for field in setting_fields(Config) if (name := field.path)}
    changed = set()
    for place, example in enumerate(examples):
        values = yaml.safe_load(uncommented(text, place))
        assert values != yaml.safe_load(text), example[0]  # it sets something
        name = example[2].partition(":")[0]
        if Config.parse(values) != plain:
            changed.add(name)
    assert changed == {
        path.rpartition(".")[2] for path, field in shown.items() if field.info.examples
    }
    assert {"scores", "where", "sample", "columns", "categories"} <= changed
    # What is no example is prose, and is not taken for a setting.
    for line in uncommented(text).splitlines():
        assert re.match(r"^ *(# \S.*|#   .*|[^#].*|)$", line), line


def test_the_comments_of_the_first_config_show_every_setting(text):
    """Each `#name: value` made a setting: those without an example change nothing."""
    whole = yaml.safe_load(uncommented(text))
    scores = [score.name for score in Config.parse(whole).scores]
    assert scores == ["text", "gap"]
    for field in setting_fields(Config):
        node = whole
        parts = field.path.split(".")
        inside = len(parts) > 2 and (parts[1] != "0" or parts[0] == "scores")
        if inside or len(parts) > 3:  # explained in the line above
            assert f"# - {parts[-1]}: " in text
            continue
        for part in parts:
            node = node[int(part) if part.isdigit() else part]
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_first_config_overwrites_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("mine")
    with pytest.raises(ConfigError, match=r"c\.yaml: is already there"):
        write_first_config(Config, str(path))
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        write_first_config(Config, str(tmp_path / "no" / "c.yaml"))


def test_the_page_of_settings_is_up_to_date():
    page = settings_page(Config, Mix)
    assert (CONFIGS / "SETTINGS.md").read_text() == page, (
        "longattn config --reference > configs/SETTINGS.md"
    )
    for field in [*setting_fields(Config), *setting_fields(Mix)]:
        assert f"\n| `{field.path.rpartition('.')[2]}` |" in page


def test_the_schema_takes_good_configs_and_refuses_bad_ones(text):
    schema = json.loads(json.dumps(editor_schema(Config)))
    validator = jsonschema.Draft202012Validator(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    good = [yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("*.yaml"))]
    good.append(yaml.safe_load(text))
    minimal = {"sources": [{"category": "a", "path": "x"}], "output": "o"}
    good.append(
        {
            **minimal,
            "window": {"tokens": "32K"},
            "scorer": {"min_distance": ["8K", 4096]},
            "workers": {"window": 3, "score": [1, None]},
            "select": {"keep": {"tokens": "1.5B"}},
            "file_bytes": "1G",
        }
    )
    for values in good:
        validator.validate(values)
        Config.parse(values)
    bad = [
        {"output": "o"},
        {**minimal, "windw": {}},
        {**minimal, "window": {"tokens": 3}},
        {**minimal, "window": {"tokens": "lots"}},
        {**minimal, "select": {"standardize": "x"}},
        {**minimal, "workers": {"score": [1, 2, 3]}},
        {**minimal, "select": {"keep": {"fraction": 2}}},
    ]
    for values in bad:
        assert not validator.is_valid(values)
        with pytest.raises(ConfigError):
            Config.parse(values)


def test_settings_in_force_tell_where_each_comes_from():
    values = {"sources": [{"category": "a", "path": "/x"}], "output": "/o", "select": {"alpha": 1}}
    given = ["workers.score", "sources.0.text_column"]
    config = Config.of(values, ["workers.score=3", "sources.0.text_column=text"])
    told = {path: (value, origin) for path, value, origin in settings_in_force(config, given)}
    assert told["sources.0.path"] == ("/x", "file")
    assert told["sources.0.text_column"] == ("text", "--set")
    assert told["workers.score"] == ([3, 3], "--set")
    assert told["select.alpha"] == (1, "file") and told["scorer.dtype"] == (None, "default")


def test_a_first_config_explains_what_it_sets():
    values = {"sources": [{"category": "a", "path": "/x"}], "output": "/o"}
    text = first_config(Config, values)
    assert "  # window length in tokens; K and M are powers of two: 32K is 32768" in text
    assert "has the whole budget for itself" in text.replace("\n  #", "")
