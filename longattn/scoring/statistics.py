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

    Args as for `attention_sums`; returns as `probability_statistics`.
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
    q_hld: Tensor, k_gld: Tensor, min_distance: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """S1 and S2 of one window, tile by tile on the CPU: O(length) memory, rows below k skipped.

    Each tile is computed by one thread, `torch.get_num_threads()` tiles at a time, and the rows are
    added up in a fixed order in float64: the bits do not depend on the number of threads.

    Args:
        q_hld: (heads, length, dim) rotated queries, float32 or float64.
        k_gld: (kv_heads, length, dim) rotated keys; query head h reads h // (heads / kv_heads).
        min_distance: the paper's k, in tokens, at least 1.
        scaling: factor on the products, before softmax.

    Returns:
        s1_h and s2_h: (heads,), float64.
    """
    heads, length, _ = q_hld.shape
    group = heads // k_gld.shape[0]
    q_hld = (q_hld * (scaling * math.log2(math.e))).contiguous()
    k_gld = k_gld.contiguous()
    q_norm_hl = torch.linalg.vector_norm(q_hld, dim=2)
    k_norm_g = torch.linalg.vector_norm(k_gld, dim=2).amax(1)
    threads = torch.get_num_threads()
    local = threading.local()

    def start() -> None:
        torch.set_num_threads(1)  # of this thread
        local.tile = torch.empty(_ROWS * _COLUMNS, dtype=q_hld.dtype)

    def block(item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        head, first = item
        stop = min(first + _ROWS, length)
        safe = q_norm_hl[head, first:stop].max() * k_norm_g[head // group] <= _SAFE_LOG2
        sums = _bounded_rows if safe else _rows
        l_n, a_n, b_n = sums(
            q_hld[head], k_gld[head // group], first, stop, min_distance, local.tile
        )
        return (a_n / l_n).sum(), (b_n / l_n.square()).sum()

    # The longest rows first, so that no thread is left with a long one at the end.
    items = [(h, n) for n in reversed(range(min_distance, length, _ROWS)) for h in range(heads)]
    s1_h, s2_h = torch.zeros(2, heads, dtype=torch.float64)
    try:
        with ThreadPoolExecutor(threads, initializer=start) as pool:
            for (head, _), (s1, s2) in zip(items, pool.map(block, items), strict=True):
                s1_h[head] += s1
                s2_h[head] += s2
    finally:
        torch.set_num_threads(threads)  # what the workers set is also the default of new threads
    return s1_h, s2_h


def _key_ranges(first: int, stop: int, min_distance: int) -> list[tuple[int, int]]:
    """Key ranges for the query rows [first, stop), each wholly or partly far, near or causal.

    The last range (the diagonal) is the only one with keys that some row may not see, so that every
    row has met a real score before it meets a masked one.
    """
    cuts = {0, first + 1, stop}
    cuts |= {min(max(0, cut), stop) for cut in (first - min_distance + 1, stop - min_distance)}
    edges = sorted(cuts)
    return [
        (start, min(start + _COLUMNS, high))
        for low, high in itertools.pairwise(edges)
        for start in range(low, high, _COLUMNS)
    ]


def _bounded_rows(
    q_ld: Tensor, k_ld: Tensor, first: int, stop: int, min_distance: int, tile: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """l, a, b of the rows [first, stop), float64, where no score can exceed `_SAFE_LOG2`."""
    rows = stop - first
    near, far, far_norm = [], [], []
    for start, end in _key_ranges(first, stop, min_distance):
        p = tile[: rows * (end - start)].view(rows, end - start)
        torch.mm(q_ld[first:stop], k_ld[start:end].T, out=p)
        p.exp2_()
        if end - 1 > first:
            p.tril_(first - start)
        if start > stop - 1 - min_distance:
            near.append(p.sum(1))
            continue
        if end - 1 > first - min_distance:
            near.append(p.triu(first - min_distance - start + 1).sum(1))
            p.tril_(first - min_distance - start)
        far.append(p.sum(1))
        far_norm.append(torch.linalg.vector_norm(p, dim=1))
    a = torch.stack(far).double().sum(0)
    b = torch.stack(far_norm).double().square().sum(0)
    return (a + torch.stack(near).double().sum(0)) if near else a, a, b


def _rows(
    q_ld: Tensor, k_ld: Tensor, first: int, stop: int, min_distance: int, tile: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """l, a, b of the rows [first, stop), float64, relative to each row's maximum, kept as it grows."""
    rows = stop - first
    top = torch.full((rows,), -math.inf, dtype=q_ld.dtype)
    l, a, b = torch.zeros(3, rows, dtype=torch.float64)  # noqa: E741
    for start, end in _key_ranges(first, stop, min_distance):
        p = tile[: rows * (end - start)].view(rows, end - start)
        torch.mm(q_ld[first:stop], k_ld[start:end].T, out=p)
        if end - 1 > first:
            future = torch.ones(p.shape, dtype=torch.bool).triu(first - start + 1)
            p.masked_fill_(future, -math.inf)
        raised = torch.maximum(top, p.amax(1))
        shrink = torch.exp2((top - raised).double())
        top = raised
        p.sub_(top[:, None]).exp2_()
        l.mul_(shrink).add_(p.sum(1))
        a.mul_(shrink)
        b.mul_(shrink.square())
        if start > stop - 1 - min_distance:
            continue
        if end - 1 > first - min_distance:
            p.tril_(first - min_distance - start)
        a.add_(p.sum(1))
        b.add_(torch.linalg.vector_norm(p, dim=1).double().square())
    return l, a, b
