"""Fused attention statistics for NVIDIA GPUs: one pass over Q K^T, no L x L matrix, no V.

For one head and row n, with s = scaling * q_n . k_i and the minimum distance k:

    l = sum over i <= n of exp(s), a = sum over i <= n - k of exp(s), b = the same of exp(2 s)

and the kernel returns S1 = sum over rows n >= k of a / l and S2 = sum of b / l^2. Each row keeps
one reference m, the largest score of its first tile: exp(s - m) needs no running maximum. A block
with a row whose scores leave the range of that reference is done again with a running maximum.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

HEADROOM = tl.constexpr(30.0)
"""Powers of two added to m: exp(2 (s - m)) then overflows only from 64 nats above the first tile."""


@triton.jit
def _fold(p, BM: tl.constexpr, BN: tl.constexpr):
    """Row sums left in 8 columns, so that adding a tile moves nothing between threads."""
    return tl.sum(tl.reshape(p, (BM, BN // 8, 8)), axis=1)


@triton.jit
def _tile(
    q, k_desc, batch, kv_head, column, scale_log2, row, far_row, m, a, b, near,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    FIRST: tl.constexpr, FAR: tl.constexpr, MASKED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add the columns from `column` on. Not MASKED: all are far (FAR) or all are near (not FAR)."""
    k = k_desc.load([batch, kv_head, column, 0]).reshape(BN, D)
    s = tl.dot(q, k.T, input_precision=PRECISION)
    if MASKED:
        columns = column + tl.arange(0, BN)
        s = tl.where(columns[None, :] <= row[:, None], s, float("-inf"))
    if FIRST:
        m = tl.max(s, axis=1) * scale_log2 + HEADROOM
    elif EXACT:
        raised = tl.maximum(m, tl.max(s, axis=1) * scale_log2 + HEADROOM)
        shrink = tl.exp2(m - raised)[:, None]
        a, b, near, m = a * shrink, b * (shrink * shrink), near * shrink, raised
    p = tl.exp2(s * scale_log2 - m[:, None])
    if FAR:
        far = tl.where(columns[None, :] <= far_row[:, None], p, 0.0) if MASKED else p
        a += _fold(far, BM, BN)
        b += _fold(far * far, BM, BN)
        if MASKED:
            near += _fold(p - far, BM, BN)
    else:
        near += _fold(p, BM, BN)
    return m, a, b, near


@triton.jit
def _sums_kernel(
    q_desc, k_desc, partial_ptr, heads, kv_heads, length, min_distance, scale_log2, blocks,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One head's rows [min_distance + block * BM, ... + BM) -> its parts of S1 and S2."""
    # Programs that run together share the keys of one kv head in L2; long rows come first.
    group = heads // kv_heads
    pid = tl.program_id(0)
    block = blocks - 1 - (pid // group) % blocks
    batch = pid // (blocks * heads)
    kv_head = pid // (blocks * group) % kv_heads
    head = kv_head * group + pid % group
    s1_ptr = partial_ptr + (batch * heads + head) * blocks + block
    s2_ptr = s1_ptr + tl.num_programs(0)
    if EXACT:
        part = tl.load(s1_ptr)
        if part == part:  # NaN marks a block that left the range of its references
            return

    far_row = block * BM + tl.arange(0, BM)  # the last far column of each row
    row = min_distance + far_row
    q = q_desc.load([batch, head, min_distance + block * BM, 0]).reshape(BM, D)
    m = tl.zeros((BM,), tl.float32)
    a = tl.zeros((BM, 8), tl.float32)
    b = tl.zeros((BM, 8), tl.float32)
    near = tl.zeros((BM, 8), tl.float32)

    all_far = block * BM // BN
    some_far = tl.cdiv((block + 1) * BM, BN)
    all_near = tl.maximum(some_far, (min_distance + block * BM + 1) // BN)
    some_near = tl.cdiv(tl.minimum(min_distance + (block + 1) * BM, length), BN)
    m, a, b, near = _tile(q, k_desc, batch, kv_head, 0, scale_log2, row, far_row, m, a, b, near,
                          BM, BN, D, PRECISION, True, True, True, EXACT)  # fmt: skip
    for j in tl.range(1, all_far, num_stages=STAGES):
        m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                              BM, BN, D, PRECISION, False, True, False, EXACT)  # fmt: skip
    for j in tl.range(tl.maximum(1, all_far), some_far, num_stages=1):
        m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                              BM, BN, D, PRECISION, False, True, True, EXACT)  # fmt: skip
    for j in tl.range(some_far, all_near, num_stages=STAGES):
        m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                              BM, BN, D, PRECISION, False, False, False, EXACT)  # fmt: skip
    for j in tl.range(all_near, some_near, num_stages=1):
        m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                              BM, BN, D, PRECISION, False, False, True, EXACT)  # fmt: skip

    l = tl.sum(a + near, axis=1)
    b_row = tl.sum(b, axis=1)
    valid = row < length
    lost = valid & ~((l < float("inf")) & (b_row < float("inf")))
    s1 = tl.sum(tl.where(valid, tl.sum(a, axis=1) / l, 0.0))
    s2 = tl.sum(tl.where(valid, b_row / l / l, 0.0))
    tl.store(s1_ptr, tl.where(tl.sum(lost.to(tl.int32)) > 0, float("nan"), s1))
    tl.store(s2_ptr, s2)


