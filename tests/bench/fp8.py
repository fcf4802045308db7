"""Would the ranking survive products in fp8? python tests/bench/fp8.py CATEGORY=JSONL ...

Rotated queries and keys of the built-in scorer rounded to e4m3 or e5m2, each head scaled to the largest
number of the format, or to bfloat16; statistics in float32 on a CPU. Windows of documents that
builtin/train.py held out, k a quarter; prints how far DS and variance are off (median, most) from
float32, and the rank correlation of LDS.
"""

import sys

import numpy as np
import torch

from longattn.config import Config
from longattn.reports.evaluation import Attention
from longattn.reports.foils import generator, long_documents, native_windows
from longattn.reports.score_columns import rank_correlation
from longattn.scoring.scorer import AttentionScorer
from longattn.scoring.statistics import attention_sums, statistics_from_sums

WINDOW, WINDOWS = 8192, 40
FORMATS = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


def rounded(x_hld: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    if dtype is None:
        return x_hld
    scale_h = x_hld.abs().amax((1, 2), keepdim=True) / torch.finfo(dtype).max
    if dtype == torch.bfloat16:
        scale_h = torch.ones_like(scale_h)
    return (x_hld / scale_h).to(dtype).float() * scale_h


@torch.inference_mode()
def main(sources: dict[str, str]) -> None:
    config = Config.parse(
        {
            "sources": [{"category": name, "path": path} for name, path in sources.items()],
            "output": "unused",
            "window": {"tokens": WINDOW},
        }
    )
    tables, k = AttentionScorer.from_pretrained("builtin").tables, WINDOW // 4
    for category, documents in long_documents(config, held_out=0.2).items():
        native = native_windows(documents, WINDOWS, WINDOW, generator(0, category, "fp8"))
        scores: dict[str, list[tuple[float, float]]] = {name: [] for name in FORMATS}
        for ids_l in native.ids_nl:
            q, keys = tables.rotated(torch.from_numpy(ids_l).long(), torch.arange(WINDOW))
            for name, dtype in FORMATS.items():
                s1, s2 = attention_sums(
                    rounded(q, dtype)[:, k:], rounded(keys, dtype), [k], tables.scaling
                )
                ds_h, variance_h = statistics_from_sums(s1, s2, WINDOW)
                scores[name].append((float(ds_h.mean()), float(variance_h.mean())))
        told = {name: Attention(*np.array(some).T) for name, some in scores.items()}
        exact = told.pop("float32")
        for name, some in told.items():
            off = abs(some.ds / exact.ds - 1), abs(some.variance / exact.variance - 1)
            rank = rank_correlation(some.lds(some, 0.5), exact.lds(exact, 0.5))
            print(
                f"{category}, {name}: DS off {np.median(off[0]):.1e} / {off[0].max():.1e}, variance "
                f"off {np.median(off[1]):.1e} / {off[1].max():.1e}, Spearman of LDS {rank:.5f}",
                flush=True,
            )


if __name__ == "__main__":
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
