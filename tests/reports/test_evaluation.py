import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from longattn.builtin.train import held_out
from longattn.cli import app
from longattn.reports import evaluation
from longattn.reports.causal_model import CausalModel
from longattn.reports.evaluation import (
    HEADS_SUM,
    attention,
    evaluate,
    write_evaluation,
)
from longattn.reports.evaluation_record import Agreement
from longattn.reports.foils import foils, generator, long_documents, native_windows
from longattn.reports.score_columns import rank_correlation
from longattn.scoring.scorer import AttentionScorer
from longattn.selection.auc import auc
from longattn.windows.recurrence import far_recurrence
from longattn.windows.tokenizer import load_tokenizer
from tests.conftest import BUILTIN, WINDOW, config

DOCUMENTS = [np.arange(2000, dtype=np.int32) + 10_000 * i for i in range(5)]


def drawn(n=6, window=1024):
    rng = generator(0, "test")
    native = native_windows(DOCUMENTS, n, window, rng)
    return native, foils(native, DOCUMENTS, rng)


def test_native_windows_are_slices_of_every_document():
    native, _ = drawn(12)
    assert sorted(np.bincount(native.group_n)) == [2, 2, 2, 3, 3]
    for ids, group in zip(native.ids_nl, native.group_n, strict=True):
        assert (np.diff(ids) == 1).all() and ids[0] // 10_000 == group == ids[-1] // 10_000


def test_splices_are_equal_pieces_of_different_documents():
    _, kinds = drawn()
    for parts in (2, 4, 8):
        for ids in kinds[f"splice {parts}"].ids_nl:
            pieces = ids.reshape(parts, -1)
            assert (np.diff(pieces) == 1).all()
            of = pieces[:, 0] // 10_000
            assert len(set(of)) == min(parts, 5) and (of[5:] == of[: max(0, parts - 5)]).all()


def test_shuffled_windows_keep_their_tokens_and_blocks():
    native, kinds = drawn()
    assert set(kinds) == {"splice 2", "splice 4", "splice 8", "blocks 512", "unigram", "repeat"}
    for kind in ("blocks 512", "unigram"):
        changed = kinds[kind].ids_nl
        assert (changed != native.ids_nl).any(1).all()
        assert (np.sort(changed) == np.sort(native.ids_nl)).all()
    assert (np.diff(kinds["blocks 512"].ids_nl.reshape(6, 2, 512)) == 1).all()
    assert (kinds["repeat"].ids_nl == np.tile(native.ids_nl[:, :128], 8)).all()


