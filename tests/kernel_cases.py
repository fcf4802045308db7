"""The NVIDIA kernels against the definition in float64: python -m tests.kernel_cases

On a CUDA device, both kernels; elsewhere, with TRITON_INTERPRET=1, the portable one in Triton's
interpreter on small windows. Exits 1 and names the case where one is off.
"""

import itertools
import math
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from longattn.scoring import triton_kernel
from longattn.scoring.scorer import AttentionScorer, _offset
from tests import checkpoints

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
LOG2_E = math.log2(math.e)
# batch, heads, kv heads, length, dim, distances, stride, size of the scores
SMALL = [
    (1, 2, 1, 300, 16, [75], 1, 1.0),
    (2, 4, 2, 260, 32, [64], 1, 1.0),
    (1, 2, 1, 300, 16, [20, 75, 150], 1, 1.0),
    (2, 2, 1, 333, 16, [50, 10, 333, 120], 1, 1.0),
    (2, 2, 2, 300, 16, [30, 90], 3, 1.0),
    (1, 2, 1, 300, 16, [75, 20], 1, 60.0),
    (1, 1, 1, 200, 16, [40, 10], 2, 1000.0),
    (1, 1, 1, 2, 16, [1], 1, 1.0),
    (1, 1, 1, 65, 8, [64, 1], 1, 1.0),
]
# family, fields of its config, length, distances, stride
SCORERS = [
    ("llama", {}, 131, [33], 1),
    ("llama", {}, 131, [33], 4),
    ("glm", {"head_dim": 16}, 150, [40, 11, 90], 3),
    ("cohere", {}, 131, [33], 1),
]
LARGE = [
    (2, 8, 2, 4096, 128, [1024], 1, 1.0),
    (1, 8, 8, 3001, 64, [750], 1, 3.0),
    (1, 4, 1, 5000, 128, [1, 77, 2048, 4999], 1, 1.0),
    (2, 4, 2, 4100, 128, [1000, 500], 8, 1.0),
    (1, 4, 2, 4096, 128, [1024], 1, 40.0),
    (1, 4, 2, 2500, 128, [300], 1, 2000.0),
    (1, 2, 1, 2048, 256, [512], 1, 1.0),
    (1, 2, 1, 129, 128, [128], 1, 1.0),
]


def true_sums(q_rd: Tensor, k_ld: Tensor, first: int, k: int, stride: int) -> tuple[float, float]:
    """S1 and S2 of one head, float64; queries carry log2(e)."""
    at = first + stride * torch.arange(len(q_rd), device=q_rd.device)[:, None]
    column = torch.arange(len(k_ld), device=k_ld.device)
    s = q_rd.double() @ k_ld.double().T / LOG2_E
    p = s.masked_fill(column > at, -math.inf).softmax(-1)
    far = p * ((at - column >= k) & (at < len(k_ld)))
    return float(far.sum()), float(far.square().sum())


def error(case: tuple, dtype: torch.dtype, portable: bool, reference: bool, seed: int) -> float:
    """Largest relative difference of S1 and S2 over windows, heads and distances."""
    batch, heads, kv_heads, length, dim, distances, stride, size = case
    generator = torch.Generator().manual_seed(seed)
    first_b = [min(distances) + (3 * b + 1) % stride for b in range(batch)]
    rows = -(-(length - min(distances)) // stride)
    q = torch.randn(batch, heads, rows, dim, generator=generator) * size * dim**-0.5 * LOG2_E
    k = torch.randn(batch, kv_heads, length, dim, generator=generator)
    q, k = q.to(DEVICE, dtype), k.to(DEVICE, dtype)
    first = torch.tensor(first_b, dtype=torch.int32, device=DEVICE)
    got = triton_kernel.attention_sums(
        q, k, distances, first, stride, reference=reference, portable=portable
    )
    again = triton_kernel.attention_sums(
        q[-1:], k[-1:], distances, first[-1:], stride, reference=reference, portable=portable
    )
    if not all(torch.equal(x[-1:], y) for x, y in zip(got, again, strict=True)):
        return math.inf  # the bits depend on batch mates
    worst = 0.0
    for b, h, (column, distance) in itertools.product(
        range(batch), range(heads), enumerate(distances)
    ):
        true = true_sums(q[b, h], k[b, h * kv_heads // heads], first_b[b], distance, stride)
        for ours, theirs in zip(got, true, strict=True):
            value = float(ours[b, h, column])
            # A sum below 1e-30 is out of float32's reach for the squares behind it.
            off = abs(value - theirs) / max(abs(theirs), 1e-30)
            worst = max(worst, off if math.isfinite(value) else math.inf)
    return worst


def scorer_error(
    family: str, fields: dict[str, int], length: int, distances: list[int], stride: int
) -> float:
    """Of what a scorer on a GPU computes, rotations included, to what it computes on a CPU."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        checkpoints.save(Path(folder), family, **fields)
        scorer = AttentionScorer.from_pretrained(folder, device="cpu")
        ids_bl = torch.randint(scorer.vocab_size, (2, length), dtype=torch.int32)
        offsets = [_offset(ids_l, stride) for ids_l in ids_bl]
        true = scorer._sums(ids_bl, None, distances, offsets, stride)
        first_b = torch.tensor([min(distances) + o for o in offsets], dtype=torch.int32)
        rows = -(-(length - min(distances)) // stride)
        q, k = scorer._rotated(ids_bl, None, first_b, rows, stride)
        got = triton_kernel.attention_sums(q, k, distances, first_b, stride, reference=False)
    return max(
        float(((a - b).abs() / b.abs().clamp_min(1e-12)).max())
        for a, b in zip(got, true, strict=True)
    )


def main() -> int:
    failed = 0
    for case in () if GPU else SCORERS:
        off = scorer_error(*case)
        failed += not off <= 1e-5
        print(f"{off:.1e} scorer {case}", flush=True)
    cases = [(case, torch.float32) for case in SMALL]
    if GPU:  # few of the small ones: each shape is compiled for each dtype and mode
        cases = [
            *cases[3:4],
            *((case, torch.bfloat16) for case in LARGE),
            (LARGE[0], torch.float16),
        ]
    for case, dtype in cases:
        for portable, reference in itertools.product(
            (False, True) if GPU else (True,), (False, True)
        ):
            off = error(case, dtype, portable, reference, seed=len(case[5]))
            bad = not off <= 1e-4
            failed += bad
            kind = "portable" if portable else "device's own"
            print(f"{off:.1e} {kind} {dtype} reference {reference} {case}", flush=True)
    print(f"{failed} cases off")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
