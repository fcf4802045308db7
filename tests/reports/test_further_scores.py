"""Further scores in plan, report and evaluation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.reports.evaluated_scores import pairs
from longattn.reports.report import report_page
from longattn.reports.score_columns import rank_correlation
from tests.conftest import config, further_scores


def test_rank_correlation_is_that_of_pandas():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 400).astype(float), rng.normal(size=400)
    a[:20], b[10:40] = np.nan, np.nan
    both = pd.DataFrame({"a": a, "b": b}).dropna().rank()
    expected = both["a"].corr(both["b"])
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a, np.ones(400)) is None
    assert rank_correlation(a[:2], b[:2]) is None


def test_the_report_shows_each_score_its_costs_and_what_where_saved(scored):
    page = report_page(scored[0].output)
    data = json.loads(page.partition('id="data"')[2].partition(">")[2].partition("</script>")[0])
    columns = {"compression_ratio", "repetition", "gap", "gap_weighted", "deep", "deep_variance"}
    told = scored[1].extra["scores"]["gap"]
    counted = 0
    for of in data["further"]:
        assert set(of) == columns
        counted += sum(of["gap"]["kept"]) + sum(of["gap"]["dropped"])
    assert counted == told["scored"] < told["windows"]
    assert 'href="#further-scores"' in page and 'id="further-1-5"' in page
    assert "saved by where" in page


def test_a_report_without_further_scores_has_no_such_section(finished):
    assert "further-scores" not in report_page(finished[0].output)


def test_plan_measures_each_score_and_counts_what_where_leaves(corpus, checkpoint, tmp_path):
    settings = config(corpus, tmp_path / "out", checkpoint, scores=further_scores(checkpoint))
    plan = la.plan(settings)
    text, gap, deep = plan.scores
    assert text.windows == deep.windows == plan.windows and gap.at_most
    assert gap.windows == pytest.approx(0.6 * plan.windows, abs=1)
    assert all(cost.seconds > 0 for cost in plan.scores)
    assert "score gap: at most " in gap.line() and "of one CPU scorer" in gap.line()
    stated = la.plan(settings, windows_per_second=10.0)
    assert [cost.seconds for cost in stated.scores] == [None] * 3
    assert stated.to_dict()["scores"][1]["name"] == "gap"


def test_pairs_that_know_different_things_are_worth_combining():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 300))
    values = {
        "a": {"native": one + 1, "splice 2": rng.normal(size=300)},
        "b": {"native": two + 1, "splice 2": rng.normal(size=300)},
        "c": {"native": one + 1.01, "splice 2": rng.normal(size=300) - 5},
    }
    values["c"]["splice 2"] = values["a"]["splice 2"]
    told = pairs(values, ["splice 2"], ["a", "b", "c"])
    by_names = {pair.scores: pair for pair in told}
    assert by_names["a", "b"].worth and by_names["a", "b"].gain > 0.05
    assert not by_names["a", "c"].worth
    assert pairs(values, [], ["a", "b"]) == []


def test_evaluate_takes_every_score_of_the_config(corpus, checkpoint, tmp_path):
    book = {"category": "book", "path": f"{corpus}/book/*.jsonl"}
    scores = further_scores(checkpoint)
    values = config(corpus, tmp_path / "out", checkpoint, sources=[book], scores=scores)
    path = tmp_path / "config.yaml"
    path.write_text(values.to_yaml())
    done = CliRunner().invoke(app, ["evaluate", str(path), "--windows", "3"])
    assert done.exit_code == 0, done.output
    result = json.loads(Path(tmp_path, "out/evaluation.json").read_text())
    columns = [
        "compression_ratio",
        "repetition",
        "gap",
        "gap_weighted",
        "deep",
        "low deep_variance",
    ]
    for category in result["categories"].values():
        assert set(columns) <= set(category["auc"])
        assert category["auc"]["repetition"]["repeat"]["auc"] == 0  # repeated passages score higher
        names = ["layer 0 head 0", "layer 0 head 1"]
        heads = category["deeper_heads"]["deep"]
        assert heads["names"] == names and heads["choice"]["why"]
        for kind, of in category["heads"]["auc"].items():  # in float32 and by another kernel
            assert heads["auc"][kind] == pytest.approx(of, abs=0.12)
            for extra in ("", ", sum of standardised heads"):
                ours = category["auc"][f"LDS of deep{extra}"][kind]["auc"]
                assert ours == pytest.approx(category["auc"][f"LDS{extra}"][kind]["auc"], abs=0.12)
        # The only layer of this model is the scorer's own.
        assert category["spearman"]["deep"]["DS"] == pytest.approx(1)
        assert len(category["pairs"]) == 5
    assert set(result["costs"]) == {"text", "gap", "deep"} and min(result["costs"].values()) > 0
    assert "score gap: " in done.output and "splices: " in done.output
    assert "book, deep: AUC of the best of 2 heads" in done.output
    page = Path(tmp_path, "out/evaluation.html").read_text()
    assert "Which head of deep tells" in page and "layer 0 head 1" in page
    assert "Which two to combine" in page and "What the further scores cost here" in page


def test_the_summary_adds_up_the_work_of_several_runs(scored, tmp_path):
    shutil.copytree(scored[0].output, tmp_path / "out")
    before = scored[1].extra["scores"]["deep"]
    lost = next((tmp_path / "out/scores/deep").rglob("*.parquet"))
    lost.unlink()
    settings = scored[0].model_copy(update={"output": str(tmp_path / "out")})
    after = la.run(settings, executor="local").extra["scores"]["deep"]
    assert after["written"] == before["written"] + 1 and after["tables"] == before["tables"]
    assert after["seconds"] > before["seconds"]
