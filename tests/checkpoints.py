"""Tiny random checkpoints of several families, and the probabilities that transformers gives them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from longattn.scoring.statistics import probability_statistics

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


def save(
    folder: Path, family: str, shard: str | None = None, key_bias: float = 0.0, **fields: Any
) -> Path:
    """Write a checkpoint with weights large enough for attention that is far from uniform.

    key_bias: the deviation of layer 0's key biases in the slowest of the pairs that are rotated, where
    those of Qwen2 are in the hundreds; of families that have biases.
    """
    config = CONFIG_MAPPING[family](**{**_TINY, **fields})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "layers.0." in name or "embed" in name:
            torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    if key_bias:
        bias_gd = model.model.layers[0].self_attn.k_proj.bias.data.view(2, -1)
        cos, _ = model.model.rotary_emb(bias_gd, torch.arange(2)[None])
        slowest = int(cos[0, 1].argmax())
        bias_gd[:, slowest] = key_bias
        bias_gd[1, slowest] *= -0.5
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


def windows_of_few_tokens(windows: int, length: int) -> Tensor:
    """(windows, length) ids, each window of few tokens that come back, fewer in each."""
    generator = torch.Generator().manual_seed(0)
    draw_nl = torch.rand((windows, length), generator=generator)
    return (draw_nl ** torch.linspace(1, 4, windows)[:, None] * VOCABULARY).long()


def true_scores(folder: Path, ids_nl: Tensor, min_distance: int) -> tuple[Tensor, Tensor]:
    """DS and variance of each window, the mean over heads, of the whole model in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64
    )
    with torch.inference_mode():
        p_bhll = model(input_ids=ids_nl, output_attentions=True).attentions[0]
    each = [probability_statistics(p_hll, min_distance) for p_hll in p_bhll]
    ds_n, variance_n = (torch.stack([h.mean() for h in of]) for of in zip(*each, strict=True))
    return ds_n, variance_n
