"""Fused attention statistics for NVIDIA GPUs: one pass over Q K^T, no L x L matrix, no V.

For one head and row n, with s = scaling * q_n . k_i and the minimum distance k:

    l = sum over i <= n of exp(s), a = sum over i <= n - k of exp(s), b = the same of exp(2 s)

and the kernel returns S1 = sum over rows n >= k of a / l and S2 = sum of b / l^2. Each row keeps
one reference m, the largest score of its first tile: exp(s - m) needs no running maximum. A block
with a row whose scores leave the range of that reference is done again with a running maximum.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

HEADROOM = tl.constexpr(30.0)
"""Powers of two added to m: exp(2 (s - m)) then overflows only from 64 nats above the first tile."""
LEAST = tl.constexpr(2.0**-40)
"""A row whose l is below has lost small terms, if it is without a reference."""


@triton.jit
def _fold(p, BM: tl.constexpr, BN: tl.constexpr):
    """Row sums left in 8 columns, so that adding a tile moves nothing between threads."""
    return tl.sum(tl.reshape(p, (BM, BN // 8, 8)), axis=1)


@triton.jit
def _tile(
    q, k_desc, batch, kv_head, column, scale_log2, row, far_row, m, a, b, near,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    MODE: tl.constexpr, FIRST: tl.constexpr, FAR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the columns from `column` on. Not MASKED: all are far (FAR) or all are near (not FAR)."""
    k = k_desc.load([batch, kv_head, column, 0]).reshape(BN, D)
    s = tl.dot(q, k.T, input_precision=PRECISION)
    if MASKED:
        columns = column + tl.arange(0, BN)
        s = tl.where(columns[None, :] <= row[:, None], s, float("-inf"))
    if MODE != "unit":
        if FIRST:
            m = tl.max(s, axis=1) * scale_log2 + HEADROOM
        elif MODE == "running":
            raised = tl.maximum(m, tl.max(s, axis=1) * scale_log2 + HEADROOM)
            shrink = tl.exp2(m - raised)[:, None]
            a, b, near, m = a * shrink, b * (shrink * shrink), near * shrink, raised
        s = s * scale_log2 - m[:, None]
    p = tl.exp2(s)
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
def _block(
    pid, q_desc, k_desc, partial_ptr, items, heads, kv_heads, length, min_distance, scale_log2, blocks,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """One head's rows [min_distance + block * BM, ... + BM) -> its parts of S1 and S2.

    MODE says what keeps exp in range: "first", each row's largest score of its first tile; "unit",
    nothing (scale_log2 is 1, and a fifth of the arithmetic less); "running", a running maximum.
    """
    # Programs that run together share the keys of one kv head in L2; long rows come first.
    group = heads // kv_heads
    block = blocks - 1 - (pid // group) % blocks
    batch = pid // (blocks * heads)
    kv_head = pid // (blocks * group) % kv_heads
    head = kv_head * group + pid % group
    s1_ptr = partial_ptr + (batch * heads + head) * blocks + block
    lost = True
    if MODE == "running":
        part = tl.load(s1_ptr)
        lost = part != part  # NaN marks a block of which a row left its range
    if lost:
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
                              BM, BN, D, PRECISION, MODE, True, True, True)  # fmt: skip
        for j in tl.range(1, all_far, num_stages=STAGES):
            m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, True, False)  # fmt: skip
        for j in tl.range(tl.maximum(1, all_far), some_far, num_stages=1):
            m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, True, True)  # fmt: skip
        for j in tl.range(some_far, all_near, num_stages=STAGES):
            m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, False, False)  # fmt: skip
        for j in tl.range(all_near, some_near, num_stages=1):
            m, a, b, near = _tile(q, k_desc, batch, kv_head, j * BN, scale_log2, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, False, True)  # fmt: skip

        l_row = tl.sum(a + near, axis=1)
        b_row = tl.sum(b, axis=1)
        kept = (l_row > LEAST) & (l_row < float("inf")) & (b_row < float("inf"))
        s1 = tl.where(kept, tl.sum(a, axis=1) / l_row, float("nan"))
        s2 = b_row / l_row / l_row
        tl.store(s1_ptr, tl.sum(tl.where(row < length, s1, 0.0)))
        tl.store(s1_ptr + items, tl.sum(tl.where(row < length, s2, 0.0)))


