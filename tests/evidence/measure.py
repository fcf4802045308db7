"""What a model makes of long context, on held-out windows: far gain, loss by position, copying.

    python measure.py MODEL WINDOWS RESULT.json      (MODEL: a folder; WINDOWS: a folder of windows.py)

Far gain of a window: the mean over positions from half the window on of the loss with a short context
alone minus the loss with all before. The short context is by chunks that overlap by half: `short` to
2 * `short` - 1 tokens. All in nats a token; a value for each document.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama import PLAIN, Llama, Shape, compiled, packed
from torch import Tensor

WINDOWS_AT_ONCE, CHUNKS_AT_ONCE = 8, 32
PASSAGE, SETTLED = 64, 8  # tokens of a foreign passage, of which the first tell nothing


def losses_of(model: Llama, ids_bl: Tensor, at_once: int, start: int) -> Tensor:
    """`token_losses` of any number of windows; on a GPU in batches of one shape, compiled once."""
    parts = []
    for ids in ids_bl.split(at_once):
        lacking = at_once - len(ids) if ids.is_cuda else 0
        padded = torch.cat([ids, ids[:1].expand(lacking, -1)]) if lacking else ids
        parts.append(model.token_losses(padded, start)[: len(ids)])
    return torch.cat(parts)


def gap_of(model: Llama, ids_bl: Tensor, short: int, start: int) -> tuple[Tensor, Tensor]:
    """Losses of the positions from `start` on, (B, L - start): with the short context, and with all.

    `start` is a multiple of `short`. Full losses are of all positions from 1 on, (B, L - 1).
    """
    b, length = ids_bl.shape
    full = losses_of(model, ids_bl, WINDOWS_AT_ONCE, 1)
    first = range(start - short, length - short, short)
    chunks = torch.stack([ids_bl[:, i : i + 2 * short] for i in first], 1).flatten(0, 1)
    return losses_of(model, chunks, CHUNKS_AT_ONCE, short).view(b, -1), full


def copy_margin(model: Llama, ids_bl: Tensor, distances: list[int], seed: int = 0) -> Tensor:
    """(B, distances): how many nats a token an earlier copy of a foreign passage saves at the end.

    The passage is of another of the windows; it ends the window, and stands `distance` before too.
    """
    b, length = ids_bl.shape
    places = np.random.default_rng(seed).integers(0, length - PASSAGE, b)
    ending = ids_bl.clone()
    for i, place in enumerate(places):
        other = ids_bl[(i + b // 2 + 1) % b]
        ending[i, -PASSAGE:] = other[place : place + PASSAGE]
    losses = []
    for distance in [None, *distances]:
        ids = ending.clone()
        if distance is not None:
            at = length - PASSAGE - distance
            ids[:, at : at + PASSAGE] = ending[:, -PASSAGE:]
        tail = losses_of(model, ids, WINDOWS_AT_ONCE, length - PASSAGE + SETTLED)
        losses.append(tail.mean(1))
    return torch.stack([losses[0] - of for of in losses[1:]], 1)


def measure(model: Llama, ids_bl: Tensor, copied_bl: Tensor, short: int = 1024) -> dict[str, Any]:
    """All measures of the windows of held-out documents."""
    length = ids_bl.shape[1]
    bounds = [1] + [length // 2**i for i in range(5, 0, -1)] + [length * 3 // 4, length]
    far, by_position = [], []
    for ids in ids_bl.split(CHUNKS_AT_ONCE):
        near, full = gap_of(model, ids, short, length // 2)
        far.append((near - full[:, length // 2 - 1 :]).mean(1))
        by_position.append(
            torch.stack([full[:, a - 1 : b - 1].mean(1) for a, b in pairwise(bounds)], 1)
        )
    distances = [length // 16, length // 8, length // 4, length // 2, length * 7 // 8]
    return {
        "far_gain": rounded(torch.cat(far)),
        "loss_by_position": rounded(torch.cat(by_position)),
        "position_bounds": bounds,
        "copy_margin": rounded(copy_margin(model, copied_bl, distances)),
        "copy_distances": distances,
    }


def rounded(t: Tensor) -> Any:
    return np.round(t.double().cpu().numpy(), 5).tolist()


def best_model(shape: Shape, device: str, dtype: torch.dtype = torch.bfloat16) -> Llama:
    """As fast as the device allows; plain float32 on a CPU."""
    if device == "cpu":
        return Llama(shape, device, torch.float32, "math", PLAIN)
    return Llama(shape, device, dtype, "cudnn", compiled())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("model", "windows", "result"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--short", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    from windows import Windows

    model = best_model(Shape.read(given.model), given.device)
    model.load(packed(given.model))
    held_out = Windows(given.windows).held_out()
    ids = torch.from_numpy(held_out.ids.astype(np.int64)).to(given.device)
    copied = ids[torch.from_numpy(held_out.copied).to(given.device)]
    result = {**held_out.names(), **measure(model, ids, copied, given.short)}
    given.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
