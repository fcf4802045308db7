"""Variants and accuracy of the NVIDIA backend: python -m tests.bench.kernel [WINDOWS.npz]

Prints, for the shape of Llama-3.1-8B at 32768 tokens, the time of each kernel and mode, the error
against float64, and, for real windows scored before in float32 on a CPU (arrays ids, ds, variance,
category), what bfloat16 and a stride change: errors of DS and V, and Spearman of LDS. Speed of whole
calls is `longattn bench`.
"""

import math
import sys

import numpy as np
import torch
from torch import Tensor

from longattn.reports.bench import milliseconds, random_scorer
from longattn.scoring import triton_kernel
from longattn.scoring.scorer import AttentionScorer
from longattn.scoring.statistics import statistics_from_sums
from tests.kernel_cases import LOG2_E

LENGTH, K = 32768, 8192


def variants(scorer: AttentionScorer, ids_l: Tensor) -> None:
    first = torch.tensor([K], dtype=torch.int32, device="cuda")
    q, k = scorer._rotated(ids_l[None].cuda(), None, first, LENGTH - K, 1)

    def run(**options) -> float:
        call = lambda: triton_kernel.attention_sums(q, k, [K], first, **options)  # noqa: E731
        return milliseconds(call, "cuda")

    for portable in (False, True):
        for reference in (False, True):
            name = ("portable" if portable else "own") + (", reference" if reference else "")
            print(
                f"kernel {name}: {run(portable=portable, reference=reference):.2f} ms", flush=True
            )
    gather = milliseconds(
        lambda: scorer._rotated(ids_l[None].cuda(), None, first, LENGTH - K, 1), "cuda"
    )
    print(f"gather and rotate: {gather:.2f} ms")
    for stride in (4, 16):
        sampled = milliseconds(lambda s=stride: scorer.score(ids_l, K, s), "cuda")
        print(f"call at stride {stride}: {sampled:.2f} ms")


def float64_statistics(q_rd: Tensor, k_ld: Tensor) -> tuple[Tensor, Tensor]:
    """DS and V of one head, rows in chunks; the queries carry log2(e)."""
    s1, s2 = torch.zeros(2, dtype=torch.float64)
    column = torch.arange(LENGTH, device="cuda")
    for start in range(0, LENGTH - K, 2048):
        at = K + torch.arange(start, start + 2048, device="cuda")[:, None]
        s = q_rd[start : start + 2048].double() @ k_ld.double().T / LOG2_E
        p = s.masked_fill_(column > at, -math.inf).softmax(-1).mul_(at - column >= K)
        s1, s2 = s1 + p.sum().cpu(), s2 + p.square().sum().cpu()
    return statistics_from_sums(s1, s2, LENGTH)


def against_float64(scorer: AttentionScorer, ids_l: Tensor) -> None:
    first = torch.tensor([K], dtype=torch.int32, device="cuda")
    q, k = scorer._rotated(ids_l[None].cuda(), None, first, LENGTH - K, 1)
    scores = scorer.score(ids_l, K)
    for head in (0, scorer.heads // 2):
        ds, variance = float64_statistics(q[0, head], k[0, head * k.shape[1] // scorer.heads])
        off = float(scores.ds[0, head] / ds - 1), float(scores.variance[0, head] / variance - 1)
        print(
            f"head {head}: DS off by {off[0]:.1e}, V by {off[1]:.1e} of float64 on the same bf16 q, k"
        )


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def real_windows(path: str) -> None:
    """The built-in scorer in bfloat16, and with strides, against stored float32 scores."""
    stored = np.load(path)
    scorer = AttentionScorer.from_pretrained("builtin", device="cuda")
    ids = torch.from_numpy(stored["ids"].astype(np.int32))
    print(f"{len(ids)} real windows, built-in scorer, against float32 on a CPU")
    for stride in (1, 4, 8, 16, 32):
        scores = scorer.score(ids, K, stride)
        ds, variance = scores.ds.mean(1).numpy(), scores.variance.mean(1).numpy()
        off = np.abs(ds / stored["ds"] - 1), np.abs(variance / stored["variance"] - 1)
        ranks = []
        for category in np.unique(stored["category"]):
            mine = stored["category"] == category
            lds = [
                (d[mine] - d[mine].mean()) / d[mine].std()
                - 0.5 * (v[mine] - v[mine].mean()) / v[mine].std()
                for d, v in ((ds, variance), (stored["ds"], stored["variance"]))
            ]
            ranks.append(f"{category} {rank_correlation(*lds):.5f}")
        print(
            f"stride {stride:2}: DS off by {np.median(off[0]):.1e} (median), {off[0].max():.1e} (most), "
            f"V {np.median(off[1]):.1e}, {off[1].max():.1e}; Spearman of LDS: {', '.join(ranks)}",
            flush=True,
        )


def main() -> None:
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    scorer = random_scorer("8b", "cuda", "bfloat16")
    ids_l = (torch.rand(LENGTH, generator=torch.Generator().manual_seed(3)) ** 4 * 128256).int()
    with torch.inference_mode():
        against_float64(scorer, ids_l)
        variants(scorer, ids_l)
    if len(sys.argv) > 1:
        real_windows(sys.argv[1])


if __name__ == "__main__":
    main()