def test_what_is_drawn_depends_on_the_seed_alone(corpus, checkpoint, tmp_path):
    settings = config(corpus, tmp_path, checkpoint)
    read = [long_documents(settings, seed=seed)["book"] for seed in (0, 0, 1, 2, 3, 4)]
    orders = [[ids.tolist() for ids in documents] for documents in read]
    assert orders[0] == orders[1] and any(order != orders[0] for order in orders)
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_long_documents_are_read_once_and_up_to_a_bound(corpus, checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    shutil.copy(folder / "book/0.jsonl", folder / "book/copy.jsonl")
    settings = config(folder, tmp_path, checkpoint)
    truth = [
        text
        for path in sorted((corpus / "book").glob("*"))
        for text in map(lambda line: json.loads(line)["content"], path.read_text().splitlines())
        if len(text) > 100
    ]
    tokenizer = load_tokenizer("builtin")
    found = [tokenizer.decode(ids).decode() for ids in long_documents(settings)["book"]]
    assert sorted(found) == sorted(truth)
    kept = [tokenizer.decode(i).decode() for i in long_documents(settings, held_out=0.5)["book"]]
    assert sorted(kept) == sorted(t for t in truth if held_out(t, 0.5)) and 1 < len(kept) < 12
    monkeypatch.setattr("longattn.reports.foils.DOCUMENTS", 4)
    texts = [tokenizer.decode(i).decode() for i in long_documents(settings)["book"]]
    files = [path.read_text() for path in (corpus / "book").glob("*")]
    taken = [sum(json.dumps(text) in file for text in texts) for file in files]
    assert sorted(taken) == [1, 1, 2], "from each of the four files, one of which is a copy, one"
    monkeypatch.setattr("longattn.reports.foils.DOCUMENTS", 64)
    monkeypatch.setattr("longattn.reports.foils.READ_BYTES", 15_000)
    assert 2 <= len(long_documents(settings)["book"]) <= 3, "documents are of 7000 to 8000 bytes"


def test_a_category_that_cannot_be_spliced_is_refused(corpus, checkpoint, tmp_path):
    settings = config(corpus, tmp_path, checkpoint, window={"tokens": 4096})
    with pytest.raises(ValueError, match="category 'book': 0 documents of 4096 tokens or more"):
        long_documents(settings)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=12),
    st.lists(st.integers(0, 5), min_size=2, max_size=12),
)
def test_auc_is_the_share_of_pairs_won(native, foil):
    wins = [(a > b) + (a == b) / 2 for a in native for b in foil]
    arrays = np.array(native, float), np.array(foil, float)
    groups = np.arange(len(native)), np.arange(len(foil))
    value, low, high = auc(*arrays, *groups, generator(0), together=False)
    assert value == pytest.approx(np.mean(wins)) and 0 <= low <= high <= 1
    if 0 < value < 1 and len(wins) > 100:
        assert low < value < high


def test_the_interval_is_over_documents_not_windows():
    rng = np.random.default_rng(0)
    native = np.repeat(rng.normal(0.5, 1, 8), 20)
    foil = rng.normal(0, 1, 160)
    windows, documents = np.arange(160), np.repeat(np.arange(8), 20)
    widths = [
        np.diff(auc(native, foil, groups, windows, generator(0), together=False)[1:])[0]
        for groups in (windows, documents)
    ]
    assert widths[1] > 2 * widths[0]


def test_foils_of_the_same_windows_are_drawn_with_them():
    native = np.repeat([0.0, 1, 2, 3], 5)
    groups = np.repeat(np.arange(4), 5)
    _, low, high = auc(native, native, groups, groups, generator(0), together=True)
    assert low == high == 0.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=30))
def test_rank_correlation_is_that_of_pandas(pairs):
    a, b = np.array(pairs, float).T
    expected = pd.DataFrame({"a": a, "b": b}).corr("spearman").loc["a", "b"]
    got = rank_correlation(a, b)
    assert got is None if np.isnan(expected) else got == pytest.approx(expected)


