"""Heads chosen by foils of the corpus: found where one tells, kept in the ledger, LDS by them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.config import Config
from longattn.reports import head_choice
from longattn.reports.evaluated_scores import HeadScorer
from longattn.reports.inspection import labelled_window
from longattn.reports.plan import plan
from longattn.reports.report import report_page
from longattn.reports.verify import verify
from longattn.storage.digests import sealed
from longattn.windows.recurrence import far_recurrence
from tests.conftest import WINDOW, config
from tests.reports.test_report import Page

SETTINGS = {"sources": [{"category": "a", "path": "/x"}], "output": "/o", "window": {"tokens": 256}}


def documents(n, seed=0):
    """Each document has 60 words of its own, so that what recurs far away tells it from a splice."""
    rng = np.random.default_rng(seed)
    return [rng.integers(100 * i, 100 * i + 60, 900).astype(np.int32) for i in range(n)]


def scored(good):
    """Three heads of noise, and one of counting: head `good`."""

    def score(ids_nl):
        rng = np.random.default_rng(int(ids_nl.sum()) % 2**32)
        ds, variance = rng.random((2, len(ids_nl), 4))
        if good is not None:
            ds[:, good] = [far_recurrence(ids_l, 64).recurrence for ids_l in ids_nl]
            variance[:, good] = 0
        return ds, variance

    return HeadScorer(score, range(4))


def test_the_head_that_tells_documents_from_splices_is_chosen():
    settings = Config.parse(SETTINGS)
    for good in (1, 3):
        choice = head_choice.head_choice(
            documents(12), scored(good), settings, windows=10, seed=0, name="a"
        )
        assert choice.head == good and len(choice.judgements) == 2
        assert all(of["splice 4"][0] > 0.95 for of in (j.auc for j in choice.judgements))


def test_halves_share_no_document():
    seen = []

    def score(ids_nl):
        seen.append({*(np.unique(ids_nl) // 100).tolist()})
        return scored(0).score(ids_nl)

    settings = Config.parse(SETTINGS)
    scorer = HeadScorer(score, range(4))
    head_choice.head_choice(documents(8), scorer, settings, windows=12, seed=0, name="a")
    first, second = seen[:4], seen[4:]
    assert len(seen) == 8 and not set.union(*first) & set.union(*second)


def test_noise_and_few_documents_choose_none():
    settings = Config.parse(SETTINGS)
    found = [
        head_choice.head_choice(documents(n), scored(None), settings, windows=10, seed=0, name=name)
        for n, name in ((3, "few"), *((12, name) for name in "abcdefgh"))
    ]
    assert [choice.head for choice in found].count(None) > 6, "halves seldom agree by chance"
    assert found[0].why == "3 long documents, fewer than 4: all heads are taken"


@pytest.fixture
def run(corpus, checkpoint, tmp_path, monkeypatch):
    """A run by heads that are chosen: head 1 for books, all for code."""

    def choose(documents, scorer, settings, *, windows, seed, name):
        head = 1 if name == "book" else None
        return head_choice.HeadChoice(head, f"of {len(documents)} documents", ())

    monkeypatch.setattr(head_choice, "head_choice", choose)
    settings = config(corpus, tmp_path / "out", checkpoint, select={"heads": "auto"})
    la.run(settings, executor="local")
    return settings


def test_a_run_selects_by_the_heads_that_it_chose_and_keeps_them(run, monkeypatch):
    folder = run.output
    kept = json.loads(ledger(run).read_text())["categories"]
    assert {name: of["heads"] for name, of in kept.items()} == {"book": [1], "code": None}
    for category, head in (("book", 1), ("code", None)):
        rows = pq.read_table(f"{folder}/labelled/{category}").to_pylist()
        ds, variance = (
            [row[f"{of}_heads"][head] if head is not None else row[of] for row in rows]
            for of in ("ds", "variance")
        )
        lds = la.long_distance_scores(ds, variance)
        want = {row["data_id"]: value for row, value in zip(rows, lds.tolist(), strict=True)}
        got = pq.read_table(f"{folder}/selected/{category}").to_pylist()
        assert {row["data_id"]: row["lds"] for row in got}.items() <= want.items()
        assert min(row["lds"] for row in got) >= sorted(want.values())[len(want) - len(got)]
    assert list(verify(folder)) == []
    files = {path: path.stat().st_mtime_ns for path in _selected(folder)}
    monkeypatch.setattr(head_choice, "head_choice", None)  # what is kept is not chosen again
    la.run(run, executor="local")
    la.select(folder, heads="auto")
    assert {path: path.stat().st_mtime_ns for path in _selected(folder)} == files
    record = json.loads(ledger(run).read_text())
    record["categories"]["book"]["heads"] = [0]
    ledger(run).write_text(json.dumps(sealed(record)))
    assert any("other heads than heads.json" in line for line in verify(folder))


def test_plan_report_and_inspect_say_which_heads(run):
    text = Page(report_page(run.output)).text
    assert "book: DS and variance are means over head 1: of 12 documents." in text
    assert "code: DS and variance are means over all heads: of 6 documents." in text
    assert plan(run, windows_per_second=1, check=False).heads["book"] == "of 12 documents"
    row = pq.read_table(f"{run.output}/labelled/book").to_pylist()[0]
    assert labelled_window(run.output, row["data_id"]).verdict.sentence().endswith("(of head 1).")


def test_a_scorer_chooses_on_a_real_corpus(corpus, checkpoint, tmp_path, monkeypatch):
    """With random weights no head is to be trusted: what matters is that both categories are judged."""
    monkeypatch.setattr(head_choice, "WINDOWS", 4)
    settings = config(corpus, tmp_path / "out", checkpoint)
    assert head_choice.choose_heads(settings) == ["book", "code"]
    stored = json.loads((tmp_path / "out/_longattn/heads.json").read_text())["categories"]
    for of in stored.values():
        assert {j["head"] for j in of["judgements"]} <= {0, 1} and len(of["judgements"]) == 2
    assert head_choice.choose_heads(settings) == []


def test_scores_of_heads_are_those_of_a_run(finished):
    settings, _ = finished
    rows = pq.read_table(f"{settings.output}/labelled/code").slice(0, 3).to_pylist()
    scorer = head_choice.head_scorer(settings)
    ds, variance = scorer.score(np.array([r["input_ids"] for r in rows]))
    assert scorer.names == ["head 0", "head 1"]
    assert ds.shape == (3, 2) and ds.astype(np.float32).tolist() == [r["ds_heads"] for r in rows]
    assert variance.astype(np.float32).tolist() == [r["variance_heads"] for r in rows]
    assert len(rows[0]["input_ids"]) == WINDOW


def ledger(run):
    return Path(run.output, "_longattn/heads.json")


def _selected(folder):
    return sorted(Path(folder).glob("selected/*/*.parquet"))
