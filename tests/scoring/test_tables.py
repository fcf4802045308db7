"""Tables of queries and keys, against the whole model as transformers runs it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longattn.scoring import tables
from longattn.scoring.checkpoint import open_checkpoint
from longattn.scoring.statistics import dense_statistics, probability_statistics
from tests import checkpoints

CPU = torch.device("cpu")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": YARN}),
        ("llama", {"rope_parameters": LINEAR, "head_dim": 32}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.3}),
        ("cohere", {}),
        ("glm", {"head_dim": 16}),
        ("phi3", {}),
        ("olmo2", {}),
        ("gemma", {"head_dim": 16}),
        ("starcoder2", {"sliding_window": None}),
    ],
)
def test_probabilities_are_those_of_the_whole_model(
    family: str, fields: dict[str, object], tmp_path: Path
) -> None:
    """Biases, q/k norms, fused and partial rotations, multipliers: all from transformers' code."""
    checkpoint = open_checkpoint(str(checkpoints.save(tmp_path, family, **fields)))
    built = tables.build_tables(checkpoint, CPU, torch.float64)
    ids = torch.randint(checkpoints.VOCABULARY, (150,))
    q, k = built.rotated(ids, torch.arange(150))
    truth = probability_statistics(checkpoints.eager_probabilities(tmp_path, ids), 30)
    for got, expected in zip(dense_statistics(q, k, 30, built.scaling), truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(
    ("family", "fields", "halves"),
    [("llama", {}, True), ("qwen3", {"head_dim": 32}, True), ("cohere", {}, False), ("glm", {"head_dim": 16}, False)],
)  # fmt: skip
def test_the_rotation_of_halves_is_told_from_others(family, fields, halves, tmp_path) -> None:
    checkpoint = open_checkpoint(str(checkpoints.save(tmp_path, family, **fields)))
    assert tables.build_tables(checkpoint, CPU, torch.float32).rotates_halves() is halves


def test_rope_theta_replaces_the_checkpoints(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(checkpoints.save(tmp_path, "llama", rope_parameters=LLAMA3)))
    built = tables.build_tables(checkpoint, CPU, torch.float64, rope_theta=2.5e6)
    ids = torch.randint(checkpoints.VOCABULARY, (150,))
    q, k = built.rotated(ids, torch.arange(150))
    expected = probability_statistics(checkpoints.eager_probabilities(tmp_path, ids, 2.5e6), 30)[0]
    got = dense_statistics(q, k, 30, built.scaling)[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0.0)
    assert checkpoint.config.rope_parameters["rope_theta"] == 5e5


def test_chunks_of_the_vocabulary_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(str(checkpoints.save(tmp_path, "qwen2")))
    whole = tables.build_tables(checkpoint, CPU, torch.float64)
    monkeypatch.setattr(tables, "_CHUNK", 77)
    parts = tables.build_tables(checkpoint, CPU, torch.float64)
    torch.testing.assert_close(parts.q_vhd, whole.q_vhd, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.k_vgd, whole.k_vgd, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.layers.0.input_layernorm.weight", None, "has no tensor"),
        ("model.layers.0.self_attn.q_proj.weight", (32, 64), "has shape"),
        ("model.embed_tokens.weight", (320, 48), "has shape"),
        ("model.layers.0.self_attn.q_proj.weight", float("nan"), "not finite"),
    ],
)
def test_bad_tensors_are_refused(
    tmp_path: Path, name: str, change: tuple[int, ...] | float | None, message: str
) -> None:
    file = checkpoints.save(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(file)
    if change is None:
        del tensors[name]
    elif isinstance(change, float):
        tensors[name][0, 0] = change
    else:
        tensors[name] = torch.zeros(change)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        tables.build_tables(open_checkpoint(str(tmp_path)), CPU, torch.float32)


def test_queries_beyond_float16_are_refused_before_rotation_takes_them_there(
    tmp_path: Path,
) -> None:
    file = checkpoints.save(tmp_path, "llama") / "model.safetensors"
    largest = (
        tables.build_tables(open_checkpoint(str(tmp_path)), CPU, torch.float32).q_vhd.abs().max()
    )
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 50_000 / largest
    save_file(tensors, file)
    checkpoint = open_checkpoint(str(tmp_path))
    assert tables.build_tables(checkpoint, CPU, torch.bfloat16).q_vhd.abs().max() < 65504
    with pytest.raises(ValueError, match="not once rotated"):
        tables.build_tables(checkpoint, CPU, torch.float16)


def test_a_rotation_of_its_own_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(checkpoints.save(tmp_path, "stablelm")))
    with pytest.raises(ValueError, match="StableLmModel is refused: it rotates"):
        tables.build_tables(checkpoint, CPU, torch.float32)
