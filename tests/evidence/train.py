"""Continue the training of a small Llama on one arm's windows with one seed, then measure: one JSON.

    python train.py MODEL WINDOWS ARM SEED RESULT.json [--tokens 50_000_000]

AdamW on float32 weights, of which bfloat16 copies compute; a constant rate after a warm-up; one epoch.
Does nothing where RESULT.json is there already.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import draw
from llama import Llama, Shape, packed
from measure import best_model, measure
from numpy.typing import NDArray
from torch import Tensor
from windows import Windows


@dataclass(frozen=True)
class Recipe:
    """What all arms and seeds share."""

    tokens: int = 50_000_000
    windows_a_step: int = 8
    rate: float = 3e-4
    warm_up: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0


class Trainer:
    """Steps of AdamW on a model's weights."""

    def __init__(self, model: Llama, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.masters = {
            n: torch.zeros_like(w, dtype=torch.float32) for n, w in model.weights.items()
        }
        for t in self.masters.values():
            t.grad = torch.zeros_like(t)

    def start(self, weights: dict[str, Tensor]) -> None:
        """From these weights, with a fresh optimizer."""
        self.model.load(weights)
        for name, t in weights.items():
            self.masters[name].data.copy_(t)
        groups = [
            {
                "params": [t for t in self.masters.values() if t.ndim > 1],
                "weight_decay": self.recipe.weight_decay,
            },
            {"params": [t for t in self.masters.values() if t.ndim == 1], "weight_decay": 0.0},
        ]
        fused = self.model.device != "cpu"
        self.optimizer = torch.optim.AdamW(
            groups, lr=self.recipe.rate, betas=(0.9, 0.95), fused=fused
        )
        self.done = 0

    def step(self, ids_bl: Tensor) -> Tensor:
        """One step; the loss stays on the device."""
        leaves = list(self.model.weights.values())
        for leaf in leaves:
            leaf.grad = None
        loss = self.model.mean_loss(ids_bl)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            masters = list(self.masters.values())
            torch._foreach_copy_(
                [t.grad for t in masters if t.grad is not None],
                [leaf.grad for leaf in leaves if leaf.grad is not None],
            )
            torch.nn.utils.clip_grad_norm_(masters, self.recipe.clip, foreach=True)
            self.done += 1
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.rate * min(1.0, self.done / self.recipe.warm_up)
            self.optimizer.step()
            torch._foreach_copy_(leaves, masters)
        return loss.detach()


def train(
    trainer: Trainer, weights: dict[str, Tensor], ids_nl: NDArray[np.uint16]
) -> dict[str, Any]:
    """Train on the windows in their order; what it took, and the training loss every ten steps."""
    model, size = trainer.model, trainer.recipe.windows_a_step
    trainer.start(weights)
    ids = torch.from_numpy(ids_nl.astype(np.int32)).to(model.device)
    steps = len(ids) // size
    synchronize(model)
    started, losses = time.monotonic(), []
    for i in range(steps):
        losses.append(trainer.step(ids[i * size : (i + 1) * size].long()))
    synchronize(model)
    seconds, tokens = time.monotonic() - started, steps * size * ids.shape[1]
    return {
        "steps": steps,
        "trained_tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_a_second": round(tokens / seconds),
        "train_loss": [round(x, 4) for x in torch.stack(losses).float()[::10].tolist()],
    }


def synchronize(model: Llama) -> None:
    if model.device != "cpu":
        torch.cuda.synchronize(model.device)


class Experiment:
    """The pool, its scores and the held-out windows: what every run needs."""

    def __init__(self, windows: Windows, scores: dict[str, NDArray[Any]], device: str) -> None:
        self.windows, self.rows = windows, windows.pool()
        self.category = windows.column("category")[self.rows]
        self.scores = {name: np.asarray(of, np.float64) for name, of in scores.items()}
        self.document = windows.column("document")
        self.repository = windows.column("repository")
        self.held_out = windows.held_out()
        self.ids = torch.from_numpy(self.held_out.ids.astype(np.int64)).to(device)
        self.copied = self.ids[torch.from_numpy(self.held_out.copied).to(device)]

    def run(
        self, trainer: Trainer, weights: dict[str, Tensor], arm: str, seed: int, short: int
    ) -> dict[str, Any]:
        """Train and measure one arm with one seed; `base` trains nothing."""
        told: dict[str, Any] = {"arm": arm, "seed": seed, "recipe": asdict(trainer.recipe)}
        if arm == "base":
            trainer.start(weights)
        else:
            length = self.windows.ids.shape[1]
            wanted = trainer.recipe.tokens // length
            rows = self.rows[draw(arm, seed, self.category, self.scores, wanted)]
            told |= {
                "documents": len(set(self.document[rows].tolist())),
                "repositories": len(set(self.repository[rows].tolist())),
                **train(trainer, weights, self.windows.ids[rows]),
            }
        started = time.monotonic()
        told |= {**self.held_out.names(), **measure(trainer.model, self.ids, self.copied, short)}
        told["measure_seconds"] = round(time.monotonic() - started, 2)
        return told


def write_whole(path: Path, told: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(told))
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("model", "windows"):
        parser.add_argument(name, type=Path)
    parser.add_argument("arm")
    parser.add_argument("seed", type=int)
    parser.add_argument("result", type=Path)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--short", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    if given.result.exists():
        return
    weights = packed(given.model)
    model = best_model(Shape.read(given.model), given.device)
    model.load(weights)
    windows = Windows(given.windows)
    with np.load(given.windows / "scores.npz") as scores:
        experiment = Experiment(windows, dict(scores), given.device)
    trainer = Trainer(model, Recipe(tokens=given.tokens))
    write_whole(given.result, experiment.run(trainer, weights, given.arm, given.seed, given.short))


if __name__ == "__main__":
    main()
