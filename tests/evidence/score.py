"""Scores of the pool's windows that need a model: LDS's parts by its first layer, and its loss gap.

    python score.py MODEL WINDOWS SCORES.npz [--short 1024]

DS and variance by longattn's AttentionScorer, means over heads, k a quarter of the window. Loss gap: the
mean over positions from `short` on of the loss with a short context minus that with all before; weighted:
each times the probability of the token given all before.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from llama import Llama, Shape, packed
from measure import CHUNKS_AT_ONCE, best_model, gap_of
from numpy.typing import NDArray
from windows import Windows

from longattn.scoring.scorer import AttentionScorer


def score_block(
    model: Llama, scorer: AttentionScorer, ids_nl: NDArray[np.uint16], short: int
) -> dict[str, NDArray[np.float64]]:
    """Scores of some windows by name."""
    attention = scorer.score(ids_nl.astype(np.int64))
    gaps, weighted = [], []
    for ids in torch.from_numpy(ids_nl.astype(np.int64)).to(model.device).split(CHUNKS_AT_ONCE):
        near, full = gap_of(model, ids, short, short)
        gap, far = near - full[:, short - 1 :], full[:, short - 1 :]
        gaps.append(gap.double().mean(1))
        weighted.append((gap * (-far).exp()).double().mean(1))
    return {
        "ds": attention.ds.mean(1).numpy(),
        "variance": attention.variance.mean(1).numpy(),
        "loss_gap": torch.cat(gaps).cpu().numpy(),
        "loss_gap_weighted": torch.cat(weighted).cpu().numpy(),
    }


def load_scorer(model: Path, device: str) -> AttentionScorer:
    dtype = "float32" if device == "cpu" else "float16"
    return AttentionScorer.from_pretrained(str(model), device, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("model", "windows", "scores"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--short", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    model = best_model(Shape.read(given.model), given.device)
    model.load(packed(given.model))
    scorer = load_scorer(given.model, given.device)
    windows = Windows(given.windows)
    ids = windows.ids[windows.pool()]
    blocks = [
        score_block(model, scorer, ids[i : i + 128], given.short) for i in range(0, len(ids), 128)
    ]
    np.savez(given.scores, **{k: np.concatenate([b[k] for b in blocks]) for k in blocks[0]})


if __name__ == "__main__":
    main()
