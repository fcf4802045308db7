from pathlib import Path

import pytest
import yaml

from longattn.config import Config
from longattn.errors import ConfigError
from longattn.text import without_secrets

MINIMAL = {"sources": [{"category": "book", "path": "x.jsonl"}], "output": "out"}


def written(tmp_path, values):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_configs_of_the_project_are_valid():
    paths = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        config = Config.from_yaml(path)
        assert config.window.tokens == 32768 and config.min_distance == 8192


def test_defaults_are_the_papers():
    config = Config.parse(MINIMAL)
    assert (config.select.alpha, config.select.standardize) == (0.5, "zscore")
    assert config.select.keep.fraction == 0.5
    assert (config.max_bad_fraction, config.max_record_bytes) == (0.01, 512 * 2**20)


def test_overrides_reach_any_field(tmp_path):
    path = written(tmp_path, MINIMAL)
    config = Config.from_yaml(
        path,
        [
            "select.alpha=1",
            "select.keep.tokens=1.5B",
            "sources.0.path=s3://b/*.parquet",
            "sources.0.sample={fraction: 0.1, seed: 12}",
            "workers.score=[2, 3]",
            "window.tokens=1024",
        ],
    )
    assert config.select.alpha == 1
    assert (config.select.keep.tokens, config.select.keep.fraction) == (1_500_000_000, None)
    assert config.sources[0].path == "s3://b/*.parquet"
    assert config.sources[0].sample.fraction == 0.1
    assert config.workers.score == (2, 3)
    assert config.workers.window == (1, None)
    assert config.min_distance == 256


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("select.alpha=x", "select.alpha"),
        ("select.alpha=.nan", "select.alpha"),
        ("select.keep.fraction=2", "select.keep.fraction"),
        ("select.keep={fraction: 0.5, count: 3}", "exactly one of fraction, tokens, count"),
        ("select.standardize=softmax", "allowed: zscore, minmax"),
        ("windw.tokens=3", "windw"),
        ("sources.7.path=x", "index from 0 to 0"),
        ("sources.0.category=../../etc", "a category names a folder"),
        ("sources.0.category=..", "a category names a folder"),
        ("workers.window=[5, 2]", "workers.window"),
        ("workers.score=[0, null]", "workers.score.0"),
        ("scorer.min_distance=40000", "over window.tokens 32768"),
        ("scorer.dtype=int8", "scorer.dtype"),
        ("scorer.rope_theta=.inf", "scorer.rope_theta"),
        ("output=", "output"),
        ("nonsense", "field=value is wanted"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line_that_names_it(tmp_path, override, said):
    with pytest.raises(ConfigError) as caught:
        Config.from_yaml(written(tmp_path, MINIMAL), [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "!!python/object/apply:os.getcwd []", "\x00"])
def test_what_is_no_config_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Config.from_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        Config.from_yaml(tmp_path / "none.yaml")


def test_a_category_has_one_sample_setting():
    twice = [
        {"category": "a", "path": "x", "sample": {"fraction": 0.1}},
        {"category": "a", "path": "y"},
    ]
    with pytest.raises(ConfigError, match="different sample settings"):
        Config.parse({**MINIMAL, "sources": twice})


def test_the_saved_settings_read_back_and_hold_no_secret(tmp_path):
    config = Config.parse(
        {"sources": [{"category": "a", "path": "s3://KEY:SECRET@bucket/x"}], "output": "memory://o"}
    )
    text = config.to_yaml()
    assert "SECRET" not in text and "KEY" not in text and "s3://***@bucket/x" in text
    again = Config.parse(Config.parse(MINIMAL).model_dump(mode="json", exclude_none=True))
    assert again == Config.parse(MINIMAL)


def test_redact_leaves_plain_urls_alone():
    assert without_secrets("s3://bucket/a b?c") == "s3://bucket/a b?c"
    assert without_secrets("/local/a@b") == "/local/a@b"
    assert without_secrets("https://u:p@host/x?token=1") == "https://***@host/x?***"


@pytest.mark.parametrize(
    ("distances", "told"),
    [([], "allowed: tokens, or a list"), ([5, 5], "names one twice"), ([4, 0], "1 or more is required"), ([900], "is over window.tokens")],
)  # fmt: skip
def test_distances_that_make_no_sense_are_refused(distances, told):
    values = {"sources": [{"category": "a", "path": "b"}], "output": "o", "window": {"tokens": 800}}
    with pytest.raises(ConfigError, match=told):
        Config.parse({**values, "scorer": {"min_distance": distances}})
    config = Config.parse({**values, "scorer": {"min_distance": [300, 100]}})
    assert (config.min_distance, config.min_distances) == (300, (300, 100))
