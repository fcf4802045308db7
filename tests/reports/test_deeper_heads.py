"""Heads of deeper layers chosen by foils of the corpus, kept, selected by and told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.config import Config
from longattn.reports import head_choice
from longattn.reports.blindness import check_ranking
from longattn.reports.evaluated_scores import score_heads
from longattn.reports.inspection import labelled_window
from longattn.reports.plan import plan
from longattn.reports.report import report_page
from longattn.reports.verify import verify
from longattn.settings.selection import HeadsOfScore
from longattn.storage.digests import sealed
from tests.checkpoints import save
from tests.conftest import BUILTIN, config
from tests.reports.test_report import Page

AUTO = {"score": "deep", "head": "auto"}
CHOSEN = (2, 1)  # layer, head


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three layers of two heads, with the built-in tokenizer."""
    folder = tmp_path_factory.mktemp("deep")
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1}
    save(folder, "llama", vocab_size=8192, **sizes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(corpus, checkpoint, model, tmp_path_factory):
    """A run by deeper heads that are chosen: layer 2 head 1 of books, all of layers 1 and 2 of code."""

    def choose(documents, scorer, settings, *, windows, seed, name):
        head = scorer.heads.index(CHOSEN) if name == "book" else None
        return head_choice.HeadChoice(head, f"of {len(documents)} documents", ())

    scores = [{"name": "deep", "kind": "attention", "model": model, "layers": [1, 2]}]
    sources = [
        {"category": "book", "path": f"{corpus}/book/*.jsonl", "sample": {"fraction": 0.4}},
        {"category": "code", "path": f"{corpus}/code", "sample": {"fraction": 0.4}},
    ]
    settings = config(
        corpus,
        tmp_path_factory.mktemp("run") / "out",
        checkpoint,
        sources=sources,
        scores=scores,
        select={"heads": AUTO},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_choice, "head_choice", choose)
        la.run(settings, executor="local")
    return settings


def rows_of(run, category):
    """Of each labelled window its scores of deeper heads, (2, 2 layers, 2 heads), by data_id."""
    table = pq.read_table(f"{run.output}/scores/deep/{category}").to_pylist()
    return {
        row["data_id"]: np.array([row["deep_heads"], row["deep_variance_heads"]]).reshape(2, 2, 2)
        for row in table
    }


def selected(folder, category, name=""):
    rows = pq.read_table(f"{folder}/selected/{name}/{category}", columns=["data_id", "lds"])
    return {row["data_id"]: row["lds"] for row in rows.to_pylist()}


def require_lds(scores, got):
    lds = la.long_distance_scores(*np.array([*scores.values()]).T)
    want = dict(zip(scores, lds.tolist(), strict=True))
    assert got.items() <= want.items() and got
    assert min(got.values()) >= sorted(want.values())[len(want) - len(got)]


def test_a_run_selects_by_the_deeper_heads_that_it_chose_and_keeps_them(run, tmp_path, monkeypatch):
    kept = json.loads(Path(run.output, "_longattn/heads.json").read_text())
    of = kept["scores"]["deep"]["categories"]
    assert kept["categories"] == {} and of["code"]["heads"] is None
    assert of["book"]["heads"] == [list(CHOSEN)] and of["book"]["alpha"] == 0.5
    books = {name: scores[:, 1, 1] for name, scores in rows_of(run, "book").items()}
    require_lds(books, selected(run.output, "book"))
    code = {
        name: [sum(of.ravel().tolist()) / 4 for of in scores]
        for name, scores in rows_of(run, "code").items()
    }
    require_lds(code, selected(run.output, "code"))
    assert list(verify(run.output)) == []
    shutil.copytree(run.output, tmp_path / "out")
    again = run.model_copy(update={"output": str(tmp_path / "out")})
    files = sorted(tmp_path.glob("out/selected/*/*.parquet"))
    before = [path.stat().st_mtime_ns for path in files]
    monkeypatch.setattr(head_choice, "head_choice", None)  # what is kept is not chosen again
    la.run(again, executor="local")
    la.select(again.output, heads=AUTO)
    assert [path.stat().st_mtime_ns for path in files] == before
    of["book"]["heads"] = [[1, 0]]
    Path(again.output, "_longattn/heads.json").write_text(json.dumps(sealed(kept)))
    assert any("other heads than heads.json" in line for line in verify(again.output))


def test_plan_report_and_inspect_say_which_heads(run):
    text = Page(report_page(run.output)).text
    told = "book: DS and variance are means over head 1 of layer 2 of deep: of 12 documents."
    assert told in text
    assert "code: DS and variance are means over all heads of deep: of 6 documents." in text
    assert plan(run, windows_per_second=1, check=False).heads["book"] == "of 12 documents"
    for category, heads in (("book", "head 1 of layer 2 of deep"), ("code", "all heads of deep")):
        row = pq.read_table(f"{run.output}/labelled/{category}").to_pylist()[0]
        verdict = labelled_window(run.output, row["data_id"]).verdict
        assert verdict.sentence().endswith(f"(of {heads}).")
        assert verdict.lds == pytest.approx(verdict.value)


def test_a_named_head_is_a_selection_beside_others(run, tmp_path):
    shutil.copytree(run.output, tmp_path / "out")
    output = str(tmp_path / "out")
    heads = {"score": "deep", "layer": 1, "head": 0}
    la.select(output, name="one", heads=heads)
    scores = {name: of[:, 0, 0] for name, of in rows_of(run, "book").items()}
    require_lds(scores, selected(output, "book", "one"))
    assert list(verify(output)) == []
    assert "by LDS, head 0 of layer 1 of deep" in Page(report_page(output)).text


def test_a_model_chooses_on_a_real_corpus(run, tmp_path, monkeypatch):
    """With random weights no head is to be trusted: what matters is that both categories are judged."""
    monkeypatch.setattr(head_choice, "WINDOWS", 3)
    settings = run.model_copy(update={"output": str(tmp_path / "out")})
    assert head_choice.choose_heads(settings) == ["book", "code"]
    kept = json.loads((tmp_path / "out/_longattn/heads.json").read_text())["scores"]["deep"]
    for of in kept["categories"].values():
        assert {j["head"] for j in of["judgements"]} <= {0, 1, 2, 3} and len(of["judgements"]) == 2
        assert "layer " in of["why"] and " head " in of["why"]
    assert head_choice.choose_heads(settings) == []


def test_scores_of_heads_are_those_of_the_tables(run):
    rows = pq.read_table(f"{run.output}/labelled/code").slice(0, 3).to_pylist()
    asked = HeadsOfScore.check({"score": "deep", "layer": 2}, "heads")
    scorer = score_heads(run, asked)
    assert scorer.names == ["layer 2 head 0", "layer 2 head 1"]
    ds, variance = scorer.score(np.array([row["input_ids"] for row in rows]))
    stored = rows_of(run, "code")
    for row, *of in zip(rows, ds, variance, strict=True):
        np.testing.assert_array_equal(of, stored[row["data_id"]][:, 1])
    with pytest.raises(ValueError, match="no score 'dep' of kind attention; it has deep"):
        score_heads(run, HeadsOfScore.check({"score": "dep"}, "heads"))


def test_whether_the_ranking_is_blind_is_measured_by_the_chosen_heads(run):
    checks = check_ranking(run)
    assert set(checks) == {"book", "code"} and checks["book"].column == "lds"
    first = Config.of(run, ["select.heads=all"])
    assert check_ranking(first)["book"].splice != checks["book"].splice
