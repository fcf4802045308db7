"""What a language model's layers do between their matrix products, each in one pass over memory.

Triton kernels; plain transformers reads and writes the activations 5 to 15 times in their place.
Everything is computed in float32 and rounded once, so results differ from transformers' by less than
its own rounding. No atomics and no order that depends on other rows: a row has the same bits anywhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rms_norm_kernel(
    x_ptr, weight_ptr, out_ptr, rows, dim, eps, OFFSET: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (d < dim)
    x = tl.load(x_ptr + row * dim + d, mask=inside, other=0.0).to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(x * x, axis=1) / dim + eps)
    weight = tl.load(weight_ptr + d, mask=d < dim, other=0.0).to(tl.float32) + OFFSET
    tl.store(out_ptr + row * dim + d, x * scale[:, None] * weight, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """x / rms(x) * (offset + weight), over the last dimension."""
    x = x.contiguous()
    dim = x.shape[-1]
    rows, block = x.numel() // dim, triton.next_power_of_2(dim)
    out = torch.empty_like(x)
    at_once = max(1, 4096 // block)
    _rms_norm_kernel[(triton.cdiv(rows, at_once),)](
        x, weight, out, rows, dim, eps, OFFSET=offset, ROWS=at_once, BLOCK=block
    )
    return out


@triton.jit
def _silu_product_kernel(gate_up_ptr, out_ptr, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up_ptr + row * 2 * dim + d, mask=d < dim).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * dim + dim + d, mask=d < dim).to(tl.float32)
    tl.store(out_ptr + row * dim + d, gate / (1 + tl.exp(-gate)) * up, mask=d < dim)


def silu_product(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of (..., 2 * dim), gate in the first half -> (..., dim)."""
    gate_up = gate_up.contiguous()
    dim = gate_up.shape[-1] // 2
    out = gate_up.new_empty((*gate_up.shape[:-1], dim))
    block = min(2048, triton.next_power_of_2(dim))
    _silu_product_kernel[(out.numel() // dim, triton.cdiv(dim, block))](
        gate_up, out, dim, BLOCK=block
    )
    return out


@triton.jit
def _rotate_kernel(
    x_ptr, cos_ptr, sin_ptr, rows, turns, width,
    HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    d = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (d < HALF)
    turn = (row % turns) * 2 * HALF + d
    cos1 = tl.load(cos_ptr + turn, mask=inside).to(tl.float32)
    cos2 = tl.load(cos_ptr + turn + HALF, mask=inside).to(tl.float32)
    sin1 = tl.load(sin_ptr + turn, mask=inside).to(tl.float32)
    sin2 = tl.load(sin_ptr + turn + HALF, mask=inside).to(tl.float32)
    for head in range(HEADS):
        place = x_ptr + row * width + head * 2 * HALF + d
        x1 = tl.load(place, mask=inside).to(tl.float32)
        x2 = tl.load(place + HALF, mask=inside).to(tl.float32)
        tl.store(place, x1 * cos1 - x2 * sin1, mask=inside)
        tl.store(place + HALF, x2 * cos2 + x1 * sin2, mask=inside)


def rotate_(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Rotate the first `heads` heads of each row by halves, in place: x * cos + (-x2, x1) * sin.

    Args:
        x: (batch, length, width), contiguous; heads lie side by side in a row.
        cos, sin: (1 or batch, length, head_dim).
    """
    batch, length, width = x.shape
    dim, rows = cos.shape[-1], batch * length
    block = triton.next_power_of_2(dim // 2)
    at_once = max(1, 1024 // block)
    _rotate_kernel[(triton.cdiv(rows, at_once),)](
        x, cos.contiguous(), sin.contiguous(), rows, length * cos.shape[0], width,
        HEADS=heads, HALF=dim // 2, ROWS=at_once, BLOCK=block,
    )  # fmt: skip


@triton.jit
def _cross_entropy_kernel(logits_ptr, targets_ptr, loss_ptr, vocabulary, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocabulary
    m = tl.full((BLOCK,), float("-inf"), tl.float32)
    s = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        v = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + v, mask=v < vocabulary, other=float("-inf")).to(tl.float32)
        raised = tl.maximum(m, x)  # finite from the first block on, where v < vocabulary
        s = tl.where(raised == float("-inf"), 0.0, s * tl.exp(m - raised) + tl.exp(x - raised))
        m = raised
    top = tl.max(m, axis=0)
    total = tl.sum(s * tl.exp(m - top), axis=0)
    target = tl.load(logits_ptr + tl.load(targets_ptr + row)).to(tl.float32)
    tl.store(loss_ptr + row, tl.log(total) + top - target)


def cross_entropy(logits_rv: Tensor, targets_r: Tensor) -> Tensor:
    """-log softmax at each row's target, (rows,) float32, in one read of the logits."""
    logits_rv = logits_rv.contiguous()
    rows, vocabulary = logits_rv.shape
    loss_r = torch.empty(rows, dtype=torch.float32, device=logits_rv.device)
    _cross_entropy_kernel[(rows,)](
        logits_rv, targets_r.contiguous(), loss_r, vocabulary,
        BLOCK=min(4096, triton.next_power_of_2(vocabulary)), num_warps=8,
    )  # fmt: skip
    return loss_r
