"""Find a scoring model's first-layer tensors and read them in slices, never the whole model.

Needed are the token embedding, the first input norm, and layer 0's attention without its value and
output projections. A model that cannot be scored truthfully is refused here, from its config alone.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from longattn.models import (
    errors_name_url,
    fetch_tensors,
    is_hub_id,
    is_url,
    model_folder,
    tensor_files,
)
from longattn.text import first_line, without_secrets

if TYPE_CHECKING:
    from transformers import PretrainedConfig

EMBEDDING = "embed_tokens.weight"
_INDEX = "model.safetensors.index.json"
_SLICE_ROWS = 4096
# The config fields that can change q, k, their rotation or their scaling, over all families.
_DECIDING_FIELDS = (
    "model_type",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "norm_eps",
    "norm_epsilon",
    "layer_norm_epsilon",
    "rope_parameters",
    "max_position_embeddings",
    "attention_bias",
    "clip_qkv",
    "attention_multiplier",
    "embedding_multiplier",
    "query_pre_attn_scalar",
)


@dataclass(frozen=True)
class Checkpoint:
    """What scoring needs of a model.

    Attributes:
        name: the model, for people.
        path: the folder.
        config: the transformers config.
        tokenizer_file: `tokenizer.json` of the folder; scoring ids does not need it to be there.
        files: name of a needed tensor in a bare decoder ("layers.0.self_attn.q_proj.weight") ->
            the safetensors file that holds it and its name there.
    """

    name: str
    path: Path
    config: "PretrainedConfig"
    tokenizer_file: Path
    files: Mapping[str, tuple[Path, str]]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a needed tensor. Raises ValueError if the checkpoint has no such tensor."""
        with safe_open(self._file(name), framework="pt") as tensors:
            return tuple(tensors.get_slice(self.files[name][1]).get_shape())

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        """Rows [start, stop) of a needed tensor, as stored (a torch tensor on the CPU)."""
        with safe_open(self._file(name), framework="pt") as tensors:
            return tensors.get_slice(self.files[name][1])[start:stop]

    def read_rows(self, name: str, rows: Sequence[int]) -> Any:
        """The named rows of a needed tensor, in their order."""
        import torch

        with safe_open(self._file(name), framework="pt") as tensors:
            stored = tensors.get_slice(self.files[name][1])
            return torch.cat([stored[row : row + 1] for row in rows])

    def fingerprint(self) -> str:
        """Hex SHA-256 over the needed tensors and the config fields that decide the scores."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        import torch

        digest = hashlib.sha256()
        fields = {name: getattr(self.config, name, None) for name in _DECIDING_FIELDS}
        digest.update(json.dumps(fields, sort_keys=True, default=str).encode())
        for name in sorted(self.files):
            rows = self.shape(name)[0]
            digest.update(f"\n{name} {self.shape(name)} {self.read(name, 0, 1).dtype}\n".encode())
            for start in range(0, rows, _SLICE_ROWS):
                part = self.read(name, start, start + _SLICE_ROWS).contiguous()
                digest.update(part.view(torch.uint8).numpy())
        return digest.hexdigest()

    def _file(self, name: str) -> Path:
        if name not in self.files:
            raise ValueError(f"{self.name}: the checkpoint has no tensor {name}")
        return self.files[name][0]


def open_checkpoint(model: str) -> Checkpoint:
    """Open a scoring model without reading its weights.

    Args:
        model: "builtin" (the scorer that ships with the package), a local folder, the id of a
            repository on the Hugging Face hub, of which only the config, the tokenizer, the index
            and the files that hold needed tensors are fetched, or the URL of a folder on a store, of
            which only the needed tensors are fetched.

    Raises:
        ValueError: in one line; no such model, no safetensors, a tensor missing, a family whose
            first layer cannot be scored truthfully, or a tokenizer with ids beyond the embedding.
        OSError: the store failed.
    """
    folder = model_folder(model)
    with errors_name_url(model, folder):
        config = _read_config(folder)
        reason = _cannot_score(config)
        if reason:
            shown = without_secrets(model)
            raise ValueError(f"model {shown!r} ({config.model_type}) is refused: {reason}")
        if (folder / _INDEX).is_file():
            stored = _read_index(folder / _INDEX)
        elif is_url(model):
            stored = tensor_files(model)
        else:
            if is_hub_id(model):
                model_folder(model, ["model.safetensors"])
            stored = _read_names(folder)
        names = _needed_tensors(stored, folder)
        checkpoint = Checkpoint(
            name=without_secrets(model) if is_url(model) else str(folder),
            path=folder,
            config=config,
            tokenizer_file=folder / "tokenizer.json",
            files=_local_files(model, folder, stored, names),
        )
        _check_tokenizer(checkpoint)
    return checkpoint


def _local_files(
    model: str, folder: Path, stored: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, tuple[Path, str]]:
    """Name of a needed tensor in a bare decoder -> the local file that holds it and its name there."""
    if is_url(model):
        file = fetch_tensors(model, {there: stored[there] for there in names.values()})
        return {name: (file, there) for name, there in names.items()}
    needed = sorted({stored[name] for name in names.values()})
    if is_hub_id(model):
        model_folder(model, needed)
    for name in needed:
        missing = {n for n in names.values() if stored[n] == name} - _tensor_names(folder / name)
        if missing:
            raise ValueError(
                f"{folder / name}: the index promises {min(missing)}, which is not there"
            )
    return {name: (folder / stored[there], there) for name, there in names.items()}


def _check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise ValueError if the tokenizer, where there is one, has an id that the embedding lacks."""
    file = checkpoint.tokenizer_file
    if not file.is_file():
        return
    rows = checkpoint.shape(EMBEDDING)[0]
    told = file.stat()
    last, token = _last_id(file, told.st_mtime_ns, told.st_size)
    if last >= rows:
        raise ValueError(
            f"{file}: token {token!r} has id {last}; allowed: below {rows}, the rows of the "
            "checkpoint's embedding"
        )


