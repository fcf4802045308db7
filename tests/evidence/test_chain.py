"""The whole chain on tiny data on a CPU, and the fast Llama against transformers."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from arms import CORE, FURTHER, draw, top  # noqa: E402
from fetch_pool import Seen, is_held_out  # noqa: E402
from llama import PLAIN, Llama, Shape, packed  # noqa: E402
from measure import copy_margin, gap_of  # noqa: E402
from windows import Windows  # noqa: E402


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with the built-in scorer's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    import longattn

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rope_theta=1e5,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    source = Path(longattn.__file__).parent / "builtin" / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(source.read_bytes())
    return folder


def test_losses_and_gradients_are_those_of_transformers(model_folder: Path) -> None:
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ours = Llama(Shape.read(model_folder), "cpu", torch.float32, "math", PLAIN)
    ours.load(packed(model_folder))
    ids = torch.randint(8192, (3, 200), generator=torch.Generator().manual_seed(1))
    loss = theirs(ids, labels=ids).loss
    loss.backward()
    mine = ours.mean_loss(ids)
    mine.backward()
    assert mine.item() == pytest.approx(loss.item(), rel=1e-6)
    named = dict(theirs.named_parameters())
    layer = "model.layers.1."
    for name, parts in (
        ("embedding", ["model.embed_tokens"]),
        ("norm", ["model.norm"]),
        ("1.qkv", [f"{layer}self_attn.{p}_proj" for p in "qkv"]),
        ("1.out", [f"{layer}self_attn.o_proj"]),
        ("1.gate_up", [f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj"]),
        ("1.down", [f"{layer}mlp.down_proj"]),
        ("1.mlp_norm", [f"{layer}post_attention_layernorm"]),
        ("0.attention_norm", ["model.layers.0.input_layernorm"]),
    ):
        want = torch.cat([named[f"{part}.weight"].grad for part in parts])
        got = ours.weights[name].grad
        assert (got - want).norm() < 1e-5 * want.norm(), name


def test_gaps_are_those_of_transformers(model_folder: Path) -> None:
    from transformers import LlamaForCausalLM

    theirs = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float64)
    ours = Llama(Shape.read(model_folder), "cpu", torch.float32, "math", PLAIN)
    ours.load(packed(model_folder))
    ids = torch.randint(8192, (2, 64), generator=torch.Generator().manual_seed(2))
    near, full = gap_of(ours, ids, 8, 16)

    def loss(context: torch.Tensor, token: torch.Tensor) -> float:
        with torch.no_grad():
            return -theirs(context[None]).logits[0, -1].log_softmax(-1)[token].item()

    for position in (16, 23, 24, 40, 63):
        start = (position // 8 - 1) * 8
        for b in range(2):
            assert full[b, position - 1].item() == pytest.approx(
                loss(ids[b, :position], ids[b, position]), abs=1e-4
            )
            assert near[b, position - 16].item() == pytest.approx(
                loss(ids[b, start:position], ids[b, position]), abs=1e-4
            )
    margin = copy_margin(ours, torch.randint(8192, (3, 512)), [64, 128])
    assert margin.shape == (3, 2)
    assert margin.abs().max() > 0


def test_arms_differ_in_what_they_draw_and_agree_in_shares() -> None:
    rng = np.random.default_rng(0)
    category = np.array(["a"] * 400 + ["b"] * 200)
    names = ("ds", "variance", "loss_gap", "recurrence_pairs", "compression_ratio")
    scores = {name: rng.random(600) for name in names}
    drawn = {arm: draw(arm, 1, category, scores, 120) for arm in CORE + FURTHER}
    for rows in drawn.values():
        assert len(set(rows.tolist())) == 120
        assert (category[rows] == "a").sum() == 80
    assert not set(drawn["lds_top"].tolist()) & set(drawn["lds_bottom"].tolist())
    best = np.sort(scores["loss_gap"][:400])[-100]
    assert scores["loss_gap"][drawn["loss_gap"][drawn["loss_gap"] < 400]].min() >= best
    assert set(draw("random", 2, category, scores, 120)) != set(drawn["random"])
    assert top(np.array([3.0, 1, 2, 0]), np.ones(4, bool)).tolist() == [True, False, False, False]


def test_repeating_documents_are_dropped() -> None:
    seen = Seen()
    one = "\n".join(f"line {i} of the first document here" for i in range(50))
    assert seen.take(one)
    assert not seen.take(one)
    assert not seen.take("\n".join(["the same line over and over again"] * 50))
    mixed = "\n".join(f"line {i} of another document here" for i in range(50)) + one[:300]
    assert seen.take(mixed)


@pytest.mark.timeout(900)
def test_chain(model_folder: Path, tmp_path: Path) -> None:
    """Pool to windows to scores to runs to the page, as on a machine of many cards."""
    from longattn.samples import SAMPLES

    pool = tmp_path / "pool"
    pool.mkdir()
    with gzip.open(pool / "samples.jsonl.gz", "wt", encoding="utf8") as out:
        for name in ("book", "c", "python"):
            with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt", encoding="utf8") as lines:
                texts = [json.loads(line)["content"] for line in lines]
            for n, text in enumerate(texts[:2] if name == "book" else texts[:8]):
                for part in range(0, min(len(text), 18_000), 6_000):
                    repository = f"book:{n}" if name == "book" else f"{name}{n}-{part}"
                    row = {
                        "content": text[part : part + 6_000],
                        "category": name,
                        "repository": repository,
                    }
                    out.write(json.dumps(row) + "\n")
    room = tmp_path / "room"
    (room / "model").mkdir(parents=True)
    for file in model_folder.iterdir():
        (room / "model" / file.name).write_bytes(file.read_bytes())

    def run(script: str, *arguments: object) -> str:
        root = str(HERE.parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [
                sys.executable,
                script if script == "-m" else str(HERE / script),
                *map(str, arguments),
            ],
            check=False,
            text=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("by_longattn.py", "split", pool, room)
    told = (HERE / "pool.yaml").read_text().replace("tokens: 8192", "tokens: 512")
    for old, new in (("compiled", "c"), ("script", "python"), ("short: 1024", "short: 32")):
        told = told.replace(old, new)
    manual = next(line for line in told.splitlines() if "manual" in line)
    (room / "pool.yaml").write_text(told.replace(manual, ""))
    with contextlib.chdir(room):
        run("-m", "longattn", "run", "pool.yaml", "--executor", "local")
    cut = ["--window", 512, "--tokenizer", room / "model", "--processes", 1]
    run("windows.py", room / "held_out", tmp_path / "held_out", *cut)
    run("by_longattn.py", "gather", room / "run", tmp_path / "held_out", room / "windows")
    windows = Windows(room / "windows")
    with np.load(room / "windows" / "scores.npz") as scores:
        assert {len(of) for of in scores.values()} == {len(windows.pool())}
        near = [float(np.asarray(of, np.float64).std()) for of in scores.values()]
    assert min(near) > 0
    assert not set(windows.held_out().document) & set(windows.column("document")[windows.pool()])
    arms = ["random", "lds_top"]
    runs = [f"{arm} {seed}" for seed in (1, 2) for arm in arms]
    (room / "runs.txt").write_text("\n".join([*runs, "base 0"]))
    small = ["--short", 32, "--device", "cpu"]
    run("many.py", room, "--tokens", 512 * 16, "--length", 512, *small)
    results = sorted(path.name for path in (room / "results").glob("*.json"))
    assert len(results) == 5
    first = json.loads((room / "results" / "random-1.json").read_text())
    assert is_held_out("book:0")
    assert first["steps"] >= 1
    assert len(first["far_gain"]) == len(first["document"])
    run("many.py", room, "--tokens", 512 * 16, "--length", 512, *small)  # nothing is run again
    page = run("tell.py", room / "results", tmp_path / "page.md", "--plots", tmp_path)
    text = (tmp_path / "page.md").read_text()
    for arm in arms:
        assert arm in text
    assert "Noise floor" in text
    assert page is not None
