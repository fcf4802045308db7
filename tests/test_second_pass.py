import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import longattn as la
from longattn import second_pass
from longattn.second_pass import BINS, Fit, distances, reach
from longattn.verify import verify
from longattn.windows import load_tokenizer
from tests.conftest import _first_document, config

STRIDE, TOKENS = 4, 256
FAILURE = 0.2


@pytest.fixture(scope="module")
def windows():
    """DS and V of real windows: exact (2, n), and of each offset of the stride (offsets, 2, n)."""
    scorer = la.AttentionScorer.from_pretrained("builtin")
    ids = np.concatenate(
        [load_tokenizer("builtin").encode(_first_document(name)[:300_000]).ids for name in ("book", "python")]
    )  # fmt: skip
    sums = []
    for row in ids[: len(ids) // TOKENS * TOKENS].reshape(-1, TOKENS)[:400].astype(np.int32):
        parts = [
            scorer._sums(torch.as_tensor(row)[None], None, [TOKENS // 4], [offset], STRIDE)
            for offset in range(STRIDE)
        ]
        sums.append([[one[0, :, 0].numpy() for one in part] for part in parts])
    s1, s2 = np.moveaxis(np.array(sums), (0, 2), (2, 0))  # (offsets, windows, heads) each

    def statistics(s1, s2):
        entries = TOKENS**2
        variance = (s2 - s1 * s1 / entries) / (entries - 1)
        return np.stack([(s1 / TOKENS).mean(-1), variance.mean(-1)])

    of_offset = [statistics(STRIDE * a, STRIDE * b) for a, b in zip(s1, s2, strict=True)]
    return statistics(s1.sum(0), s2.sum(0)), np.stack(of_offset)


def test_the_set_is_that_of_exact_scores_but_for_the_chance_allowed(windows):
    exact, of_offset = windows
    n = exact.shape[1]
    draw = np.random.default_rng(0)
    missed, scored, first_look = 0, 0.0, 0
    trials = 150
    for _ in range(trials):
        estimate = of_offset[draw.integers(STRIDE, size=n), :, np.arange(n)].T
        known = np.isin(np.arange(n), draw.permutation(n)[:80])
        fit = Fit.of([*estimate[:, known], *exact[:, known]], 0.5, FAILURE)
        lds, budget = fit.standard.lds(*exact), n // 5
        best = set(np.argsort(-lds, kind="stable")[:budget].tolist())
        first_look += set(np.argsort(-fit(*estimate))[:budget].tolist()) != best
        while True:
            value = np.where(known, lds, fit(*estimate))
            order = np.argsort(-value, kind="stable")
            bins = distances(value, value[order[budget]], value[order[budget - 1]], fit.deviation)
            near = ~known & (
                bins < reach(np.bincount(bins[~known], minlength=second_pass.FAR + 1), FAILURE)
            )
            if not near.any():
                break
            known |= near
        missed += set(order[:budget].tolist()) != best
        scored += known.mean() / trials
    assert missed <= FAILURE * trials
    assert first_look == trials  # estimates alone select others every time
    assert scored < 0.9


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8 * BINS), st.floats(0.001, 0.9))
def test_no_more_stay_estimated_than_the_chance_allows(counts, failure):
    chance = [n * 0.5 * math.erfc(i / BINS / math.sqrt(2)) for i, n in enumerate(counts)]
    first = reach(np.pad(counts, (0, second_pass.FAR + 1 - len(counts))), failure)
    assert math.fsum(chance[first:]) <= failure / 2 * (1 + 1e-9)
    assert first == 0 or math.fsum(chance[first - 1 :]) > failure / 2 * (1 - 1e-9)


def test_a_run_selects_what_exact_scores_select(corpus, tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr(second_pass, "DRAWN", 12)
    shutil.copytree(corpus, tmp_path / "corpus")

    def run(output, stride, keep=None, second=None):
        settings = config(
            tmp_path / "corpus", output, "builtin",
            scorer={"model": "builtin", "query_stride": stride},
            select={"keep": keep or {"fraction": 0.1}, "second_pass": second},
        )  # fmt: skip
        la.run(settings)
        read = {}
        for folder in ("labelled", "selected"):
            table = pq.read_table(tmp_path / output / folder)
            read[folder] = {row["data_id"]: row for row in table.to_pylist()}
        return read["labelled"], read["selected"]

    exact, _ = run(tmp_path / "exact", 1)
    output = tmp_path / "strided"
    labelled, chosen = run(output, 2, second=0.1)
    known = {name for name, row in labelled.items() if row["ds_exact"] is not None}
    assert 12 < len(known) < len(labelled) == len(exact)
    for name in known:
        got = (labelled[name]["ds_exact"], labelled[name]["variance_exact"])
        assert got == (exact[name]["ds"], exact[name]["variance"])
        assert labelled[name]["ds"] != exact[name]["ds"]  # the estimate stays
    for category in ("book", "code"):
        names = sorted(name for name, row in exact.items() if row["category"] == category)
        drawn = second_pass.drawn(pa.array(names), len(names))
        ds, v = (np.array([exact[n][c] for n in names]) for c in ("ds", "variance"))
        lds = (ds - ds[drawn].mean()) / ds[drawn].std() - 0.5 * (v - v[drawn].mean()) / v[
            drawn
        ].std()
        best = {names[i] for i in np.argsort(-lds)[: math.floor(0.1 * len(names) + 0.5)]}
        assert best == {name for name, row in chosen.items() if row["category"] == category}
    assert list(verify(str(output))) == []

    before = {path: path.stat().st_mtime_ns for path in output.glob("labelled/**/*.parquet")}
    assert run(output, 2, second=0.1)[1] == chosen
    assert before == {path: path.stat().st_mtime_ns for path in before}
    with pytest.raises(ValueError, match="want exact scores first"):
        la.select(str(output), keep={"fraction": 0.6}, second_pass=0.001)
    again, _ = run(output, 2, keep={"fraction": 0.6}, second=0.001)
    assert known < {name for name, row in again.items() if row["ds_exact"] is not None}
    assert list(verify(str(output))) == []