@triton.jit
def _sums_kernel(
    q_desc, k_desc, partial_ptr, items, heads, kv_heads, length, min_distance, scale_log2, blocks,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """All blocks, a program each; or, in "running" mode, few programs that look for lost ones."""
    if MODE == "running":
        for pid in range(tl.program_id(0), items, tl.num_programs(0)):
            _block(pid, q_desc, k_desc, partial_ptr, items, heads, kv_heads, length, min_distance, scale_log2, blocks,
                   BM, BN, D, PRECISION, STAGES, MODE)  # fmt: skip
    else:
        _block(tl.program_id(0), q_desc, k_desc, partial_ptr, items, heads, kv_heads, length, min_distance, scale_log2, blocks,
               BM, BN, D, PRECISION, STAGES, MODE)  # fmt: skip


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


@triton.jit
def _gather_rotate_kernel(
    table_ptr, ids_ptr, cos_ptr, sin_ptr, out_ptr, length, heads,
    DIM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """TOKENS positions of one window, HEADS of its heads."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    batch = tl.program_id(2).to(tl.int64)
    d = tl.arange(0, HALF)
    inside = (token[:, None] < length) & (d[None, :] < DIM // 2)
    turn = token[:, None] * DIM + d[None, :]
    cos1 = tl.load(cos_ptr + turn, mask=inside)
    sin1 = tl.load(sin_ptr + turn, mask=inside)
    cos2 = tl.load(cos_ptr + turn + DIM // 2, mask=inside)
    sin2 = tl.load(sin_ptr + turn + DIM // 2, mask=inside)
    ids = tl.load(ids_ptr + batch * length + token, mask=token < length, other=0).to(tl.int64)
    for head in range(tl.program_id(1) * HEADS, min((tl.program_id(1) + 1) * HEADS, heads)):
        read = table_ptr + (ids * heads + head)[:, None] * DIM + d[None, :]
        x1 = tl.load(read, mask=inside).to(tl.float32)
        x2 = tl.load(read + DIM // 2, mask=inside).to(tl.float32)
        write = out_ptr + ((batch * heads + head) * length + token[:, None]) * DIM + d[None, :]
        tl.store(write, x1 * cos1 - x2 * sin1, mask=inside)
        tl.store(write + DIM // 2, x2 * cos2 + x1 * sin2, mask=inside)


def gather_rotate(table_vhd: Tensor, ids_bl: Tensor, cos_ld: Tensor, sin_ld: Tensor) -> Tensor:
    """Queries or keys of a window's tokens, rotated in float32: one read of the rows, one write.

    Computes x * cos + rotate_half(x) * sin, the rotation of Llama, Mistral, Qwen and most others.

    Args:
        table_vhd: (vocabulary, heads, head_dim), contiguous.
        ids_bl: (batch, length) integer ids, all below the vocabulary's size.
        cos_ld, sin_ld: (length, head_dim) float32.

    Returns:
        (batch, heads, length, head_dim), contiguous, in the table's dtype.
    """
    heads, dim = table_vhd.shape[1:]
    batch, length = ids_bl.shape
    if cos_ld.shape != (length, dim) or sin_ld.shape != (length, dim):
        raise ValueError(
            f"cos {tuple(cos_ld.shape)}, sin {tuple(sin_ld.shape)}: both {length, dim}"
        )
    out = torch.empty((batch, heads, length, dim), dtype=table_vhd.dtype, device=table_vhd.device)
    grid = (triton.cdiv(length, 16), triton.cdiv(heads, 8), batch)
    _gather_rotate_kernel[grid](
        table_vhd.contiguous(), ids_bl.contiguous(), cos_ld.contiguous(), sin_ld.contiguous(), out,
        length, heads, DIM=dim, HALF=triton.next_power_of_2(dim // 2), TOKENS=16, HEADS=8,
    )  # fmt: skip
    return out


def _hopper_kernel(q_bhld: Tensor) -> ModuleType | None:
    """The Gluon kernel where it can run. Gluon's names still change: 3.6 to 3.9 were compiled."""
    version = tuple(int(x) for x in triton.__version__.split(".")[:2])
    if not (q_bhld.is_cuda and (3, 6) <= version <= (3, 9)):
        return None
    from longattn.scoring import hopper_kernel

    return hopper_kernel if hopper_kernel.supports(q_bhld) else None


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
        scaling: factor of q . k, usually head_dim ** -0.5. With queries that already carry
            head_dim ** -0.5 * log2(e), as `gather_rotate` can give them, it is ln 2, and that is
            the fastest: no multiplication and no reference is left. Rows whose scores then leave
            about -28 to 41 nats are done again, exactly.

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

    scale_log2 = scaling * math.log2(math.e)
    unit = math.isclose(scale_log2, 1.0, rel_tol=1e-6)
    total = torch.zeros((2, batch, heads), dtype=torch.float64, device=q_bhld.device)
    if min_distance == length:
        return total[0], total[1]
    q_bhld, k_bgld = q_bhld.contiguous(), k_bgld.contiguous()
    config = _tiles(dim, q_bhld.dtype)
    precision = "ieee" if q_bhld.dtype == torch.float32 else "tf32"
    width = max(16, triton.next_power_of_2(dim))

    def launch(partial: Tensor, mode: str, programs: int, **config: int) -> None:
        rows, columns, items = config["BM"], config["BN"], partial[0].numel()
        _sums_kernel[(min(items, programs),)](
            TensorDescriptor.from_tensor(q_bhld, [1, 1, rows, width]),
            TensorDescriptor.from_tensor(k_bgld, [1, 1, columns, width]),
            partial, items, heads, kv_heads, length, min_distance, scale_log2, partial.shape[-1],
            D=width, PRECISION=precision, MODE=mode, enable_fp_fusion=True, **config,
        )  # fmt: skip

    hopper = _hopper_kernel(q_bhld)
    if hopper is not None:
        partial = hopper.partial_sums(
            q_bhld, k_bgld, min_distance, scale_log2, unit, HEADROOM.value, LEAST.value
        )
        config["BM"] = hopper.PART
    else:
        blocks = triton.cdiv(length - min_distance, config["BM"])
        partial = torch.empty((2, batch, heads, blocks), device=q_bhld.device)
        launch(partial, "unit" if unit else "first", partial[0].numel(), **config)
    launch(partial, "running", 512, **config)
    _total_kernel[(2 * batch * heads,)](partial, total, partial.shape[-1], CHUNK=256)
    return total[0], total[1]
