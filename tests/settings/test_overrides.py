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
    assert (
        read_yaml(text)
        == yaml.safe_load(text)
        == {"a": {"b": 1}, "c": {"b": 1, "d": [1, 2]}, 1: "x"}
    )
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")


LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 64))]
)
MERGED = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]" for i in range(1, 64))]
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LAUGHS, "aliases stand for more than 100000 values"),
        (MERGED, "aliases stand for more than 100000 values"),
        ("sources: &a [*a]", "aliases stand for more than 100000 values"),
        ("[" * 1500, "nested too deep"),
        ("output: " + "9" * 5000, "4300 digits"),
        ("output: 2026-99-99", "month must be"),
    ],
)
def test_yaml_that_does_not_end_is_refused_in_a_line(tmp_path, text, told):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"not YAML: .*{told}") as caught:
        Config.from_yaml(path)
    assert "\n" not in str(caught.value)


def test_aliases_are_read(tmp_path):
    text = "a: &a {x: [1, 2]}\nb: [*a, *a]\nc: {<<: *a, y: 3}"
    assert read_yaml(text) == yaml.safe_load(text)
