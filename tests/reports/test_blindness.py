"""What the ranking column tells, on a handful of windows: in a line for plan and report."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.reports import blindness
from longattn.reports.blindness import Check, check_ranking, recorded_check
from longattn.reports.evaluated_scores import HeadScorer
from longattn.reports.plan import plan
from longattn.reports.report import report_page
from longattn.reports.verify import verify
from longattn.storage.output_folder import OutputFolder
from tests.conftest import config
from tests.reports.test_report import Page
from tests.reports.test_verify import output  # noqa: F401 - a fixture


def test_a_line_says_what_chance_cannot():
    blind = Check("lds", 4096, 9, (0.51, 0.4, 0.62), (0.03, 0.0, 0.1))
    assert blind.blind and blind.line() == (
        "LDS tells native windows from splices with AUC 0.51 (0.40 to 0.62): no better than chance; "
        "one passage repeated ranks above a native window in 97 of 100 cases (9 documents, 4,096 tokens)"
    )
    good = Check("recurrence", 512, 9, (0.9, 0.8, 1.0), (0.6, 0.5, 0.7))
    assert not good.blind and good.line().endswith(
        "AUC 0.90 (0.80 to 1.00) (9 documents, 512 tokens)"
    )
    unclear = Check("lds", 2048, 12, (0.62, 0.38, 0.83), (0.6, 0.5, 0.7)).line()
    assert "chance; `longattn evaluate` measures more" in unclear and "no better" not in unclear
    assert "worse than by chance" in Check("ds", 512, 9, (0.2, 0.1, 0.3), (0.6, 0.5, 0.7)).line()


@pytest.mark.parametrize("rank_by", ["lds", "recurrence", "variance"])
def test_what_ranks_is_measured_on_the_corpus(corpus, checkpoint, tmp_path, rank_by):
    settings = config(corpus, tmp_path, checkpoint, select={"rank_by": rank_by})
    found = check_ranking(settings)
    assert found.keys() == {"book", "code"} and found == check_ranking(settings)
    for check in found.values():
        assert check.column == rank_by and 2 <= check.documents <= 12
        assert all(0 <= low <= high <= 1 for _, low, high in (check.splice, check.repeat))
    if rank_by == "recurrence":
        assert found["book"].repeat[0] == 0, "a passage repeated recurs wholly"


def test_columns_of_score_tables_are_measured_as_they_are_computed(corpus, checkpoint, tmp_path):
    scores = [
        {"name": "text", "kind": "measures"},
        {"name": "gap", "kind": "loss_gap", "model": str(checkpoint), "short": 64},
        {"name": "deep", "kind": "attention", "model": str(checkpoint)},
    ]
    found = {}
    for column in ("compression_ratio", "repetition", "gap", "deep", "deep_variance"):
        settings = config(corpus, tmp_path, checkpoint, scores=scores, select={"rank_by": column})
        found[column] = check_ranking(settings)["book"]
        assert found[column].column == column
    assert found["compression_ratio"].repeat[0] == 0, "one passage repeated compresses best"
    assert found["repetition"].repeat[0] == 0
    assert found["deep"] != found["deep_variance"]
    assert found["gap"].tokens == 512


def test_lds_of_a_head_is_that_of_its_own(corpus, checkpoint, tmp_path, monkeypatch):
    """Head 0 scores native windows above foils, head 1 below; their mean cannot tell."""
    calls = []

    def score(ids_nl):
        sign = 1.0 if len(calls) % 3 == 0 else -1.0
        calls.append(ids_nl.shape)
        noise = np.random.default_rng(len(calls)).random(len(ids_nl)) / 1000
        return np.stack([sign + noise, -sign + noise], 1), np.zeros((len(ids_nl), 2))

    scorer = HeadScorer(score, range(2))
    monkeypatch.setattr(blindness, "head_scorer", lambda config: scorer)
    for heads, value in (([0], 1.0), ([1], 0.0)):
        settings = config(corpus, tmp_path, checkpoint, select={"heads": heads})
        assert {check.splice[0] for check in check_ranking(settings).values()} == {value}
    assert set(calls) == {(blindness.WINDOWS, 512)}


def test_long_windows_are_measured_shorter_on_a_cpu(corpus, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(blindness, "CPU_TOKENS", 256)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = check_ranking(config(corpus, tmp_path, checkpoint))
    assert found["book"].line().endswith("256 tokens)")


def test_plan_says_it_and_no_check_leaves_it_out(corpus, checkpoint, tmp_path, caplog):
    caplog.set_level("INFO", "longattn")
    settings = config(corpus, tmp_path, checkpoint)
    said = plan(settings, windows_per_second=1.0).checks
    assert "--no-check leaves that out" in caplog.text  # before it, which takes seconds
    assert said == {name: of.line() for name, of in check_ranking(settings).items()}
    assert plan(settings, windows_per_second=1.0, check=False).checks == {}


def test_the_report_says_it_and_keeps_it_for_the_next_one(output):  # noqa: F811
    url = la.report(str(output), check=False)
    assert "tells native windows" not in Page(Path(url).read_text()).text
    result = CliRunner().invoke(app, ["report", str(output)])
    assert result.exit_code == 0, result.output
    assert (
        "book: LDS tells native windows from splices with AUC" in Page(Path(url).read_text()).text
    )
    assert list(verify(str(output))) == []
    la.select(str(output), keep={"count": 3})
    assert "book: LDS tells native windows" in Page(report_page(str(output))).text
    la.select(str(output), alpha=0.7)
    assert "tells native windows" not in Page(report_page(str(output))).text, "it is of another LDS"
    folder = OutputFolder(str(output))
    assert recorded_check(folder, la.Config.of(str(output)).select).keys() == {"book", "code"}
