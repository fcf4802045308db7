"""Train all arms on the cards of one machine: start one of these a card.

    CUDA_VISIBLE_DEVICES=3 python many.py ROOM [--tokens 50_000_000] [--seconds 700]

ROOM/model holds config.json from the start; ROOM/model/model.safetensors and ROOM/windows may come
later, and compiling goes on meanwhile. A run, which is a line of ROOM/runs.txt (`arm seed`, in order),
is done by whichever process claims it first (a folder made). Results are ROOM/results/<arm>-<seed>.json;
a run with a result is not run again. No run starts that would not end within --seconds of the start.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from llama import Shape, packed
from measure import CHUNKS_AT_ONCE, WINDOWS_AT_ONCE, best_model
from train import Experiment, Recipe, Trainer, write_whole
from windows import Windows


def log(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def is_mine(path: Path) -> bool:
    """Whether this process is the first to claim it."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.2)


def warm_up(trainer: Trainer, length: int, short: int) -> None:
    """Compile everything on random weights and windows."""
    model, generator = trainer.model, torch.Generator().manual_seed(0)
    trainer.start(model.shape.random_weights())
    size = max(trainer.recipe.windows_a_step, WINDOWS_AT_ONCE)
    ids = torch.randint(model.shape.vocabulary, (size, length), generator=generator)
    trainer.step(ids[: trainer.recipe.windows_a_step].to(model.device))
    model.token_losses(ids[:WINDOWS_AT_ONCE].to(model.device))
    chunks = ids.flatten()[: 2 * short].expand(CHUNKS_AT_ONCE, -1).contiguous()
    model.token_losses(chunks.to(model.device), short)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("room", type=Path)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--short", type=int, default=1024)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    room, started = given.room, time.monotonic()
    shape = Shape.read(room / "model")
    model = best_model(shape, given.device)
    model.load(shape.random_weights())
    trainer = Trainer(model, Recipe(tokens=given.tokens))
    warm_up(trainer, given.length, given.short)
    log("warm")
    wait_for(room / "model" / "model.safetensors")
    weights = packed(room / "model")
    trainer.start(weights)
    wait_for(room / "windows" / "windows.parquet")
    windows = Windows(room / "windows")
    with np.load(room / "windows" / "scores.npz") as scores:
        experiment = Experiment(windows, dict(scores), given.device)
    log(f"{len(experiment.rows)} windows of the pool")
    longest = 0.0
    for line in (room / "runs.txt").read_text().splitlines():
        arm, seed = line.split()
        result = room / "results" / f"{arm}-{seed}.json"
        left = given.seconds - (time.monotonic() - started)
        if result.exists() or left < longest or not is_mine(result.with_suffix(".claim")):
            continue
        began = time.monotonic()
        told = experiment.run(trainer, weights, arm, int(seed), given.short)
        write_whole(result, told)
        took = time.monotonic() - began
        longest = max(longest, took)
        log(
            f"{arm} {seed} {told.get('tokens_a_second')} tokens/s, {took:.0f} s, far gain "
            f"{np.mean(told['far_gain']):.4f}"
        )


if __name__ == "__main__":
    main()
