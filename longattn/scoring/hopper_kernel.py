"""The block sums of triton_kernel.py for Hopper GPUs, in Gluon, for one distance and every row.

One block of 256 rows a multiprocessor at a time. A producer warp brings tiles of 128 keys through a
ring in shared memory, and four warpgroups of 64 rows each multiply and exponentiate them, each at
its own pace: while some wait for the tensor cores, the others keep the special function units busy.
Float32 comes in two parts of float16 (SPLIT), and three products make one, see triton_kernel.py.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

PART = 64
"""Rows of one warpgroup, and of one entry of the result."""
PARTS = gl.constexpr(4)
# Triton 3.6 has the first name, 3.9 the second.
_copy = tma.async_copy_global_to_shared if not hasattr(tma, "async_load") else tma.async_load


@gluon.jit
def _item(i, heads, kv_heads, blocks):
    """Blocks that run together share the keys of one kv head in L2; long rows come first."""
    group = heads // kv_heads
    batch = i // (blocks * heads)
    kv_head = i // (blocks * group) % kv_heads
    block = blocks - 1 - (i // group) % blocks
    return batch * heads + kv_head * group + i % group, batch * kv_heads + kv_head, block


@gluon.jit
def _tile_count(block, length, min_distance, BM: gl.constexpr, BN: gl.constexpr):
    return gl.cdiv(gl.minimum(min_distance + (block + 1) * BM, length), BN)


@gluon.jit
def _produce(
    q_desc, k_desc, q_buf, k_buf, q_full, q_empty, full, empty,
    items, heads, kv_heads, blocks, rows, length, min_distance,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    batch = items // (heads * blocks)
    j = 0
    q_phase = 0
    for i in range(gl.program_id(0), items, gl.num_programs(0)):
        head, kv_head, block = _item(i, heads, kv_heads, blocks)
        mbarrier.wait(q_empty, q_phase ^ 1)
        q_phase ^= 1
        mbarrier.expect(q_full, q_desc.block_type.nbytes * PARTS * (SPLIT + 1))
        for part in gl.static_range(PARTS):
            row = head * rows + block * BM + part * (BM // PARTS)
            _copy(q_desc, [row, 0], q_full, q_buf.index(part))
            if SPLIT:
                _copy(q_desc, [batch * heads * rows + row, 0], q_full, q_buf.index(PARTS + part))
        for t in range(_tile_count(block, length, min_distance, BM, BN)):
            stage = j % STAGES
            mbarrier.wait(empty.index(stage), (j // STAGES & 1) ^ 1)
            mbarrier.expect(full.index(stage), k_desc.block_type.nbytes * (SPLIT + 1))
            key = kv_head * length + t * BN
            _copy(k_desc, [key, 0], full.index(stage), k_buf.index(stage))
            if SPLIT:
                key += batch * kv_heads * length
                _copy(k_desc, [key, 0], full.index(stage), k_buf.index(STAGES + stage))
            j += 1


@gluon.jit
def _scores(q, q_low, k_buf, full, empty, j, zero, STAGES: gl.constexpr, SPLIT: gl.constexpr):
    stage = j % STAGES
    mbarrier.wait(full.index(stage), j // STAGES & 1)
    k = k_buf.index(stage).permute((1, 0))
    if SPLIT:
        k_low = k_buf.index(STAGES + stage).permute((1, 0))
        s = warpgroup_mma(q_low, k, zero, use_acc=False, is_async=True)
        s = warpgroup_mma(q, k_low, s, use_acc=True, is_async=True)
        s = warpgroup_mma(q, k, s, use_acc=True, is_async=True)
    else:
        s = warpgroup_mma(q, k, zero, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(num_outstanding=0, deps=(s,))
    mbarrier.arrive(empty.index(stage), count=1)
    return s


@gluon.jit
def _fold(p):
    """Row sums left in 8 columns, so that adding a tile moves nothing between threads."""
    return gl.sum(gl.reshape(p, (p.shape[0], p.shape[1] // 8, 8)), axis=1)


@gluon.jit
def _exp2(s, m, UNIT: gl.constexpr):
    if UNIT:
        return gl.exp2(s)
    else:
        return gl.exp2(s - m[:, None])


@gluon.jit
def _masked(s, m, columns, row, far_row, UNIT: gl.constexpr):
    p = gl.where(columns[None, :] <= row[:, None], _exp2(s, m, UNIT), 0.0)
    far = gl.where(columns[None, :] <= far_row[:, None], p, 0.0)
    return _fold(far), _fold(far * far), _fold(p - far)


@gluon.jit
def _tiles(
    start, stop, a, b, near, m, row, far_row, columns, q, q_low, k_buf, full, empty, j, zero,
    FAR: gl.constexpr, MASKED: gl.constexpr, STAGES: gl.constexpr, UNIT: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    """Add the tiles [start, stop). Not MASKED: all are far (FAR) or all are near (not FAR)."""
    for t in range(start, stop):
        s = _scores(q, q_low, k_buf, full, empty, j + t, zero, STAGES, SPLIT)
        if MASKED:
            da, db, dn = _masked(s, m, columns + t * s.shape[1], row, far_row, UNIT)
            a += da
            b += db
            near += dn
        elif FAR:
            p = _exp2(s, m, UNIT)
            a += _fold(p)
            b += _fold(p * p)
        else:
            near += _fold(_exp2(s, m, UNIT))
    return a, b, near


@gluon.jit
def _consume(
    part, q_buf, k_buf, q_full, q_empty, full, empty, partial_ptr,
    items, heads, kv_heads, blocks, length, min_distance, headroom, least,
    BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, UNIT: gl.constexpr, SPLIT: gl.constexpr,
):  # fmt: skip
    rows: gl.constexpr = BM // PARTS
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BN, 16]
    )
    zero = gl.zeros((rows, BN), gl.float32, layout)
    columns = gl.arange(0, BN, layout=gl.SliceLayout(0, layout))
    q = q_buf.index(part)
    q_low = q
    if SPLIT:
        q_low = q_buf.index(part + PARTS)
    j = 0
    q_phase = 0
    for i in range(gl.program_id(0), items, gl.num_programs(0)):
        head, kv_head, block = _item(i, heads, kv_heads, blocks)
        tiles = _tile_count(block, length, min_distance, BM, BN)
        first = block * BM + part * rows
        far_row = first + gl.arange(0, rows, layout=gl.SliceLayout(1, layout))
        row = far_row + min_distance
        some_near = gl.minimum(tiles, gl.cdiv(min_distance + first + rows, BN))
        # Rows past the end have more far columns than there are tiles: none waits for one.
        all_far = gl.minimum(gl.maximum(first // BN, 1), some_near)
        some_far = gl.minimum(gl.cdiv(first + rows, BN), some_near)
        all_near = gl.maximum(some_far, (min_distance + first + 1) // BN)
        all_near = gl.minimum(all_near, some_near)

        mbarrier.wait(q_full, q_phase)
        q_phase ^= 1
        s = _scores(q, q_low, k_buf, full, empty, j, zero, STAGES, SPLIT)
        if UNIT:
            m = gl.zeros((rows,), gl.float32, gl.SliceLayout(1, layout))
        else:
            seen = gl.where(columns[None, :] <= row[:, None], s, float("-inf"))
            m = gl.max(seen, axis=1) + headroom
        a, b, near = _masked(s, m, columns, row, far_row, UNIT)
        a, b, near = _tiles(1, all_far, a, b, near, m, row, far_row, columns, q, q_low, k_buf,
                            full, empty, j, zero, True, False, STAGES, UNIT, SPLIT)  # fmt: skip
        a, b, near = _tiles(all_far, some_far, a, b, near, m, row, far_row, columns, q, q_low, k_buf,
                            full, empty, j, zero, True, True, STAGES, UNIT, SPLIT)  # fmt: skip
        a, b, near = _tiles(some_far, all_near, a, b, near, m, row, far_row, columns, q, q_low, k_buf,
                            full, empty, j, zero, False, False, STAGES, UNIT, SPLIT)  # fmt: skip
        a, b, near = _tiles(all_near, some_near, a, b, near, m, row, far_row, columns, q, q_low, k_buf,
                            full, empty, j, zero, False, True, STAGES, UNIT, SPLIT)  # fmt: skip
        mbarrier.arrive(q_empty, count=1)
        for t in range(some_near, tiles):  # keys that only the later rows of the block need
            mbarrier.wait(full.index((j + t) % STAGES), (j + t) // STAGES & 1)
            mbarrier.arrive(empty.index((j + t) % STAGES), count=1)
        j += tiles

        a_row = gl.sum(a, axis=1)
        b_row = gl.sum(b, axis=1)
        l = gl.sum(a + near, axis=1)
        valid = first + min_distance + gl.arange(0, rows, layout=l.type.layout) < length
        kept = (l > least) & (l < float("inf")) & (b_row < float("inf"))
        s1 = gl.where(valid, gl.where(kept, a_row / l, float("nan")), 0.0)
        s2 = gl.where(valid, b_row / l / l, 0.0)
        out = partial_ptr + (head * blocks + block) * PARTS + part
        gl.store(out, gl.sum(s1, axis=0))
        gl.store(out + items * PARTS, gl.sum(s2, axis=0))


# One compilation, some 6 s, whatever the sizes: else there is one for each that 16 divides, or is 1.
@gluon.jit(
    do_not_specialize=["items", "heads", "kv_heads", "blocks", "rows", "length", "min_distance"]
)
def _kernel(
    q_desc, k_desc, partial_ptr,
    items, heads, kv_heads, blocks, rows, length, min_distance, headroom, least,
    BM: gl.constexpr, BN: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, UNIT: gl.constexpr,
    SPLIT: gl.constexpr,
):  # fmt: skip
    held: gl.constexpr = SPLIT + 1  # high parts lie before low parts
    q_buf = gl.allocate_shared_memory(q_desc.dtype, [PARTS * held, BM // PARTS, D], q_desc.layout)
    k_buf = gl.allocate_shared_memory(k_desc.dtype, [STAGES * held, BN, D], k_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=PARTS)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=PARTS)
    fence_async_shared()
    # fmt: off
    gl.warp_specialize([
        (_consume, (0, q_buf, k_buf, q_full, q_empty, full, empty, partial_ptr, items, heads, kv_heads, blocks, length, min_distance, headroom, least, BM, BN, STAGES, UNIT, SPLIT)),
        (_consume, (1, q_buf, k_buf, q_full, q_empty, full, empty, partial_ptr, items, heads, kv_heads, blocks, length, min_distance, headroom, least, BM, BN, STAGES, UNIT, SPLIT)),
        (_consume, (2, q_buf, k_buf, q_full, q_empty, full, empty, partial_ptr, items, heads, kv_heads, blocks, length, min_distance, headroom, least, BM, BN, STAGES, UNIT, SPLIT)),
        (_consume, (3, q_buf, k_buf, q_full, q_empty, full, empty, partial_ptr, items, heads, kv_heads, blocks, length, min_distance, headroom, least, BM, BN, STAGES, UNIT, SPLIT)),
        (_produce, (q_desc, k_desc, q_buf, k_buf, q_full, q_empty, full, empty, items, heads, kv_heads, blocks, rows, length, min_distance, BM, BN, STAGES, SPLIT)),
    ], [4, 4, 4, 1], [120, 120, 120, 24])
    # fmt: on


def supports(q_bhrd: Tensor) -> bool:
    """Whether these queries are for this kernel: bfloat16 or float16, head_dim to 128, Hopper."""
    return (
        q_bhrd.dtype in (torch.bfloat16, torch.float16)
        and q_bhrd.shape[-1] <= 128
        and torch.cuda.get_device_capability(q_bhrd.device)[0] == 9
    )


def partial_sums(
    q_bhrd: Tensor, k_bgld: Tensor, held: int, min_distance: int, headroom: float | None, least: float
) -> Tensor:  # fmt: skip
    """(2, batch, heads, parts) float32: S1 and S2 of 64 rows each, NaN in S1 as in `_sums_kernel`.

    held: 2 for values in two parts, all high ones before all low ones in the batch; else 1.
    headroom: added to the reference that is subtracted; None: none is.
    """
    batch, heads, scored, dim = q_bhrd.shape
    batch //= held
    kv_heads, length = k_bgld.shape[1:3]
    parts = PARTS.value
    width = max(16, triton.next_power_of_2(dim))
    # 224 KiB of shared memory at head_dim 128: in two parts, tiles of half as many keys, three ahead.
    columns, stages = (64, 3) if held == 2 and width > 64 else (128, 4)
    blocks = triton.cdiv(scored, PART * parts)
    items = batch * heads * blocks
    partial = torch.empty(
        (2, batch, heads, blocks * parts), dtype=torch.float32, device=q_bhrd.device
    )
    dtype = gl.bfloat16 if q_bhrd.dtype == torch.bfloat16 else gl.float16

    def rows_of(x: Tensor, rows: int) -> TensorDescriptor:
        layout = gl.NVMMASharedLayout.get_default_for([rows, width], dtype)
        return TensorDescriptor.from_tensor(x.reshape(-1, dim), [rows, width], layout)

    processors = torch.cuda.get_device_properties(q_bhrd.device).multi_processor_count
    _kernel[(min(processors, items),)](
        rows_of(q_bhrd, PART), rows_of(k_bgld, columns), partial,
        items, heads, kv_heads, blocks, scored, length, min_distance, headroom or 0.0, least,
        BM=PART * parts, BN=columns, D=width, STAGES=stages, UNIT=headroom is None, SPLIT=held == 2,
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return partial
