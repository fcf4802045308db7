"""Settings of further scores: what is refused, and how it says so."""

import pytest
import yaml

from longattn.config import Config
from longattn.errors import ConfigError
from longattn.settings.scores import TAKEN, Score, single_values
from longattn.settings.selection import Bound
from longattn.storage.tables import SELECTED, is_own

GAP = {"name": "gap", "kind": "loss_gap", "model": "builtin"}
TEXT = {"name": "text", "kind": "measures"}


def config(*scores, **fields):
    source = {"category": "book", "path": "x.jsonl", **fields}
    return Config.parse({"sources": [source], "output": "out", "scores": scores})


def test_no_score_takes_a_name_that_windows_have_of_their_own():
    for name in [*SELECTED.names, "ds_k5", "variance_k12", "split", "fingerprint"]:
        assert TAKEN.fullmatch(name) and is_own(name)


def test_columns_are_named_after_the_score_and_its_kind():
    deep = {"name": "deep", "kind": "attention", "model": "builtin", "layers": 3}
    gap, text, layers = config(GAP, TEXT, deep).scores
    assert gap.columns == ("gap", "gap_weighted") and gap.short_of(32768) == 4096
    assert text.columns == ("compression_ratio", "repetition")
    means = ("deep", "deep_variance", "deep_layers", "deep_variance_layers")
    assert layers.columns == (*means, "deep_heads", "deep_variance_heads")
    assert single_values("attention", layers.columns) == ["deep", "deep_variance"]
    assert single_values("loss_gap", ("their_layers",)) == ["their_layers"]
    assert layers.layers == (3,)


def test_settings_come_back_from_yaml_and_are_changed_by_set():
    made = config({**GAP, "where": [{"column": "ds", "quantiles": ["20%", 0.8]}]}, TEXT)
    assert Config.parse(yaml.safe_load(made.to_yaml())) == made
    changed = Config.of(made, ["scores.0.short=1K", "scores.0.where=[{column: ds, min: 0.5}]"])
    assert changed.scores[0].short == 1024
    assert changed.scores[0].where == (Bound(column="ds", min=0.5),)


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([{**GAP, "name": "ds"}], "scores.0.name: labelled windows have a column of this name"),
        ([{**GAP, "name": "Gap"}], "scores.0.name: a score names a column and a folder"),
        ([{**GAP, "short": "16K"}], "scores.0.short 16384: allowed: less than half of the window"),
        ([{**GAP, "kind": "measures"}], "gap: kind measures takes no model"),
        ([{**TEXT, "kind": "loss_gap"}], "text: kind loss_gap needs a model"),
        ([{**GAP, "layers": [0]}], "gap: kind loss_gap takes no layers"),
        ([{**TEXT, "dtype": "float32"}], "text: kind measures takes no dtype"),
        ([{**GAP, "kind": "attention", "layers": [-1]}], "scores.0.layers"),
        ([{**GAP, "where": [{"column": "ds"}]}], "scores.0.where.0: one or more of min, max"),
        ([{**GAP, "where": [{"column": "gap", "min": 0}]}], "gap is a column of this score itself"),
        ([GAP, GAP], "scores.1.name: two scores are named 'gap'"),
        ([TEXT, {**TEXT, "name": "b"}], "'text' has a column 'compression_ratio', too; rename one"),
        ([GAP, {**GAP, "name": "gap_weighted"}], "'gap' has a column 'gap_weighted', too"),
        ([{**GAP, "batches": 3}], "scores.0.batches: no such setting; did you mean scores.0.batch?"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(scores, told):
    with pytest.raises(ConfigError) as error:
        config(*scores)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_column_of_the_users_own_and_of_a_score_are_told_apart():
    with pytest.raises(ConfigError, match=r"sources.columns has a column 'gap', too"):
        config(GAP, columns=["gap"])


def test_a_score_is_checked_by_itself():
    assert Score.check(TEXT, "score").batch == 8
