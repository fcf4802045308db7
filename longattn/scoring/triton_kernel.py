"""Fused attention statistics for NVIDIA GPUs: one pass over Q K^T, no L x L matrix, no V.

Queries carry scaling * log2(e). For one head, the row at position n and a distance k, with
s = q_n . k_i:

    l = sum over i <= n of 2^s, a = sum over i <= n - k of 2^s, b = the same of 2^(2 s)

and the kernel returns S1 = sum over rows n >= k of a / l and S2 = sum of b / l^2, for several k at
once: columns are added from the first on, so a and b of a larger k are those of a smaller one at an
earlier column. 2^s needs no running maximum while it stays in the range of float32. A block with a
row that leaves it is done again with a running maximum.

Products of float32 are made of float16 ones on tensor cores: x = high + low, both float16, holds 22
of its 24 bits, and q . k = high . high + low . high + high . low but for the product of the low parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

HEADROOM = tl.constexpr(30.0)
"""Powers of two added to a reference: 2^(2 (s - m)) overflows only from 64 nats above it."""
LEAST = tl.constexpr(2.0**-40)
"""A row whose l is below has lost small terms, if it is without a reference."""


@triton.jit
def _fold(p, BM: tl.constexpr, BN: tl.constexpr):
    """Row sums left in 8 columns, so that adding a tile moves nothing between threads."""
    return tl.sum(tl.reshape(p, (BM, BN // 8, 8)), axis=1)


@triton.jit
def _tile(
    q, q_low, k_desc, batch, low_batch, kv_head, column, row, far_row, m, a, b, near,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    MODE: tl.constexpr, FIRST: tl.constexpr, FAR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the columns from `column` on. Not MASKED: all are far (FAR) or all are near (not FAR)."""
    k = k_desc.load([batch, kv_head, column, 0]).reshape(BN, D)
    if PRECISION == "split":
        k_low = k_desc.load([low_batch, kv_head, column, 0]).reshape(BN, D)
        s = tl.dot(q_low, k.T)
        s = tl.dot(q, k_low.T, acc=s)
        s = tl.dot(q, k.T, acc=s)
    else:
        s = tl.dot(q, k.T, input_precision=PRECISION)
    if MASKED:
        columns = column + tl.arange(0, BN)
        s = tl.where(columns[None, :] <= row[:, None], s, float("-inf"))
    if MODE != "unit":
        if FIRST:
            m = tl.max(s, axis=1) + HEADROOM
        elif MODE == "running":
            raised = tl.maximum(m, tl.max(s, axis=1) + HEADROOM)
            shrink = tl.exp2(m - raised)[:, None]
            a, b, near, m = a * shrink, b * (shrink * shrink), near * shrink, raised
        s = s - m[:, None]
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
    pid, q_desc, k_desc, distances_ptr, first_ptr, partial_ptr,
    items, heads, kv_heads, length, min_distance, stride, blocks,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, MODE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """BM rows of one head, from row block * BM on -> their parts of S1 and S2 for M distances.

    MODE says what keeps 2^s in range: "unit", nothing; "first", each row's largest score of its
    first tile, subtracted; "running", a running maximum.
    """
    # Programs that run together share the keys of one kv head in L2; long rows come first.
    group = heads // kv_heads
    block = blocks - 1 - (pid // group) % blocks
    batch = pid // (blocks * heads)
    kv_head = pid // (blocks * group) % kv_heads
    head = kv_head * group + pid % group
    out = partial_ptr + (batch * heads + head) * blocks + block
    lost = True
    if MODE == "running":
        part = tl.load(out + (M - 1) * items)
        lost = part != part  # NaN marks a block of which a row left its range
    if lost:
        # The last far column, for the smallest distance: of the block's first row, its last, each.
        low = tl.load(first_ptr + batch) - min_distance + block * BM * stride
        high = low + (BM - 1) * stride
        far_row = low + tl.arange(0, BM) * stride
        row = min_distance + far_row
        q = q_desc.load([batch, head, block * BM, 0]).reshape(BM, D)
        low_batch = batch
        q_low = q
        if PRECISION == "split":
            low_batch += items // (blocks * heads)
            q_low = q_desc.load([low_batch, head, block * BM, 0]).reshape(BM, D)
        m = tl.zeros((BM,), tl.float32)
        a = tl.zeros((BM, 8), tl.float32)
        b = tl.zeros((BM, 8), tl.float32)
        near = tl.zeros((BM, 8), tl.float32)
        each = tl.arange(0, MP)[None, :]
        a_each = tl.zeros((BM, MP), tl.float32)
        b_each = tl.zeros((BM, MP), tl.float32)
        m_each = tl.zeros((BM, MP), tl.float32)

        some_near = tl.cdiv(tl.minimum(min_distance + high + 1, length), BN)
        all_far = tl.minimum((low + 1) // BN, some_near)
        some_far = tl.minimum(tl.cdiv(high + 1, BN), some_near)
        all_near = tl.minimum(tl.maximum(some_far, (min_distance + low + 1) // BN), some_near)
        m, a, b, near = _tile(q, q_low, k_desc, batch, low_batch, kv_head, 0, row, far_row, m, a, b, near,
                              BM, BN, D, PRECISION, MODE, True, True, True)  # fmt: skip
        begin = 1
        # For a larger distance: a and b so far, and the tiles in which its far columns end.
        for i in tl.static_range(M - 1):
            shift = tl.load(distances_ptr + i) - min_distance
            ends = tl.minimum(tl.maximum(low - shift + 1, 0) // BN, all_far)
            for j in tl.range(begin, ends, num_stages=STAGES):
                m, a, b, near = _tile(q, q_low, k_desc, batch, low_batch, kv_head, j * BN, row, far_row, m, a, b, near,
                                      BM, BN, D, PRECISION, MODE, False, True, False)  # fmt: skip
            begin = tl.maximum(begin, ends)
            # Without one tile that is wholly far, the first tile is counted anew.
            m_i, a_i, b_i, rest = m, tl.where(ends > 0, a, 0.0), tl.where(ends > 0, b, 0.0), near
            stop = tl.minimum(tl.cdiv(tl.maximum(high - shift + 1, 0), BN), some_near)
            for j in tl.range(ends, stop, num_stages=1):
                m_i, a_i, b_i, rest = _tile(q, q_low, k_desc, batch, low_batch, kv_head, j * BN, row, far_row - shift, m_i, a_i, b_i, rest,
                                            BM, BN, D, PRECISION, MODE, False, True, True)  # fmt: skip
            a_each = tl.where(each == i, tl.sum(a_i, axis=1)[:, None], a_each)
            b_each = tl.where(each == i, tl.sum(b_i, axis=1)[:, None], b_each)
            m_each = tl.where(each == i, m_i[:, None], m_each)

        for j in tl.range(begin, all_far, num_stages=STAGES):
            m, a, b, near = _tile(q, q_low, k_desc, batch, low_batch, kv_head, j * BN, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, True, False)  # fmt: skip
        for j in tl.range(tl.maximum(1, all_far), some_far, num_stages=1):
            m, a, b, near = _tile(q, q_low, k_desc, batch, low_batch, kv_head, j * BN, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, True, True)  # fmt: skip
        for j in tl.range(tl.maximum(1, some_far), all_near, num_stages=STAGES):
            m, a, b, near = _tile(q, q_low, k_desc, batch, low_batch, kv_head, j * BN, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, False, False)  # fmt: skip
        for j in tl.range(tl.maximum(1, all_near), some_near, num_stages=1):
            m, a, b, near = _tile(q, q_low, k_desc, batch, low_batch, kv_head, j * BN, row, far_row, m, a, b, near,
                                  BM, BN, D, PRECISION, MODE, False, False, True)  # fmt: skip

        l_row = tl.sum(a + near, axis=1)
        b_row = tl.sum(b, axis=1)
        kept = (l_row > LEAST) & (l_row < float("inf")) & (b_row < float("inf"))
        a_each = tl.where(each == M - 1, tl.sum(a, axis=1)[:, None], a_each)
        b_each = tl.where(each == M - 1, b_row[:, None], b_each)
        if MODE == "running" and M > 1:  # an earlier sum is relative to an earlier maximum
            shrunk = tl.exp2(tl.where(each == M - 1, 0.0, m_each - m[:, None]))
            a_each, b_each = a_each * shrunk, b_each * shrunk * shrunk
        s1 = tl.where(kept[:, None], a_each / l_row[:, None], float("nan"))
        s2 = b_each / l_row[:, None] / l_row[:, None]
        inside = (row < length)[:, None]
        where = out + tl.arange(0, MP) * items
        mask = tl.arange(0, MP) < M
        tl.store(where, tl.sum(tl.where(inside, s1, 0.0), axis=0), mask=mask)
        tl.store(where + M * items, tl.sum(tl.where(inside, s2, 0.0), axis=0), mask=mask)


# Compiled once, whatever the sizes: see hopper_kernel.py.
@triton.jit(
    do_not_specialize=["items", "heads", "kv_heads", "length", "min_distance", "stride", "blocks"]
)
def _sums_kernel(
    q_desc, k_desc, distances_ptr, first_ptr, partial_ptr,
    items, heads, kv_heads, length, min_distance, stride, blocks,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    STAGES: tl.constexpr, MODE: tl.constexpr, M: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """All blocks, a program each; or, in "running" mode, few programs that look for lost ones."""
    if MODE == "running":
        for pid in range(tl.program_id(0), items, tl.num_programs(0)):
            _block(pid, q_desc, k_desc, distances_ptr, first_ptr, partial_ptr, items, heads, kv_heads, length, min_distance, stride, blocks,
                   BM, BN, D, PRECISION, STAGES, MODE, M, MP)  # fmt: skip
    else:
        _block(tl.program_id(0), q_desc, k_desc, distances_ptr, first_ptr, partial_ptr, items, heads, kv_heads, length, min_distance, stride, blocks,
               BM, BN, D, PRECISION, STAGES, MODE, M, MP)  # fmt: skip


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


@triton.jit(do_not_specialize=["length", "heads", "rows", "stride"])
def _gather_rotate_kernel(
    table_ptr, ids_ptr, cos_ptr, sin_ptr, first_ptr, centre_ptr, shift_ptr, out_ptr,
    length, heads, rows, stride, low,
    DIM: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, HEADS: tl.constexpr,
    CENTRED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """TOKENS rows of one window, HEADS of its heads. The low parts lie `low` elements further."""
    batch = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    token = tl.minimum(tl.load(first_ptr + batch) + row * stride, length - 1)
    d = tl.arange(0, HALF)
    inside = (row[:, None] < rows) & (d[None, :] < DIM // 2)
    turn = token[:, None] * DIM + d[None, :]
    cos1 = tl.load(cos_ptr + turn, mask=inside)
    sin1 = tl.load(sin_ptr + turn, mask=inside)
    cos2 = tl.load(cos_ptr + turn + DIM // 2, mask=inside)
    sin2 = tl.load(sin_ptr + turn + DIM // 2, mask=inside)
    ids = tl.load(ids_ptr + batch * length + token, mask=row < rows, other=0).to(tl.int64)
    for head in range(tl.program_id(1) * HEADS, min((tl.program_id(1) + 1) * HEADS, heads)):
        read = table_ptr + (ids * heads + head)[:, None] * DIM + d[None, :]
        x1 = tl.load(read, mask=inside).to(tl.float32)
        x2 = tl.load(read + DIM // 2, mask=inside).to(tl.float32)
        if CENTRED:
            of_head = head * DIM + d
            x1 += tl.load(centre_ptr + of_head, mask=d < DIM // 2)[None, :]
            x2 += tl.load(centre_ptr + of_head + DIM // 2, mask=d < DIM // 2)[None, :]
        y1 = x1 * cos1 - x2 * sin1
        y2 = x2 * cos2 + x1 * sin2
        if CENTRED:
            y1 -= tl.load(shift_ptr + of_head, mask=d < DIM // 2)[None, :]
            y2 -= tl.load(shift_ptr + of_head + DIM // 2, mask=d < DIM // 2)[None, :]
        write = out_ptr + ((batch * heads + head) * rows + row[:, None]) * DIM + d[None, :]
        if SPLIT:
            high1, high2 = y1.to(tl.float16), y2.to(tl.float16)
            tl.store(write + low, y1 - high1.to(tl.float32), mask=inside)
            tl.store(write + low + DIM // 2, y2 - high2.to(tl.float32), mask=inside)
            tl.store(write, high1, mask=inside)
            tl.store(write + DIM // 2, high2, mask=inside)
        else:
            tl.store(write, y1, mask=inside)
            tl.store(write + DIM // 2, y2, mask=inside)


@dataclass(frozen=True)
class Turns:
    """How a table's rows are rotated, float32 on the device.

    Attributes:
        cos_ld, sin_ld: (length, head_dim), times any factor that the result shall carry.
        centre_gd: (heads, head_dim) added before the rotation, or None.
        shift_gd: (heads, head_dim) taken away after it.
    """

    cos_ld: Tensor
    sin_ld: Tensor
    centre_gd: Tensor | None = None
    shift_gd: Tensor | None = None


def gather_rotate(
    table_vhd: Tensor, ids_bl: Tensor, turns: Turns, first_b: Tensor, rows: int, stride: int = 1
) -> Tensor:  # fmt: skip
    """Queries or keys of a window's tokens, rotated in float32: one read of the rows, one write.

    Computes x * cos + rotate_half(x) * sin, the rotation of Llama, Mistral, Qwen and most others.

    Args:
        table_vhd: (vocabulary, heads, head_dim), contiguous.
        ids_bl: (batch, length) integer ids, all below the vocabulary's size.
        first_b: (batch,) int32, position of each window's first row.
        rows: rows of the result: the positions first, first + stride, ...; where they pass the end,
            the last token's.

    Returns:
        (batch, heads, rows, head_dim), contiguous, in the table's dtype; of a float32 table
        (2, batch, heads, rows, head_dim) float16, as `split` gives.
    """
    heads, dim = table_vhd.shape[1:]
    batch, length = ids_bl.shape
    cos_ld, sin_ld = turns.cos_ld.contiguous(), turns.sin_ld.contiguous()
    if cos_ld.shape != (length, dim) or sin_ld.shape != (length, dim):
        raise ValueError(
            f"cos {tuple(cos_ld.shape)}, sin {tuple(sin_ld.shape)}: both {length, dim}"
        )
    halved = table_vhd.dtype == torch.float32
    shape = (batch, heads, rows, dim)
    out = torch.empty(
        (2, *shape) if halved else shape,
        dtype=torch.float16 if halved else table_vhd.dtype,
        device=table_vhd.device,
    )
    centred = turns.centre_gd is not None
    centre, shift = (turns.centre_gd, turns.shift_gd) if centred else (cos_ld, cos_ld)
    grid = (triton.cdiv(rows, 16), triton.cdiv(heads, 8), batch)
    _gather_rotate_kernel[grid](
        table_vhd.contiguous(), ids_bl.contiguous(), cos_ld, sin_ld, first_b, centre, shift, out,
        length, heads, rows, stride, math.prod(shape),
        DIM=dim, HALF=triton.next_power_of_2(dim // 2), TOKENS=16, HEADS=8, CENTRED=centred, SPLIT=halved,
    )  # fmt: skip
    return out


def split(x: Tensor) -> Tensor:
    """High and low part of float32 values, (2, ...) float16: their sum holds 22 bits."""
    high = x.to(torch.float16)
    return torch.stack([high, (x - high.float()).to(torch.float16)])


def _hopper_kernel(q_bhrd: Tensor) -> ModuleType | None:
    """The Gluon kernel where it can run. Gluon's names still change: 3.6 to 3.9 were compiled."""
    version = tuple(int(x) for x in triton.__version__.split(".")[:2])
    if not (q_bhrd.is_cuda and (3, 6) <= version <= (3, 9)):
        return None
    from longattn.scoring import hopper_kernel

    return hopper_kernel if hopper_kernel.supports(q_bhrd) else None


def _tiles(dim: int, dtype: torch.dtype, parts: int) -> dict[str, int]:
    """Float32 products that are not split use no tensor cores."""
    if dtype == torch.float32:
        return dict(BM=32, BN=32, STAGES=1, num_warps=4)
    if parts == 2:
        return dict(BM=64, BN=64 if dim <= 128 else 32, STAGES=2 if dim <= 128 else 1, num_warps=4)
    if dim > 128:
        return dict(BM=128, BN=64, STAGES=2, num_warps=8)
    return dict(BM=128, BN=128, STAGES=2, num_warps=4)


class _Work:
    """One call: what each of its launches is given."""

    def __init__(
        self, q_bhrd: Tensor, k_bgld: Tensor, distances: Sequence[int], first_b: Tensor, stride: int
    ) -> None:
        self.parts = 2 if q_bhrd.ndim == 5 else 1
        # (parts * batch, heads, rows, head_dim)
        self.q, self.k = (x.contiguous().flatten(0, x.ndim - 4) for x in (q_bhrd, k_bgld))
        self.first, self.stride = first_b, stride
        self.descending = sorted(set(distances), reverse=True)
        self.distances = torch.tensor(self.descending, dtype=torch.int32).to(
            q_bhrd.device, non_blocking=True
        )
        self.width = max(16, triton.next_power_of_2(q_bhrd.shape[-1]))
        self.tiles = _tiles(q_bhrd.shape[-1], q_bhrd.dtype, self.parts)

    def first_pass(self, reference: bool, portable: bool = False) -> Tensor:
        """(2, distances, batch, heads, parts) float32, NaN in a part that must be done again."""
        heads, rows = self.q.shape[1:3]
        batch, m = len(self.q) // self.parts, len(self.descending)
        hopper = None if portable or m > 1 or self.stride > 1 else _hopper_kernel(self.q)
        if hopper is not None:
            self.tiles["BM"] = hopper.PART
            return hopper.partial_sums(
                self.q, self.k, self.parts, self.descending[0],
                None if not reference else HEADROOM.value, LEAST.value,
            )[:, None]  # fmt: skip
        blocks = triton.cdiv(rows, self.tiles["BM"])
        partial = torch.empty((2, m, batch, heads, blocks), device=self.q.device)
        self.launch(partial, "first" if reference else "unit", partial[0, 0].numel())
        return partial

    def launch(self, partial: Tensor, mode: str, programs: int) -> None:
        """Fill all of `partial`, or in "running" mode what is lost of it."""
        m, items = len(self.descending), partial[0, 0].numel()
        heads, kv_heads, length = self.q.shape[1], self.k.shape[1], self.k.shape[2]
        _sums_kernel[(min(items, programs),)](
            TensorDescriptor.from_tensor(self.q, [1, 1, self.tiles["BM"], self.width]),
            TensorDescriptor.from_tensor(self.k, [1, 1, self.tiles["BN"], self.width]),
            self.distances, self.first, partial,
            items, heads, kv_heads, length, self.descending[-1], self.stride, partial.shape[-1],
            D=self.width, PRECISION="split" if self.parts == 2 else "ieee" if self.q.dtype == torch.float32 else "tf32",
            MODE=mode, M=m, MP=triton.next_power_of_2(m), enable_fp_fusion=True, **self.tiles,
        )  # fmt: skip


def attention_sums(
    q_bhrd: Tensor, k_bgld: Tensor, distances: Sequence[int], first_b: Tensor, stride: int = 1,
    *, reference: bool = False, portable: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The sums S1 = sum a / l and S2 = sum b / l^2 behind DS and V, of every window, head, distance.

    The same window gives the same bits whatever its batch mates: no atomics, one order of addition.

    Args:
        q_bhrd: rotated queries (batch, heads, rows, head_dim), times scaling * log2(e); bfloat16,
            float16, float32, or (2, batch, heads, rows, head_dim) float16, the parts that `split` gives
            of float32, on a CUDA device. Products of whole float32 use no tensor cores and are slow.
            Row r of a window stands at position first + stride * r; one past the end counts nothing.
        k_bgld: rotated keys (batch, kv_heads, length, head_dim), split or not, dtype and device
            as the queries.
        distances: the k, in tokens, 1 to length.
        first_b: (batch,) int32 on the device: the smallest distance, plus an offset below `stride`.
        reference: subtract from each row's scores the largest of its first tile. Costs a little;
            without it, blocks with rows outside about -28 to 41 nats are done again.
        portable: never the kernel that only Hopper GPUs can run.

    Returns:
        s1, s2: float64 (batch, heads, distances), of the rows given, not times `stride`.

    Raises:
        ValueError: shapes, dtypes or distances that do not fit together.
    """
    batch, heads, rows, dim = q_bhrd.shape[-4:]
    kv_heads, length = k_bgld.shape[-3:-1]
    parts = q_bhrd.shape[:-4]
    if k_bgld.shape != (*parts, batch, kv_heads, length, dim) or heads % kv_heads:
        raise ValueError(f"keys {tuple(k_bgld.shape)} do not fit queries {tuple(q_bhrd.shape)}")
    allowed = torch.bfloat16, torch.float16, torch.float32
    if q_bhrd.dtype != k_bgld.dtype or q_bhrd.dtype not in allowed:
        raise ValueError(
            f"dtypes {q_bhrd.dtype}, {k_bgld.dtype}: both bfloat16, float16 or float32"
        )
    if not distances or not 1 <= min(distances) <= max(distances) <= length:
        raise ValueError(f"distances {list(distances)}: each 1 to the length {length}")
    shape = 2, len(set(distances)), batch, heads
    total = torch.zeros(shape, dtype=torch.float64, device=q_bhrd.device)
    work = _Work(q_bhrd, k_bgld, distances, first_b, stride)
    if rows:
        partial = work.first_pass(reference, portable)
        work.launch(partial, "running", 512)
        _total_kernel[(total.numel(),)](partial, total, partial.shape[-1], CHUNK=256)
    # Views: an index of several columns would be copied to the device, which waits for all before it.
    s1, s2 = torch.stack([total[:, work.descending.index(k)] for k in distances], dim=-1)
    return s1, s2


def first_pass(
    q_bhrd: Tensor, k_bgld: Tensor, min_distance: int, first_b: Tensor, *,
    reference: bool = False, portable: bool = False,
) -> Tensor:  # fmt: skip
    """The parts of S1 and S2 before any is done again, (2, 1, batch, heads, parts) float32."""
    return _Work(q_bhrd, k_bgld, [min_distance], first_b, 1).first_pass(reference, portable)


def lost_share(q_bhrd: Tensor, k_bgld: Tensor, min_distance: int, first_b: Tensor) -> float:
    """Share of blocks that leave the range of float32 if their scores have no reference."""
    partial = first_pass(q_bhrd, k_bgld, min_distance, first_b, portable=True)
    return float(partial[0].isnan().double().mean())
