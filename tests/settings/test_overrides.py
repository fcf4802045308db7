import pytest
import yaml

from longattn.config import Config
from longattn.errors import ConfigError
from longattn.settings.overrides import apply_overrides, read_yaml

VALUES = {"sources": [{"category": "book", "path": "x.jsonl"}], "output": "out"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("select.keep.tokens=1B", "select.keep.count=3"),
        ("select.keep.count=3", "select.keep={fraction: 0.5}"),
        ("select.alpha=1", "select.alpha=2"),
        ("select.categories.book.keep.tokens=1B", "select.categories.book.keep.count=3"),
        ("scorer.dtype=float32", "scorer={model: builtin}"),
    ],
)
def test_two_overrides_of_which_one_would_be_lost_are_refused(first, second):
    with pytest.raises(ConfigError) as caught:
        Config.of(VALUES, [first, second])
    line = f"--set {first} and --set {second}: the second undoes the first; give one"
    assert str(caught.value) == line


def test_overrides_that_complete_each_other_hold_both():
    config = Config.of(
        VALUES, ["scorer={model: builtin}", "scorer.dtype=float32", "select.alpha=1"]
    )
    assert (config.scorer.dtype, config.select.alpha) == ("float32", 1)


def test_a_doubled_key_is_refused_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(VALUES) + "select: {alpha: 1}\nselect: {alpha: 2}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: not YAML: select stands twice") as caught:
        Config.from_yaml(path)
    assert "line 1" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="the value is not YAML"):
        apply_overrides({}, ["select.keep={count: 1, count: 2}"])


def test_yaml_is_read_as_safely_as_before():
    text = "a: &x {b: 1}\nc:\n  <<: *x\n  d: [1, 2]\n1: x\n"
    assert read_yaml(text) == yaml.safe_load(text) == {"a": {"b": 1}, "c": {"b": 1, "d": [1, 2]}, 1: "x"}  # fmt: skip
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")
