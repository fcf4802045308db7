"""Commands and further scores with a model on a store: the same as with its folder on this disk."""

# ruff: noqa: F811 - fixtures
import numpy as np
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.reports.causal_model import CausalModel
from longattn.windows.tokenizer import load_tokenizer
from tests.conftest import config
from tests.s3 import moto_server
from tests.storage.test_remote_model import cache, uploaded, whole  # noqa: F401


@pytest.fixture(scope="module")
def s3():
    """A server of this module's own."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.mark.parametrize("uploaded", ["shards"], indirect=True)
def test_further_scores_and_an_evaluations_model_are_those_of_the_local_folder(
    uploaded, corpus, checkpoint, tmp_path
):
    url, folder, _ = uploaded
    source = {"category": "code", "path": f"{corpus}/code", "sample": {"fraction": 0.2}}
    tables = {}
    for out, model in (("there", url), ("here", str(folder))):
        scores = [
            {"name": "gap", "kind": "loss_gap", "model": model, "short": 64},
            {"name": "deep", "kind": "attention", "model": model, "layers": [1]},
        ]
        made = config(corpus, tmp_path / out, checkpoint, sources=[source], scores=scores)
        la.run(made, executor="local")
        assert la.verify(made.output) == []
        below = tmp_path / out / "scores"
        tables[out] = {p.relative_to(below): p.read_bytes() for p in below.rglob("*.parquet")}
    assert tables["there"] == tables["here"] and len(tables["here"]) == 2
    ids_l = np.random.default_rng(0).integers(0, 8192, 256)
    fingerprint = load_tokenizer(str(folder)).fingerprint
    there, here = (CausalModel(str(m), fingerprint, 256).scores(ids_l, 64) for m in (url, folder))
    assert there == here


@pytest.mark.parametrize("uploaded", ["one"], indirect=True)
def test_plan_run_inspect_verify_and_evaluate_take_it(uploaded, corpus, tmp_path, monkeypatch):
    url, folder, _ = uploaded
    few = [{"category": "book", "path": f"{corpus}/book/0.jsonl"}]
    remote = config(corpus, tmp_path / "remote", url, sources=few)
    local = config(corpus, tmp_path / "local", str(folder), sources=few)
    planned = la.plan(remote, windows_per_second=10)
    assert planned.windows == la.plan(local, windows_per_second=10).windows
    for settings in (remote, local):
        la.run(settings, executor="local")
    files = {
        out: {
            p.relative_to(tmp_path / out): p.read_bytes()
            for p in (tmp_path / out).rglob("*.parquet")
        }
        for out in ("remote", "local")
    }
    assert files["remote"] == files["local"]
    assert la.verify(remote.output, scores=2) == []
    row = la.select(remote.output)["book"]
    assert row.kept
    name = next((tmp_path / "remote/labelled/book").glob("*.parquet"))
    data_id = pq.read_table(name)["data_id"][0].as_py()
    found = la.inspect(remote.output, data_id)
    assert np.allclose(found.ds_h.mean(), pq.read_table(name)["ds"][0].as_py(), rtol=1e-5)
    monkeypatch.setattr("longattn.reports.evaluation.variants", lambda *_: {})  # nine times as long
    result = la.evaluate(remote, ["select.alpha=1"], windows=2)
    assert result.settings.model == url
