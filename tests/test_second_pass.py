import math
import shutil
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext

import longattn as la
from longattn import second_pass
from longattn.lds import Scale
from longattn.pipeline import job as pipeline
from longattn.pipeline.job import _score_again
from longattn.reports.verify import verify
from longattn.scoring.settings import ScoreSettings
from longattn.second_pass import BINS, Fit, distances, reach
from longattn.storage.files import write_json
from longattn.storage.tables import EXACT
from longattn.windows.tokenizer import load_tokenizer
from tests.conftest import _first_document, config
from tests.labelled import labelled_table, write_labelled

STRIDE, TOKENS = 4, 256
FAILURE = 0.2


def statistics(rows, stride, scorer):
    """DS and V of windows, exact (2, n), and as estimated from each offset (offsets, 2, n)."""
    ids, length = torch.as_tensor(rows), rows.shape[1]
    parts = [
        scorer._sums(ids, None, [length // 4], [offset] * len(ids), stride)
        for offset in range(stride)
    ]
    s1, s2 = (np.stack([part[of][:, :, 0].numpy() for part in parts]) for of in (0, 1))

    def means(s1, s2):
        variance = (s2 - s1 * s1 / length**2) / (length**2 - 1)
        return np.stack([(s1 / length).mean(-1), variance.mean(-1)])

    of_offset = [means(stride * a, stride * b) for a, b in zip(s1, s2, strict=True)]
    return means(s1.sum(0), s2.sum(0)), np.stack(of_offset)


def scales(statistics):
    """Of DS and DU, given DS and V."""
    ds, variance = statistics
    return {"ds": Scale.of_column(ds, "zscore"), "du": Scale.of_column(-variance, "zscore")}


def selected(draw, exact, of_offset, drawn, failure, budget):
    """What a second pass selects of windows with drawn offsets, what it selects without it, what exact
    scores of all would; and the share that was scored exactly."""
    n = exact.shape[1]
    estimate = of_offset[draw.integers(len(of_offset), size=n), :, np.arange(n)].T
    known = np.isin(np.arange(n), draw.permutation(n)[:drawn])
    fit = Fit.of([*estimate[:, known], *exact[:, known]], scales(estimate), 0.5, failure)
    lds = fit.standard.lds(*exact)

    def best(value):
        return set(np.argsort(-value, kind="stable")[:budget].tolist())

    while True:
        value = np.where(known, lds, fit(*estimate))
        order = np.argsort(-value, kind="stable")
        bins = distances(value, value[order[budget]], value[order[budget - 1]], fit.deviation)
        count = np.bincount(bins[~known], minlength=second_pass.FAR + 1)
        near = ~known & (bins < reach(count, failure))
        if not near.any():
            return best(value), best(fit(*estimate)), best(lds), known.mean()
        known |= near


@pytest.fixture(scope="module")
def windows():
    encode = load_tokenizer("builtin").encode
    ids = np.concatenate(
        [encode(_first_document(name)[:300_000]).ids for name in ("book", "python")]
    )
    rows = ids[: len(ids) // TOKENS * TOKENS].reshape(-1, TOKENS)[:400].astype(np.int32)
    return statistics(rows, STRIDE, la.AttentionScorer.from_pretrained("builtin"))


def test_the_set_is_that_of_exact_scores_but_for_the_chance_allowed(windows):
    exact, _ = windows
    draw, trials = np.random.default_rng(0), 150
    tried = [selected(draw, *windows, 80, FAILURE, exact.shape[1] // 5) for _ in range(trials)]
    assert sum(chosen != best for chosen, _, best, _ in tried) <= FAILURE * trials
    assert all(first != best for _, first, best, _ in tried)  # by estimates alone, every time
    assert np.mean([scored for *_, scored in tried]) < 0.9


def test_the_drawn_and_the_estimates_of_all_tell_what_all_exact_scores_have(windows):
    exact, of_offset = windows
    draw, n = np.random.default_rng(0), exact.shape[1]
    told, of_drawn = [], []
    for _ in range(200):
        estimate = of_offset[draw.integers(STRIDE, size=n), :, np.arange(n)].T
        some = draw.permutation(n)[:80]
        columns = [*estimate[:, some], *exact[:, some]]
        standard = Fit.of(columns, scales(estimate), 0.5, FAILURE).standard
        told.append([*vars(standard.ds).values(), *vars(standard.du).values()])
        of_drawn.append([of for x in (columns[2], -columns[3]) for of in (x.mean(), x.std())])
    wanted = np.array([of for x in (exact[0], -exact[1]) for of in (x.mean(), x.std())])
    off, of_drawn_alone = (
        np.sqrt(np.mean((np.array(of) - wanted) ** 2, axis=0)) for of in (told, of_drawn)
    )
    assert (off < 0.9 * of_drawn_alone).all()
    bias = np.abs(np.mean(told, axis=0) - wanted)
    assert (bias < 0.02 * wanted[[1, 1, 3, 3]]).all()  # of the deviation


@pytest.mark.parametrize("constant", [[], [0], [1], [0, 1]])
def test_the_fit_is_that_of_least_squares(windows, constant):
    exact, of_offset = windows
    estimate = of_offset[0].copy()
    estimate[constant] = estimate[constant, :1]
    fit = Fit.of([*estimate, *exact], scales(estimate), 0.5, FAILURE)
    x, y = fit.standard.ds(estimate[0]), fit.standard.du(-estimate[1])
    known = np.stack([np.ones_like(x), x, y], axis=1)
    wanted = known @ np.linalg.lstsq(known, fit.standard.lds(*exact), rcond=None)[0]
    assert np.allclose(fit(*estimate), wanted, atol=1e-9)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8 * BINS), st.floats(0.001, 0.9))
def test_no_more_stay_estimated_than_the_chance_allows(counts, failure):
    chance = [n * 0.5 * math.erfc(i / BINS / math.sqrt(2)) for i, n in enumerate(counts)]
    first = reach(np.pad(counts, (0, second_pass.FAR + 1 - len(counts))), failure)
    assert math.fsum(chance[first:]) <= failure / 2 * (1 + 1e-9)
    assert first == 0 or math.fsum(chance[first - 1 :]) > failure / 2 * (1 - 1e-9)


def test_a_second_pass_that_was_killed_gives_what_an_unbroken_one_gives(tmp_path, monkeypatch):
    """Of many files, with scores made up: exact ones are written where the scorers would."""
    monkeypatch.setattr(second_pass, "DRAWN", 200)
    for name in ("connected", "plan_pools", "_context"):
        monkeypatch.setattr(pipeline, name, lambda *_: nullcontext(DataContext.get_current()))
    monkeypatch.setattr(DataContext, "current", lambda context: context)
    draw = np.random.default_rng(1)
    exact = {}
    for _ in range(40):
        estimates = draw.normal((1, 1e-6), (0.2, 1e-7), (100, 2))
        ids = [f"book-{draw.integers(2**62):032x}-0" for _ in estimates]
        table = labelled_table("book", ids, *estimates.T.tolist())
        for name in EXACT:
            table = table.append_column(name, pa.nulls(len(table), pa.float64()))
        write_labelled(tmp_path / "whole", "book", table)
        exact |= dict(zip(ids, estimates + draw.normal(0, (0.02, 1e-8), (100, 2)), strict=True))
    write_json(str(tmp_path / "whole/_longattn/run.json"), {"parts": {"dtype": "float32"}})
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    rounds = []

    def scored(output, last_round, last_file, keep=0.3):
        """Runs the second pass until it dies at some file of some round; what is labelled then."""
        settings = config(
            "corpus", output, "builtin", scorer={"query_stride": 2},
            select={"keep": {"fraction": keep}, "second_pass": 0.1},
        )  # fmt: skip
        rounds.clear()

        def score(wanted, *_):
            rounds.append(wanted)
            for url, rows in list(wanted.items())[
                : last_file if len(rounds) == last_round else None
            ]:
                table = pq.read_table(url, partitioning=None)
                for place, name in enumerate(EXACT):
                    known = table[name].to_pylist()
                    for row in rows:
                        known[row] = exact[table["data_id"][row].as_py()][place]
                    column = pa.array(known, pa.float64())
                    table = table.set_column(table.column_names.index(name), name, column)
                write_labelled(output, "book", table.replace_schema_metadata())
            if len(rounds) == last_round:
                raise RuntimeError("died")

        monkeypatch.setattr(pipeline, "score_again_with", score)
        _score_again(settings, ScoreSettings("builtin", [2], None, None, None, 2))
        return pq.read_table(output / "labelled").sort_by("data_id")

    unbroken = scored(tmp_path / "whole", 0, 0)
    assert len(rounds) > 1 and 200 < len(exact) - unbroken["ds_exact"].null_count < 2000
    for last_round, last_file in ((2, 10), (1, 10), (1, 5)):  # each ends what the one before began
        with pytest.raises(la.RunError, match="died"):
            scored(tmp_path / "killed", last_round, last_file)
    assert scored(tmp_path / "killed", 0, 0).equals(unbroken)
    assert not (tmp_path / "killed/_longattn/second_pass.json").exists()
    more = scored(tmp_path / "whole", 0, 0, keep=0.6)  # another selection: exact scores are added
    assert more["ds_exact"].null_count < unbroken["ds_exact"].null_count


def test_a_run_selects_what_exact_scores_select(corpus, tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr(second_pass, "DRAWN", 12)

    def run(output):
        settings = config(
            corpus, output, "builtin", scorer={"model": "builtin", "query_stride": 2},
            select={"keep": {"fraction": 0.1}, "second_pass": 0.1},
        )  # fmt: skip
        la.run(settings)
        read = {}
        for folder in ("labelled", "selected"):
            table = pq.read_table(tmp_path / output / folder)
            read[folder] = {row["data_id"]: row for row in table.to_pylist()}
        return read["labelled"], read["selected"]

    output = tmp_path / "strided"
    labelled, chosen = run(output)
    scorer = la.AttentionScorer.from_pretrained("builtin")
    scores = scorer.score(np.array([row["input_ids"] for row in labelled.values()]))
    ds, variance = scores.ds.mean(1).tolist(), scores.variance.mean(1).tolist()
    exact = {
        name: {**row, "ds": ds[i], "variance": variance[i]}
        for i, (name, row) in enumerate(labelled.items())
    }
    known = {name for name, row in labelled.items() if row["ds_exact"] is not None}
    assert 12 < len(known) < len(labelled)
    for name in known:
        got = (labelled[name]["ds_exact"], labelled[name]["variance_exact"])
        assert got == (exact[name]["ds"], exact[name]["variance"])
        assert labelled[name]["ds"] != exact[name]["ds"]  # the estimate stays
    for category in ("book", "code"):
        names = sorted(name for name, row in exact.items() if row["category"] == category)
        drawn = second_pass.drawn(pa.array(names), len(names))
        lds = 0.0
        for column, weight in (("ds", 1), ("variance", -0.5)):
            x, e = (np.array([of[n][column] for n in names]) for of in (exact, labelled))
            x, e = x / x.std(), e / e.std()
            line = np.polynomial.Polynomial.fit(e[drawn], x[drawn], 1)
            left = x[drawn] - line(e[drawn])
            deviation = np.hypot(line(e).std(), left.std())
            lds = lds + weight * (x - line(e).mean()) / deviation
        best = {names[i] for i in np.argsort(-lds)[: math.floor(0.1 * len(names) + 0.5)]}
        assert best == {name for name, row in chosen.items() if row["category"] == category}
    assert list(verify(str(output))) == []

    before = {path: path.stat().st_mtime_ns for path in output.glob("labelled/**/*.parquet")}
    assert run(output)[1] == chosen
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ValueError, match="want exact scores first"):
        la.select(str(output), keep={"fraction": 0.6}, second_pass=0.001)
