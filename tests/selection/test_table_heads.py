"""Heads of deeper layers: which lists of a score table LDS is of, and what is refused in one line."""

import json

import numpy as np
import pyarrow as pa
import pytest

import longattn as la
from longattn.config import Config
from longattn.selection.columns import require_selectable
from longattn.settings.selection import HeadsOfScore
from tests.labelled import labelled_table, write_heads_table, write_labelled, write_score_table
from tests.selection.test_select_windows import selected

LAYERS = (0, 3)
N = 12


@pytest.fixture
def labelled(tmp_path):
    """A labelled file with a table of two layers of three heads; layer 3 head 1 counts up."""
    ids = [f"book-{i:03d}" for i in range(N)]
    url = write_labelled(tmp_path, "book", labelled_table("book", ids, np.ones(N), np.ones(N)))
    scores = np.random.default_rng(0).random((N, 2, 6))
    scores[:, 0, 4], scores[:, 1, 4] = np.arange(N), 1
    write_heads_table(url, "deep", LAYERS, scores.tolist())
    return url, scores


def test_the_named_head_ranks(labelled, tmp_path):
    told = la.select(
        str(tmp_path), heads={"score": "deep", "layer": 3, "head": 1}, keep={"count": 3}
    )
    assert selected(tmp_path)["data_id"].to_pylist() == ["book-009", "book-010", "book-011"]
    assert told["book"].ds_mean == np.arange(N).mean() and told["book"].du_std == 0
    record = json.loads((tmp_path / "_longattn/selection.json").read_text())["select"]
    assert record["heads"] == {"score": "deep", "layer": [3], "head": [1]}


def test_windows_without_a_value_are_not_kept_and_move_no_other(labelled, tmp_path):
    url, scores = labelled
    some = [None if i in (3, 11) else of for i, of in enumerate(scores.tolist())]
    write_heads_table(url, "deep", LAYERS, some)
    told = la.select(
        str(tmp_path), heads={"score": "deep", "layer": 3, "head": 1}, keep={"count": 3}
    )
    there = [i for i in range(N) if i not in (3, 11)]
    assert selected(tmp_path)["data_id"].to_pylist() == ["book-008", "book-009", "book-010"]
    assert told["book"].ds_mean == np.mean(there) and told["book"].windows == N
    assert told["book"].out == {"lds has no value": 2}


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (
            {"score": "deep", "layer": 4},
            r"select.heads.layer \[4\]: layers of the score deep: 0, 3",
        ),
        (
            {"score": "deep", "head": 3},
            r"select.heads.head \[3\]: heads of a layer .* deep: 0 to 2",
        ),
        ({"score": "dep"}, "no table of a score 'dep' in .* `longattn score` computes them"),
        ({"score": "gap"}, "scores/gap has none; allowed: a score of kind attention"),
        (
            {"score": "old"},
            "scores/old was computed before scores of heads were kept; under another",
        ),
        ({"score": "lost"}, r"scores/lost lacks 1 of 2 files"),
        ({"score": "none"}, "no window of category 'book' has a value of the score none"),
        (
            {"score": "deep", "head": "auto"},
            "so it holds no settings; give a config whose output it is",
        ),
        ({"scor": "deep"}, "heads.scor: no such setting; did you mean heads.score"),
        (
            {"score": "deep", "head": "best"},
            "heads.head: allowed: all, auto or list of whole numbers",
        ),
    ],
)
def test_heads_that_no_table_has_are_refused_in_one_line(labelled, tmp_path, heads, said):
    url, scores = labelled
    write_score_table(url, "gap", {"gap": np.arange(float(N))})
    write_score_table(url, "old", {"old": np.ones(N), "old_layers": pa.array([[1.0, 2.0]] * N)})
    write_heads_table(url, "none", LAYERS, [None] * N, heads=3)
    if heads["score" if "score" in heads else "scor"] == "lost":
        write_heads_table(url, "lost", LAYERS, scores.tolist())
        write_labelled(tmp_path, "code", labelled_table("code", ["c"], np.ones(1), np.ones(1)))
    with pytest.raises(ValueError, match=said) as refused:
        la.select(str(tmp_path), heads=heads)
    assert "\n" not in str(refused.value) and not (tmp_path / "selected").exists()


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ({"score": "gap"}, "the score 'gap' is of kind loss_gap, which has no heads"),
        (
            {"score": "dep", "head": "auto"},
            "auto runs the model of the score 'dep'.*; it has gap, deep",
        ),
        ({"score": "dep"}, "no table of a score 'dep'"),
    ],
)
def test_what_no_run_of_a_config_can_select_by_is_refused_before_it(tmp_path, heads, said):
    scores = [
        {"name": "gap", "kind": "loss_gap", "model": "builtin"},
        {"name": "deep", "kind": "attention", "model": "builtin"},
    ]
    source = {"category": "book", "path": "x.jsonl"}
    values = {"sources": [source], "output": str(tmp_path), "scores": scores}
    require_selectable(Config.parse({**values, "select": {"heads": {"score": "deep"}}}))
    with pytest.raises(ValueError, match=said) as refused:
        require_selectable(Config.parse({**values, "select": {"heads": heads}}))
    assert "\n" not in str(refused.value)


def test_heads_are_named_as_people_call_them():
    for values, name in (
        ({"score": "deep", "layer": 7, "head": 3}, "head 3 of layer 7 of deep"),
        ({"score": "deep", "layer": [1, 2]}, "all heads of layers 1, 2 of deep"),
        ({"score": "deep", "head": "auto"}, "auto of deep"),
    ):
        assert str(HeadsOfScore.check(values, "heads")) == name
    assert HeadsOfScore.check({"score": "a", "layer": 5, "head": [0, 2]}, "heads").among(
        (3, 5), 4
    ) == [(5, 0), (5, 2)]
