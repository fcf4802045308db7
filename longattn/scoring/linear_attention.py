"""Attention of a running language model in memory linear in the length of the text.

Registered with transformers under the name ATTENTION, so that any family that calls its attention
functions runs on it. No mask is ever made: causal attention is torch's fused one; a sliding window is
cut into blocks of rows; scores that are soft-capped (Gemma 2) are computed a few rows at a time.
A layer's `observe`, where one is set, is given the queries and keys it attends with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

ATTENTION = "longattn_linear_memory"
BLOCK_ENTRIES = 1 << 27  # scores held at a time where they are: 0.5 GB in float32
_BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


class Attended(NamedTuple):
    """What a layer attends with.

    Attributes:
        q_bhld: queries (batch, heads, length, head_dim), rotated.
        k_bgld: keys (batch, kv_heads, length, head_dim), rotated.
        scaling: factor on the products, before softmax.
        softcap: c of scores c * tanh(score / c), or None.
        sliding_window: keys that a row sees, itself included, or None for all before it.
    """

    q_bhld: Tensor
    k_bgld: Tensor
    scaling: float
    softcap: float | None
    sliding_window: int | None


Observe = Callable[[Attended], None]


@contextmanager
def observed(attention: nn.Module, observe: Observe) -> Iterator[None]:
    """Within the block, `observe` is called with what this attention module attends with."""
    setattr(attention, "longattn_observe", observe)  # noqa: B010 (a module takes no unknown attribute)
    try:
        yield
    finally:
        delattr(attention, "longattn_observe")


def fused_backends(device: torch.device) -> Any:
    """A context in which torch attends by a kernel that holds no matrix of scores."""
    return sdpa_kernel(_BACKENDS, set_priority=True) if device.type == "cuda" else nullcontext()


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: (batch, length, heads, head_dim), no weights.

    Raises:
        ValueError: the family gives its attention more than queries, keys and values.
    """
    for name in ("s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{type(module).__name__} is refused: its attention has {name}")
    if mask is not None or options.get("is_causal") is False:
        raise ValueError(f"{type(module).__name__} is refused: its attention is not plainly causal")
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window, softcap = options.get("sliding_window"), options.get("softcap")
    observe: Observe | None = getattr(module, "longattn_observe", None)
    if observe is not None:
        observe(Attended(query, key, scaling, softcap, window))
    window = window if window and window < query.shape[2] else None
    if softcap is not None:
        out = _capped(query, key, value, scaling, softcap, window)
    elif window is not None:
        out = _sliding(query, key, value, scaling, window)
    else:
        heads, shared = query.shape[1], query.shape[1] != key.shape[1]
        if shared and query.dtype == torch.float32 and query.is_cuda:  # no fused kernel shares keys
            key, value, shared = _repeated(key, heads), _repeated(value, heads), False
        out = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=shared
        )
    return out.transpose(1, 2).contiguous(), None


def capped_probabilities(attended: Attended, start: int, stop: int, head: int) -> Tensor:
    """Probabilities of rows [start, stop) of one head of window 0, over the keys before `stop`."""
    q_bhld, k_bgld, scaling, softcap, window = attended
    group = q_bhld.shape[1] // k_bgld.shape[1]
    dtype = torch.promote_types(q_bhld.dtype, torch.float32)
    s_rl = q_bhld[0, head, start:stop].to(dtype) @ k_bgld[0, head // group, :stop].to(dtype).T
    return _masked(s_rl * scaling, start, 0, softcap, window).softmax(-1)


def _masked(s: Tensor, start: int, low: int, softcap: float | None, window: int | None) -> Tensor:
    """Scores of rows from `start` and keys from `low` on, capped, -inf where a row may not look."""
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    return s.masked_fill(
        ~_visible(s.shape[-2], s.shape[-1], start, low, window, s.device), -math.inf
    )


def _visible(
    rows: int, keys: int, start: int, low: int, window: int | None, device: torch.device
) -> Tensor:
    n = torch.arange(start, start + rows, device=device)[:, None]
    i = torch.arange(low, low + keys, device=device)
    return (i <= n) if window is None else (i <= n) & (i > n - window)


def _repeated(x_bgld: Tensor, heads: int) -> Tensor:
    return x_bgld.repeat_interleave(heads // x_bgld.shape[1], 1)


def _sliding(q_bhld: Tensor, k_bgld: Tensor, v_bgld: Tensor, scaling: float, window: int) -> Tensor:
    heads, length = q_bhld.shape[1:3]
    parts = []
    for start in range(0, length, window):
        stop, low = min(start + window, length), max(0, start - window + 1)
        visible = _visible(stop - start, stop - low, start, low, window, q_bhld.device)
        k, v = (_repeated(x[:, :, low:stop], heads) for x in (k_bgld, v_bgld))
        parts.append(
            F.scaled_dot_product_attention(
                q_bhld[:, :, start:stop], k, v, attn_mask=visible, scale=scaling
            )
        )
    return torch.cat(parts, 2)


def _capped(
    q_bhld: Tensor,
    k_bgld: Tensor,
    v_bgld: Tensor,
    scaling: float,
    softcap: float,
    window: int | None,
) -> Tensor:
    batch, heads, length, _ = q_bhld.shape
    rows = max(1, BLOCK_ENTRIES // (batch * heads * length))
    parts = []
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        low = 0 if window is None else max(0, start - window + 1)
        k, v = (_repeated(x[:, :, low:stop], heads) for x in (k_bgld, v_bgld))
        s = (q_bhld[:, :, start:stop] @ k.transpose(2, 3)).to(
            torch.promote_types(k.dtype, torch.float32)
        )
        p = _masked(s * scaling, start, low, softcap, window).softmax(-1)
        parts.append(p.to(v.dtype) @ v)
    return torch.cat(parts, 2)


AttentionInterface.register(ATTENTION, attend)