@triton.jit
def _total_kernel(partial_ptr, total_ptr, blocks, CHUNK: tl.constexpr):
    """Sum each row of (2 * batch * heads, blocks) float32 in one fixed order, in float64."""
    pid = tl.program_id(0)
    total = tl.zeros((CHUNK,), tl.float64)
    for start in range(0, blocks, CHUNK):
        i = start + tl.arange(0, CHUNK)
        part = tl.load(partial_ptr + pid.to(tl.int64) * blocks + i, mask=i < blocks, other=0.0)
        total += part.to(tl.float64)
    tl.store(total_ptr + pid, tl.sum(total))


def _tiles(dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Measured on one NVIDIA H200 (EXPERIMENTS.md); float32 products use no tensor cores."""
    if dtype == torch.float32:
        return dict(BM=32, BN=32, STAGES=1, num_warps=4)
    if dim > 128:
        return dict(BM=128, BN=64, STAGES=2, num_warps=8)
    return dict(BM=128, BN=128, STAGES=2, num_warps=4)


def attention_sums(
    q_bhld: Tensor, k_bgld: Tensor, min_distance: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """The sums S1 = sum a / l and S2 = sum b / l^2 behind DS and V, for every window and head.

    The same window gives the same bits whatever its batch mates: no atomics, one order of addition.

    Args:
        q_bhld: rotated queries (batch, heads, length, head_dim), bfloat16, float16 or float32 on
            a CUDA device. float32 products are exact ones (no TF32), and slow.
        k_bgld: rotated keys (batch, kv_heads, length, head_dim), the same dtype and device.
        min_distance: k, in tokens, 1 to length.
        scaling: factor of q . k, usually head_dim ** -0.5.

    Returns:
        s1, s2: float64 (batch, heads).

    Raises:
        ValueError: shapes, dtypes or min_distance that do not fit together.
    """
    batch, heads, length, dim = q_bhld.shape
    kv_heads = k_bgld.shape[1]
    if k_bgld.shape != (batch, kv_heads, length, dim) or heads % kv_heads:
        raise ValueError(f"keys {tuple(k_bgld.shape)} do not fit queries {tuple(q_bhld.shape)}")
    if q_bhld.dtype != k_bgld.dtype or q_bhld.dtype not in (
        torch.bfloat16,
        torch.float16,
        torch.float32,
    ):
        raise ValueError(
            f"dtypes {q_bhld.dtype}, {k_bgld.dtype}: both bfloat16, float16 or float32"
        )
    if not 1 <= min_distance <= length:
        raise ValueError(f"min_distance {min_distance}: 1 to the length {length}")

    config = _tiles(dim, q_bhld.dtype)
    rows, columns = config["BM"], config["BN"]
    width = max(16, triton.next_power_of_2(dim))
    blocks = triton.cdiv(length - min_distance, rows)
    partial = torch.empty((2, batch, heads, blocks), dtype=torch.float32, device=q_bhld.device)
    total = torch.zeros((2, batch, heads), dtype=torch.float64, device=q_bhld.device)
    if not blocks:
        return total[0], total[1]
    q_desc = TensorDescriptor.from_tensor(q_bhld.contiguous(), [1, 1, rows, width])
    k_desc = TensorDescriptor.from_tensor(k_bgld.contiguous(), [1, 1, columns, width])
    precision = "ieee" if q_bhld.dtype == torch.float32 else "tf32"
    for exact in (False, True):
        _sums_kernel[(batch * heads * blocks,)](
            q_desc, k_desc, partial, heads, kv_heads, length, min_distance, scaling * math.log2(math.e),
            blocks, D=width, PRECISION=precision, EXACT=exact, **config,
        )  # fmt: skip
    _total_kernel[(2 * batch * heads,)](partial, total, blocks, CHUNK=256)
    return total[0], total[1]
