"""The attention statistics of one window: their definition, and a backend for the CPU.

For head h and token distance k (`min_distance`), with causal probabilities p[n, i] of L tokens:
    Mt[n, i] = p[n, i] where n - i >= k, else 0
    DS = sum(Mt) / L                          (LongAttn, arXiv 2502.16860, Eq. 3-5)
    V  = unbiased variance of all L * L entries of Mt, zeros included      (Eq. 7; DU = -V)
Neither needs the L x L matrix. Per row n, with l the sum of exp(score) over i <= n, a the same over
the far i alone and b the sum of exp(2 score) over the far i, two sums suffice:
    S1 = sum_n a/l,   S2 = sum_n b/l^2,   DS = S1/L,   V = (S2 - S1^2/N) / (N - 1),   N = L * L.
"""

import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

# Tile of scores, in rows and columns: 1 MB in float32. On a Zen 3 core with 512 KB of L2, of six
# sizes tried from 64 x 1024 to 128 x 2048, this was the fastest (64 x 1024: 1.4 times as long).
_ROWS = 256
_COLUMNS = 1024
# Scores in units of log2 up to this magnitude need no running maximum: p is within 2^+-50, p^2 and
# its sums within 2^+-120, all inside float32. It saves a fifth of the time.
_SAFE_LOG2 = 50.0


def probability_statistics(p_hll: Tensor, min_distance: int) -> tuple[Tensor, Tensor]:
    """DS and V of causal attention probabilities, by the definition.

    Args:
        p_hll: (heads, length, length) probabilities; rows are queries.
        min_distance: the paper's k, in tokens.

    Returns:
        ds_h and variance_h: (heads,), float64.
    """
    length = p_hll.shape[-1]
    far_hll = p_hll.double().tril(-min_distance)
    return far_hll.sum((1, 2)) / length, far_hll.flatten(1).var(1)