def test_attention_is_what_a_run_stores(finished):
    settings, _ = finished
    rows = pq.read_table(f"{settings.output}/labelled/code").slice(0, 5).to_pylist()
    scorer = AttentionScorer.from_pretrained(settings.scorer.model)
    ids_nl = np.array([row["input_ids"] for row in rows])
    seen = attention(scorer, ids_nl, WINDOW // 4, None)
    assert seen.ds.tolist() == [row["ds"] for row in rows]
    assert seen.variance.tolist() == [row["variance"] for row in rows]
    with_bos = attention(scorer, ids_nl[:1], WINDOW // 4, 7)
    prefixed = np.concatenate([[7], ids_nl[0, :-1]])
    assert with_bos.ds == scorer.score(prefixed, WINDOW // 4).ds.mean()


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> str:
    """A two-layer model with random weights and the built-in tokenizer."""
    path = tmp_path_factory.mktemp("causal")
    torch.manual_seed(1)
    shape = LlamaConfig(
        vocab_size=8192,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        initializer_range=0.2,
    )
    LlamaForCausalLM(shape).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, path)
    return str(path)


def test_the_causal_baselines_are_those_of_transformers(causal):
    ids = np.random.default_rng(0).integers(0, 8192, 300)
    gap, ds = CausalModel(causal, load_tokenizer("builtin").fingerprint, 300).scores(ids, 64)

    model = LlamaForCausalLM.from_pretrained(causal, attn_implementation="eager").eval()

    def losses(part):
        logits = model(torch.tensor(part)[None]).logits[0, :-1].detach().double()
        return -torch.log_softmax(logits, -1)[range(len(part) - 1), part[1:]]

    full = losses(ids)
    gaps = [losses(ids[s : s + 64])[31:] - full[s + 31 : s + 63] for s in range(64, 256, 64)]
    assert gap == pytest.approx(float(torch.cat(gaps).mean()), abs=1e-5)
    p_hll = torch.cat(model(torch.tensor(ids)[None], output_attentions=True).attentions, 1)[0]
    truth = p_hll.detach().double().tril(-64).sum((1, 2)).mean() / 300
    assert ds == pytest.approx(float(truth), rel=1e-5)


def test_a_causal_model_with_another_tokenizer_is_refused(causal):
    with pytest.raises(ValueError, match="tokenizer is not that of the scorer"):
        CausalModel(causal, "other", 300)


@pytest.fixture(scope="module")
def measured(corpus, checkpoint, causal, tmp_path_factory):
    output = tmp_path_factory.mktemp("measured")
    settings = config(corpus, output, checkpoint)
    return settings, evaluate(settings, windows=4, causal_model=causal)


def test_an_evaluation_measures_every_scorer_on_every_foil(measured):
    settings, result = measured
    assert set(result.categories) == {"book", "code"}
    assert result.uniform_ds == pytest.approx(0.75 - 0.25 * np.log(4), abs=0.002)
    for name, told in result.categories.items():
        kinds = {"splice 2", "splice 4", "splice 8", "unigram", "repeat"}
        assert told.documents == 4, "one window of each, though there are more"
        assert all(set(cells) == kinds for cells in told.auc.values())
        assert {"LDS", "DS", "DU", "recurrence", "random", "loss gap"} < set(told.auc)
        assert told.auc["recurrence"]["repeat"].auc == 0, "degenerate text recurs wholly"
        assert told.auc["gzip ratio"]["unigram"].auc > 0.7, "and a shuffle packs badly"
        assert told.spearman["LDS"]["LDS"] == pytest.approx(1)
        assert told.stability["float64"] == Agreement(pytest.approx(1), 1)
        assert {
            "alpha 0",
            "query_stride 4",
            "k 64",
            "k 256",
            "rope base x 10",
            "two half windows",
        } < set(told.stability)
        heads = told.heads
        assert set(heads.auc) == kinds and all(len(of) == 2 for of in heads.auc.values())
        assert [j.head in (0, 1) for j in heads.choice.judgements] == [True, True]
        assert "head" in heads.choice.why and HEADS_SUM in told.auc
        documents = long_documents(settings)[name]
        rng = generator(0, name, "windows")
        native = native_windows(documents, 4, WINDOW, rng)
        spliced = foils(native, documents, rng)["splice 8"]
        a, b = (
            np.array([far_recurrence(ids, WINDOW // 4).recurrence for ids in w.ids_nl])
            for w in (native, spliced)
        )
        expected = ((a[:, None] > b) + (a[:, None] == b) / 2).mean()
        assert told.auc["recurrence"]["splice 8"].auc == pytest.approx(expected)


def test_heads_are_measured_each_by_itself(measured):
    """AUC of one head is that of its own scores, and the sum is that of standardised ones."""
    settings, result = measured
    documents = long_documents(settings)["code"]
    rng = generator(0, "code", "windows")
    native = native_windows(documents, 4, WINDOW, rng)
    made = foils(native, documents, rng)["splice 2"]
    scorer = AttentionScorer.from_pretrained(settings.scorer.model)
    of_native, of_foil = (
        [scorer.score(ids_l, WINDOW // 4) for ids_l in of.ids_nl] for of in (native, made)
    )
    total = np.zeros((2, 4))
    for head in range(2):
        (ds, variance), (other_ds, other_variance) = (
            np.array(
                [[float(s.ds.reshape(-1)[head]), float(s.variance.reshape(-1)[head])] for s in of]
            ).T
            for of in (of_native, of_foil)
        )
        lds, other = (
            (a - ds.mean()) / ds.std() - 0.5 * (b - variance.mean()) / variance.std()
            for a, b in ((ds, variance), (other_ds, other_variance))
        )
        total += [lds, other]
        expected = ((lds[:, None] > other) + (lds[:, None] == other) / 2).mean()
        told = result.categories["code"].heads.auc["splice 2"][head]
        assert told == pytest.approx(expected)
    expected = ((total[0][:, None] > total[1]) + (total[0][:, None] == total[1]) / 2).mean()
    told = result.categories["code"].auc[HEADS_SUM]["splice 2"].auc
    assert told == pytest.approx(expected)


def test_a_category_measures_the_same_again_and_alone(measured, causal):
    settings, result = measured
    alone = settings.model_copy(update={"sources": settings.sources[1:]})
    again = evaluate(alone, windows=4, causal_model=causal).categories
    assert again == {"code": result.categories["code"]}


def test_the_page_and_the_json_are_written_and_hostile_names_stay_text(measured, tmp_path):
    _, result = measured
    settings = replace(result.settings, sources=["<script>alert(1)</script>"])
    hostile = replace(result, settings=settings)
    numbers, page = (Path(url).read_text() for url in write_evaluation(str(tmp_path), hostile))
    assert json.loads(numbers) == hostile.to_dict()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    told = result.categories["book"]
    cell = told.auc["DS"]["splice 2"]
    assert f">{cell.auc:.2f}<br>" in page
    assert f"{cell.low:.2f}–{cell.high:.2f} *<" in page, "4 documents are few"
    assert "Intervals from 4 documents are too narrow" in page
    assert '<th scope="row">low variance</th>' in page and '<th scope="row">DU</th>' not in page


def test_a_notebook_shows_a_line_a_score(measured):
    _, result = measured
    cell = result.categories["code"].auc["DU"]["splice 2"]
    shown = repr(result).splitlines()
    assert shown[0].startswith(f"Evaluation of {result.settings.model}: AUC")
    assert "code: 4 documents, 4 windows" in shown
    line = f"  low variance: splice 2 {cell.auc:.2f} ({cell.low:.2f}-{cell.high:.2f}), splice 4 "
    assert any(
        told.startswith(line) for told in shown[shown.index("code: 4 documents, 4 windows") :]
    )


def test_intervals_of_enough_documents_are_not_marked(measured, tmp_path):
    _, result = measured
    many = {name: replace(of, documents=20) for name, of in result.categories.items()}
    _, page = (
        Path(u).read_text()
        for u in write_evaluation(str(tmp_path), replace(result, categories=many))
    )
    assert "too narrow:" not in page and " *<" not in page


def test_the_command_prints_a_table_and_says_what_it_wrote(
    corpus, checkpoint, tmp_path, monkeypatch
):
    path = tmp_path / "config.yaml"
    path.write_text(config(corpus, tmp_path / "out", checkpoint).to_yaml())
    monkeypatch.setattr(evaluation, "variants", lambda *_: {})
    result = CliRunner().invoke(app, ["evaluate", str(path), "--windows", "2"])
    assert result.exit_code == 0, result.output
    assert "book: AUC of each head" in result.stdout and "head 1" in result.stdout
    assert "book: AUC, native" in result.stdout and "recurrence_rarity" in result.stdout
    assert f"written: {tmp_path}/out/evaluation.html" in result.stdout
    refused = CliRunner().invoke(app, ["evaluate", str(path), "--causal-model", "/nowhere"])
    assert refused.exit_code == 2
