"""Speed and accuracy of the NVIDIA backend: python tests/bench/kernel.py, on a CUDA device.

Prints the matrix-product ceiling of the device, then, for the shapes of Llama-3.1-8B and 70B and
several lengths, the time of the kernel and of a whole call (ids on the host to numbers on the
host), the memory it takes, its error against float64, and the time of the dense formulation.
Tables are random, with scores of standard deviation 2.6; nothing is downloaded.
"""

import math

import torch
from torch import Tensor
from triton.testing import do_bench

from longattn.scoring.statistics import statistics_from_sums
from longattn.scoring.triton_kernel import attention_sums, gather_rotate

DIM, VOCABULARY, SCALING = 128, 128256, 128**-0.5


def milliseconds(call, repeat: float = 200) -> float:
    return do_bench(call, warmup=repeat / 4, rep=repeat, return_mode="median")


def turns(length: int, factor: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotation, (length, DIM) float32, times `factor`."""
    rate = 500000.0 ** (-torch.arange(0, DIM, 2, device="cuda").float() / DIM)
    angle = torch.arange(length, device="cuda").float()[:, None] * rate
    return (torch.cat([angle.cos()] * 2, 1) * factor, torch.cat([angle.sin()] * 2, 1) * factor)


def rotated(tables: tuple[Tensor, Tensor], ids_l: Tensor) -> tuple[Tensor, Tensor]:
    """Queries carry SCALING * log2(e): scaling is then ln 2."""
    length = len(ids_l)
    q = gather_rotate(tables[0], ids_l[None], *turns(length, SCALING * math.log2(math.e)))
    return q, gather_rotate(tables[1], ids_l[None], *turns(length, 1.0))


def score(tables: tuple[Tensor, Tensor], ids_l: Tensor) -> tuple[Tensor, Tensor]:
    """DS and V of one window of ids on the host, on the host."""
    length = len(ids_l)
    s1, s2 = attention_sums(*rotated(tables, ids_l.cuda()), length // 4, math.log(2))
    return statistics_from_sums(s1.cpu(), s2.cpu(), length)


def float64_sums(q_ld: Tensor, k_ld: Tensor, k: int, scaling: float) -> tuple[float, float]:
    """S1 and S2 of one head, rows in chunks."""
    s1 = s2 = 0.0
    for start in range(k, len(q_ld), 2048):
        n = torch.arange(start, min(start + 2048, len(q_ld)), device="cuda")[:, None]
        i = torch.arange(int(n[-1]) + 1, device="cuda")
        s = q_ld[n[:, 0]].double() @ k_ld[: len(i)].double().T * scaling
        p = s.masked_fill_(i > n, -math.inf).softmax(-1).mul_(n - i >= k)
        s1, s2 = s1 + float(p.sum()), s2 + float(p.square().sum())
    return s1, s2


def dense(q_hld: Tensor, k_gld: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The reference's formulation: all L x L probabilities, softmax in float32."""
    length = q_hld.shape[1]
    s = q_hld @ k_gld.repeat_interleave(len(q_hld) // len(k_gld), 0).transpose(1, 2) * math.log(2)
    n = torch.arange(length, device="cuda")
    s = s.masked_fill(n > n[:, None], -math.inf).softmax(-1, dtype=torch.float32)
    far = s.masked_fill(n[:, None] - n < k, 0.0)
    return far.sum((1, 2)) / length, far.flatten(1).var(1)


def main() -> None:
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    ceiling = 2 * 8192**3 / milliseconds(lambda: a @ b, 400) / 1e9
    print(f"ceiling {ceiling:.0f} TFLOP/s (8192^3 bf16)")
    for name, heads in (("8B", 32), ("70B", 64)):
        tables = tuple(
            (torch.randn(VOCABULARY, h, DIM, device="cuda") * 1.6).bfloat16() for h in (heads, 8)
        )
        for length in (8192, 32768, 65536, 131072):
            k = length // 4
            ids_l = (torch.rand(length) ** 4 * VOCABULARY).int()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            ds_h, variance_h = (x[0] for x in score(tables, ids_l))
            peak = (torch.cuda.max_memory_allocated() - held) / 2**30
            q, key = rotated(tables, ids_l.cuda())
            work = heads * 2 * DIM * (length - k) * (length + k + 1) / 2 / 1e9
            kernel = milliseconds(lambda q=q, key=key, k=k: attention_sums(q, key, k, math.log(2)))
            general = milliseconds(lambda q=q, key=key, k=k: attention_sums(q, key, k, 0.69))
            whole = milliseconds(lambda t=tables, i=ids_l: score(t, i))
            share = work / kernel / ceiling
            print(
                f"{name} {length:6} kernel {kernel:8.3f} ms ({work / kernel:.0f} TFLOP/s, {share:.0%}), "
                f"with references {general:8.3f}, whole call {whole:8.3f} ms, {peak:.2f} GiB"
            )
            if length <= 32768:
                s1, s2 = torch.tensor(
                    [float64_sums(q[0, h], key[0, h * 8 // heads], k, math.log(2)) for h in (0, 9)]
                ).T
                ds, variance = statistics_from_sums(s1, s2, length)
                errors = (ds_h[[0, 9]] / ds - 1).abs().max(), (variance_h[[0, 9]] / variance - 1)
                print(f"    error DS {errors[0]:.1e}, V {errors[1].abs().max():.1e}")
            if length == 8192:
                slow = milliseconds(lambda q=q, key=key, k=k: dense(q[0], key[0], k))
                print(f"    dense {slow:.1f} ms, {slow / kernel:.0f} times")


if __name__ == "__main__":
    main()