def dense_statistics(
    q_hld: Tensor, k_gld: Tensor, min_distance: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """DS and V in plain float64, all L x L entries held: the truth for the other backends.

    q_hld is of all positions and one distance; else args as for `attention_sums`, returns as
    `probability_statistics`.
    """
    q_hld, k_gld = q_hld.double(), k_gld.double()
    k_hld = k_gld.repeat_interleave(q_hld.shape[0] // k_gld.shape[0], dim=0)
    s_hll = q_hld @ k_hld.transpose(1, 2) * scaling
    future_ll = torch.ones(s_hll.shape[1:], dtype=torch.bool, device=s_hll.device).triu(1)
    p_hll = torch.softmax(s_hll.masked_fill(future_ll, -math.inf), dim=-1)
    return probability_statistics(p_hll, min_distance)


def statistics_from_sums(s1: Tensor, s2: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """DS and V (float64, the shape of `s1`) from S1 and S2 of a window of `length` tokens."""
    s1, s2 = s1.double(), s2.double()
    entries = length * length
    return s1 / length, (s2 - s1 * s1 / entries) / (entries - 1)


def attention_sums(
    q_hrd: Tensor,
    k_gld: Tensor,
    distances: Sequence[int],
    scaling: float,
    first: int | None = None,
    stride: int = 1,
) -> tuple[Tensor, Tensor]:
    """S1 and S2 of one window, tile by tile on the CPU: O(length) memory, rows below k skipped.

    Each tile is computed by one thread, `torch.get_num_threads()` tiles at a time, and the rows are
    added up in a fixed order in float64: the bits do not depend on the number of threads.

    Args:
        q_hrd: (heads, rows, dim) rotated queries, float32 or float64; row r stands at position
            first + stride * r.
        k_gld: (kv_heads, length, dim) rotated keys; query head h reads h // (heads / kv_heads).
        distances: the paper's k, in tokens, each at least 1. More than one costs one Q K^T still.
        scaling: factor on the products, before softmax.
        first: position of row 0, the smallest distance or more; that distance by default.
        stride: tokens from row to row.

    Returns:
        s1 and s2: (heads, distances), float64, of the rows given.
    """
    heads, rows, _ = q_hrd.shape
    first = min(distances) if first is None else first
    group = heads // k_gld.shape[0]
    q_hrd = (q_hrd * (scaling * math.log2(math.e))).contiguous()
    k_gld = k_gld.contiguous()
    q_norm_hr = torch.linalg.vector_norm(q_hrd, dim=2)
    k_norm_g = torch.linalg.vector_norm(k_gld, dim=2).amax(1)
    ascending = sorted(set(distances))
    threads = torch.get_num_threads()
    local = threading.local()

    def start() -> None:
        torch.set_num_threads(1)  # of this thread
        local.tile = torch.empty(_ROWS * _COLUMNS, dtype=q_hrd.dtype)

    def block(item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        head, row = item
        q_ld = q_hrd[head, row : row + _ROWS]
        bounded = q_norm_hr[head, row : row + _ROWS].max() * k_norm_g[head // group] <= _SAFE_LOG2
        positions = first + stride * torch.arange(row, row + len(q_ld))
        l_n, a_kn, b_kn = _rows(
            q_ld, k_gld[head // group], positions, ascending, bool(bounded), local.tile
        )
        return (a_kn / l_n).sum(1), (b_kn / l_n.square()).sum(1)

    # The longest rows first, so that no thread is left with a long one at the end.
    items = [(h, row) for row in reversed(range(0, rows, _ROWS)) for h in range(heads)]
    s1_hk, s2_hk = torch.zeros(2, heads, len(ascending), dtype=torch.float64)
    try:
        with ThreadPoolExecutor(threads, initializer=start) as pool:
            for (head, _), (s1, s2) in zip(items, pool.map(block, items), strict=True):
                s1_hk[head] += s1
                s2_hk[head] += s2
    finally:
        torch.set_num_threads(threads)  # what the workers set is also the default of new threads
    columns = [ascending.index(k) for k in distances]
    return s1_hk[:, columns], s2_hk[:, columns]


def _key_ranges(low: int, high: int, distances: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Key ranges for query positions from `low` to `high`: each wholly far, partly or not, for each k.

    The last range (the diagonal) is the only one with keys that some row may not see, so that every
    row has met a real score before it meets a masked one.
    """
    cuts = {0, low + 1, high + 1}
    for k in distances:
        cuts |= {min(max(0, cut), high + 1) for cut in (low - k + 1, high - k + 1)}
    for start, stop in itertools.pairwise(sorted(cuts)):
        for column in range(start, stop, _COLUMNS):
            yield column, min(column + _COLUMNS, stop)


def _rows(
    q_nd: Tensor,
    k_ld: Tensor,
    positions: Tensor,
    ascending: Sequence[int],
    bounded: bool,
    tile: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """l (rows,), a and b (distances, rows) of some rows, float64.

    bounded: no score can exceed `_SAFE_LOG2`; else all are relative to each row's maximum, kept as
    it grows.
    """
    rows, low, high = len(q_nd), int(positions[0]), int(positions[-1])
    l = torch.zeros(rows, dtype=torch.float64)  # noqa: E741
    a, b = torch.zeros(2, len(ascending), rows, dtype=torch.float64)
    top = torch.full((rows,), -math.inf, dtype=q_nd.dtype)
    for start, end in _key_ranges(low, high, ascending):
        p = tile[: rows * (end - start)].view(rows, end - start)
        columns = torch.arange(start, end)
        torch.mm(q_nd, k_ld[start:end].T, out=p)
        if end - 1 > low:
            p.masked_fill_(columns > positions[:, None], -math.inf)
        if not bounded:
            raised = torch.maximum(top, p.amax(1))
            shrink = torch.exp2((top - raised).double())
            top = raised
            p.sub_(top[:, None])
            l.mul_(shrink)
            a.mul_(shrink)
            b.mul_(shrink.square())
        p.exp2_()
        total, square = p.sum(1), None
        l.add_(total)
        for j, k in enumerate(ascending):
            if start > high - k:
                break
            if end - 1 > low - k:  # each mask holds the next
                p.masked_fill_(columns > positions[:, None] - k, 0.0)
                total, square = p.sum(1), None
            if square is None:
                square = torch.linalg.vector_norm(p, dim=1).double().square()
            a[j].add_(total)
            b[j].add_(square)
    return l, a, b
