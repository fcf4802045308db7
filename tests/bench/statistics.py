"""Speed of the CPU statistics, and of the dense float32 formulation: `python tests/bench/statistics.py`.

The dense one is the reference's: all scores of all heads at once, softmax, then a mask, a mean and
a variance for each head. Wall and processor seconds, the best of `--repeats`.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from longattn.scoring.statistics import attention_sums, statistics_from_sums


def dense(q_hld: Tensor, k_gld: Tensor, min_distance: int, scaling: float) -> tuple[Tensor, Tensor]:
    heads, length, _ = q_hld.shape
    k_hld = k_gld.repeat_interleave(heads // k_gld.shape[0], dim=0)
    rows, columns = torch.arange(length)[:, None], torch.arange(length)[None]
    scores = q_hld @ k_hld.transpose(1, 2) * scaling
    p_hll = torch.softmax(scores.masked_fill(columns > rows, -math.inf), dim=-1)
    far = rows - columns >= min_distance
    masked = [p_hll[head] * far for head in range(heads)]
    return torch.stack([m.sum() / length for m in masked]), torch.stack([m.var() for m in masked])


def blocked(q: Tensor, k: Tensor, min_distance: int, scaling: float) -> tuple[Tensor, Tensor]:
    return statistics_from_sums(
        *(s[:, 0] for s in attention_sums(q[:, min_distance:], k, [min_distance], scaling)),
        q.shape[1],
    )


def best(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    walls, processors = [], []
    for _ in range(repeats):
        wall, processor = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, float32, 4 heads, 2 kv heads, k = L / 4")
    for dim in (32, 64):
        for length in (8192, 16384, 32768):
            torch.manual_seed(0)
            q, k = torch.randn(4, length, dim), torch.randn(2, length, dim)
            window = (q, k, length // 4, dim**-0.5)
            wall, processor = best(partial(blocked, *window), arguments.repeats)
            print(f"L {length:6} dim {dim}: {wall:6.2f} s wall, {processor:6.2f} s processor")
            if length == 8192:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
                wall_2, processor_2 = best(partial(dense, *window), arguments.repeats)
                print(f"    dense {wall_2:6.2f} s wall, {processor_2:6.2f} s processor")
                print(
                    f"    ratio {wall_2 / wall:.1f} wall, {processor_2 / processor:.1f} processor"
                )
                print(f"    peak memory before the dense one {peak} MB")


if __name__ == "__main__":
    main()
