"""Finding a scoring model's tensors, and refusing what cannot be scored."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from longattn.scoring.checkpoint import open_checkpoint
from tests import checkpoints


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def _change_config(folder: Path, **fields: object) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return str(folder)


def _change_tensor(folder: Path, name: str, scale: float) -> str:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def _refusal(model: Path | str) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        open_checkpoint(str(model))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_the_stored_rows(llama: Path) -> None:
    checkpoint = open_checkpoint(str(llama))
    stored = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(checkpoint.read("embed_tokens.weight", 7, 12), stored[7:12])
    assert checkpoint.shape("embed_tokens.weight") == stored.shape
    assert checkpoint.tokenizer_file == llama / "tokenizer.json"


def test_needs_neither_values_nor_later_layers(llama: Path) -> None:
    assert sorted(open_checkpoint(str(llama)).files) == [
        "embed_tokens.weight",
        "layers.0.input_layernorm.weight",
        "layers.0.self_attn.k_proj.weight",
        "layers.0.self_attn.q_proj.weight",
    ]


def test_shards_are_read_like_one_file(llama: Path, tmp_path: Path) -> None:
    sharded = checkpoints.save(tmp_path, "llama", shard="50KB")
    assert (sharded / "model.safetensors.index.json").is_file()
    checkpoint = open_checkpoint(str(sharded))
    assert len({file for file, _ in checkpoint.files.values()}) > 1
    assert checkpoint.fingerprint() == open_checkpoint(str(llama)).fingerprint()


def test_fingerprint_changes_with_what_decides_the_scores(llama: Path, copy: Path) -> None:
    first = open_checkpoint(str(llama)).fingerprint()
    assert open_checkpoint(str(copy)).fingerprint() == first
    other = _change_tensor(copy, "model.layers.1.self_attn.q_proj.weight", 2.0)
    assert open_checkpoint(other).fingerprint() == first
    assert open_checkpoint(_change_config(copy, num_hidden_layers=9)).fingerprint() == first
    assert open_checkpoint(_change_config(copy, rms_norm_eps=1e-3)).fingerprint() != first


@pytest.mark.parametrize("name", ["embed_tokens", "layers.0.self_attn.k_proj"])
def test_fingerprint_changes_with_each_weight(llama: Path, copy: Path, name: str) -> None:
    changed = _change_tensor(copy, f"model.{name}.weight", 1.5)
    assert open_checkpoint(changed).fingerprint() != open_checkpoint(str(llama)).fingerprint()


@pytest.mark.parametrize("row", [0, 4095, 4096, 8191])
def test_fingerprint_changes_with_each_row_of_the_embedding(
    checkpoint: str, tmp_path: Path, row: int
) -> None:
    other = Path(shutil.copytree(checkpoint, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.embed_tokens.weight"][row, -1] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(str(other)).fingerprint() != open_checkpoint(checkpoint).fingerprint()


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "", "a/b/c"])
def test_a_model_that_is_not_there(model: str) -> None:
    assert repr(model) in _refusal(model)


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise FileNotFoundError("not in the cache\nand the hub is offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert "owner/model" in _refusal("owner/model")


def test_hub_fetches_only_the_needed_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = checkpoints.save(tmp_path / "remote", "llama", shard="50KB")
    local = tmp_path / "local"

    def fetch(repository: str, allow_patterns: list[str]) -> str:
        assert repository == "owner/model"
        local.mkdir(exist_ok=True)
        for name in allow_patterns:
            if (remote / name).exists():
                shutil.copy(remote / name, local / name)
        return str(local)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    checkpoint = open_checkpoint("owner/model")
    assert checkpoint.fingerprint() == open_checkpoint(str(remote)).fingerprint()
    fetched = {file.name for file in local.glob("*.safetensors")}
    assert fetched == {file.name for file, _ in checkpoint.files.values()}
    assert len(fetched) < len(list(remote.glob("*.safetensors")))


def test_pickles_are_refused_by_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "pytorch_model.bin, a pickle" in _refusal(copy)


def test_truncated_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert str(file) in _refusal(copy)


def test_missing_tensor(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    save_file(tensors, copy / "model.safetensors")
    assert "model.layers.0.self_attn.k_proj.weight" in _refusal(copy)


def test_an_index_that_promises_what_its_shard_lacks(tmp_path: Path) -> None:
    sharded = checkpoints.save(tmp_path, "llama", shard="50KB")
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = "model.layers.0.self_attn.k_proj.weight"
    others = {*index["weight_map"].values()} - {index["weight_map"][name]}
    index["weight_map"][name] = min(others)
    file.write_text(json.dumps(index))
    assert f"{min(others)}: the index promises {name}, which is not there" in _refusal(sharded)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "weights.bin"])
def test_index_cannot_point_elsewhere(copy: Path, shard: str) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert shard in _refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": "no_such_family"}'])
def test_unreadable_config(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    assert str(copy) in _refusal(copy)


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("deepseek_v3", {}, "latent attention"),
        ("gemma2", {}, "soft-capping"),
        ("gpt_oss", {}, "attention sinks"),
        ("gemma3_text", {}, "sliding_attention"),
        ("mistral", {"sliding_window": 4096}, "slides over a window of 4096"),
        ("qwen3_next", {}, "linear_attention"),
        ("gpt2", {}, "no rotary"),
        ("opt", {}, "no rotary"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, "depend on the length"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
    ],
)  # fmt: skip
def test_families_that_cannot_be_scored(
    copy: Path, family: str, fields: dict[str, object], reason: str
) -> None:
    config = {} if family != "llama" else json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": family, **fields}))
    message = _refusal(copy)
    assert reason in message
    assert family in message