@lru_cache(maxsize=8)  # a run opens its checkpoint three times, and some tokenizers are 17 MB
def _last_id(tokenizer_file: Path, modified: int, size: int) -> tuple[int, str]:
    """The largest id of a tokenizer as it was stored then, and its token."""
    try:
        told = json.loads(tokenizer_file.read_bytes())
        vocabulary = told["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [token, score] by id
            ids = [(len(vocabulary) - 1, vocabulary[-1][0])] if vocabulary else []
        else:
            last = max(vocabulary.items(), key=itemgetter(1), default=None)
            ids = [(last[1], last[0])] if last else []
        largest: tuple[int, str] = max(
            ids + [(token["id"], token["content"]) for token in told.get("added_tokens") or []]
        )
        return largest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{tokenizer_file}: not a tokenizer of the tokenizers library") from error


def _read_config(folder: Path) -> "PretrainedConfig":
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no config.json, so no checkpoint")
    from transformers import AutoConfig  # 4 s of imports, which "no such folder" need not wait for

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return config
    except Exception as error:  # of a broken config transformers raises anything
        raise ValueError(
            f"{folder / 'config.json'}: transformers cannot read it: {first_line(error)[:300]}"
        ) from error


def _cannot_score(config: "PretrainedConfig") -> str | None:
    """Why the first layer's attention is not the one that the statistics compute, or None."""
    rope = getattr(config, "rope_parameters", None)
    layer_types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "quantization_config", None):
        return "its weights are quantized; give the unquantized checkpoint"
    if getattr(config, "kv_lora_rank", None):
        return "latent attention (kv_lora_rank) has no per-token keys"
    if getattr(config, "attn_logit_softcapping", None):
        return "attention logit soft-capping (attn_logit_softcapping)"
    if config.model_type == "gpt_oss":
        return "attention sinks"
    if layer_types and layer_types[0] != "full_attention":
        return f"its first layer is {layer_types[0]}, not full_attention"
    if not layer_types and window and getattr(config, "use_sliding_window", True):
        return f"its first layer slides over a window of {window} tokens (sliding_window)"
    if not rope:
        return "it has no rotary position embedding (rope_parameters), or not a text decoder's"
    if "rope_type" not in rope:
        return "its rotary position embedding differs between layers"
    if rope["rope_type"] in ("dynamic", "longrope"):
        return f"its rotary frequencies depend on the length of the text (rope_type {rope['rope_type']})"
    return None


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file name, of a checkpoint in several files."""
    try:
        stored: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index}: not an index of safetensors files") from error
    for file in stored.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ValueError(f"{index}: names {file!r}; allowed: a .safetensors file beside it")
    return stored


def _read_names(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, of a checkpoint without an index."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(
            file.name for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}")
        )
        held = f"only {pickles[0]}, a pickle, which can run code when read" if pickles else "none"
        raise ValueError(f"{folder}: no weights in *.safetensors; holds {held}")
    return {name: file.name for file in files for name in _tensor_names(file)}


def _tensor_names(file: Path) -> set[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: not a readable safetensors file: {first_line(error)}") from error


def _needed_tensors(stored: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Name in a bare decoder -> name in the checkpoint ("model." before it in most)."""
    embeddings = [name for name in stored if name.endswith(EMBEDDING)]
    if len(embeddings) != 1:
        raise ValueError(f"{folder}: {len(embeddings)} tensors named *{EMBEDDING}; allowed: one")
    prefix = embeddings[0].removesuffix(EMBEDDING)
    layer = re.compile(
        re.escape(prefix) + r"(layers\.0\.(input_layernorm\.|self_attn\.(?!v_proj\.|o_proj\.)).*)"
    )
    names = {match[1]: name for name in stored if (match := layer.fullmatch(name))}
    for required in ("q_proj", "k_proj"):
        name = f"layers.0.self_attn.{required}.weight"
        if name not in names and "layers.0.self_attn.qkv_proj.weight" not in names:
            raise ValueError(f"{folder}: the checkpoint has no tensor {prefix}{name}")
    return {EMBEDDING: embeddings[0], **names}
