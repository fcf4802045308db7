"""Tiny random checkpoints of several families, and the probabilities that transformers gives them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCABULARY = 320
_TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def save(folder: Path, family: str, shard: str | None = None, **fields: Any) -> Path:
    """Write a checkpoint with weights large enough for attention that is far from uniform."""
    config = CONFIG_MAPPING[family](**{**_TINY, **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "layers.0." in name or "embed" in name:
            torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


def eager_probabilities(folder: Path, ids_l: Tensor, rope_theta: float | None = None) -> Tensor:
    """(heads, length, length) of layer 0, from the whole model as transformers loads and runs it."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64
    )
    if rope_theta is not None:
        model.config.rope_parameters["rope_theta"] = rope_theta
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    with torch.inference_mode():
        return model(input_ids=ids_l[None], output_attentions=True).attentions[0][0]
