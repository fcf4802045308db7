"""What a whole causal language model says of a window: the dear baselines of an evaluation.

The loss gap is how much better the model predicts with all of the window before it than with a short
context, as LongFilter and LongWanjuan use it. The far attention of every layer is what LADM goes by,
here without its spans: DS as the first layer has it, meant over all layers and heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from longattn.models import whole_model
from longattn.scoring.statistics import attention_sums, statistics_from_sums
from longattn.text import first_line, without_secrets
from longattn.windows.tokenizer import load_tokenizer

_ROWS = 1024  # positions whose logits are held at a time: 0.5 GB in float32 at 128256 tokens
_TOLERANCE = 1e-3  # nats a token, from the model's own loss, that loading accepts
_NAME = "longattn_far_attention"


class CausalModel:
    """A causal language model whose tokenizer is that of the scorer.

    Args:
        model: a local folder, a hub id or the URL of a folder on a store; its weights are safetensors.
        tokenizer: fingerprint of the scorer's tokenizer, for the pairs must be of the same tokens.

    Raises:
        ValueError: no such model, another tokenizer, or a family that cannot be measured truthfully.
    """

    def __init__(self, model: str, tokenizer: str) -> None:
        source, shown = whole_model(model), without_secrets(model)
        if load_tokenizer(model).fingerprint != tokenizer:
            raise ValueError(f"causal model {shown!r}: its tokenizer is not that of the scorer")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, attn_implementation=_NAME
            )
        except OSError as error:
            raise ValueError(f"causal model {shown!r}: {first_line(error)}") from error
        self.model = loaded.to(self.device).eval()
        self._compare_with_own_loss(shown)

    @torch.inference_mode()
    def scores(self, window_l: NDArray[np.integer], min_distance: int) -> tuple[float, float]:
        """Loss gap, in nats a token, and DS over all layers, of one window.

        The gap is over the later halves of consecutive parts of `min_distance` tokens, the first
        part left out: there the short context, the part alone, holds half of `min_distance` or more.
        """
        ids_l = torch.as_tensor(window_l.astype(np.int64), device=self.device)
        parts = len(ids_l) // min_distance
        with _far_attention(min_distance) as ds_of_layers:
            full_l = self._losses(ids_l[None])[0]
        short_pl = self._losses(ids_l[: parts * min_distance].view(parts, min_distance))
        later = slice(min_distance // 2, None)
        gaps = [
            short_pl[p, later] - full_l[p * min_distance : (p + 1) * min_distance][later]
            for p in range(1, parts)
        ]
        gap = float(torch.cat(gaps).mean()) if gaps else float("nan")
        return gap, float(np.mean(ds_of_layers))

    def _losses(self, ids_bl: Tensor) -> Tensor:
        """Cross entropy at each position given those before it, (batch, length); 0 at position 0."""
        hidden_blc = self.model.base_model(input_ids=ids_bl, use_cache=False).last_hidden_state
        loss_bl = torch.zeros(ids_bl.shape, device=self.device)
        for start in range(0, ids_bl.shape[1] - 1, _ROWS):
            stop = min(start + _ROWS, ids_bl.shape[1] - 1)
            for b in range(len(ids_bl)):
                logits = self.model.get_output_embeddings()(hidden_blc[b, start:stop]).float()
                targets = ids_bl[b, start + 1 : stop + 1]
                loss_bl[b, start + 1 : stop + 1] = F.cross_entropy(
                    logits, targets, reduction="none"
                )
        return loss_bl

    @torch.inference_mode()
    def _compare_with_own_loss(self, name: str) -> None:
        ids_bl = torch.arange(64, device=self.device)[None]
        own = float(self.model(input_ids=ids_bl, labels=ids_bl, use_cache=False).loss)
        ours = float(self._losses(ids_bl).sum() / 63)
        if not abs(own - ours) <= _TOLERANCE:
            raise ValueError(
                f"causal model {name!r} is refused: its own loss is {own:.4f}, that of its last "
                f"hidden states {ours:.4f}"
            )


_active: list[tuple[int, list[float]]] = []


@contextmanager
def _far_attention(min_distance: int) -> Iterator[list[float]]:
    """Collect DS of every layer, mean over heads, of the windows run inside the block."""
    ds_of_layers: list[float] = []
    _active.append((min_distance, ds_of_layers))
    try:
        yield ds_of_layers
    finally:
        _active.pop()


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any
) -> Any:
    """transformers' own attention (sdpa, causal), which notes DS while it is asked for."""
    for name in ("softcap", "s_aux", "sliding_window", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{type(module).__name__} is refused: it has {name}={options[name]}")
    if _active:
        min_distance, ds_of_layers = _active[-1]
        scaling = options.get("scaling") or query.shape[-1] ** -0.5
        sums = _sums(query[0], key[0], min_distance, float(scaling))
        ds_h, _ = statistics_from_sums(*sums, query.shape[2])
        ds_of_layers.append(float(ds_h.mean()))
    return sdpa_attention_forward(module, query, key, value, *args, **options)


def _sums(q_hld: Tensor, k_gld: Tensor, min_distance: int, scaling: float) -> tuple[Tensor, Tensor]:
    q_hrd = q_hld[:, min_distance:]
    if q_hld.device.type == "cpu":
        s1_hk, s2_hk = attention_sums(q_hrd, k_gld, [min_distance], scaling)
        return s1_hk[:, 0], s2_hk[:, 0]
    from longattn.scoring import triton_kernel

    first_b = torch.tensor([min_distance], dtype=torch.int32, device=q_hld.device)
    q_hrd = (q_hrd.float() * (scaling * math.log2(math.e))).to(q_hld.dtype)
    s1_bhk, s2_bhk = triton_kernel.attention_sums(
        q_hrd[None], k_gld[None], [min_distance], first_b, reference=True
    )
    return s1_bhk[0, :, 0].cpu(), s2_bhk[0, :, 0].cpu()


AttentionInterface.register(_NAME, _attend)
