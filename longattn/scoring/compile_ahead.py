"""The kernels of a GPU, compiled while a process still imports and reads: 5 to 15 s, once a machine.

Triton compiles a kernel at its first call and keeps the result on disk (`TRITON_CACHE_DIR`). Here the
first calls are made on a few rows, in threads, since most of a compilation needs no Python.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_LENGTH, _DISTANCE = 256, 64


@dataclass(frozen=True)
class Compiling:
    """What ends when kernels are compiled: those that every scorer uses, and the one with a reference."""

    usual: list[Future[Any]]
    with_reference: list[Future[Any]]


@lru_cache(maxsize=8)
def compile_ahead(head_dim: int, dtype: str, device: str = "cuda") -> Compiling:
    """Start to compile for queries and keys of `head_dim`, a multiple of 8, and a dtype of a GPU."""
    from longattn.scoring import triton_kernel as kernels

    # All threads launch on the stream of this one's device; nothing here is read by another.
    table_vhd = torch.zeros((1, 1, head_dim), dtype=getattr(torch, dtype), device=device)
    ids_bl = torch.zeros((1, _LENGTH), dtype=torch.int32, device=device)
    first_b = torch.full((1,), _DISTANCE, dtype=torch.int32, device=device)
    turn_ld = torch.zeros((_LENGTH, head_dim), device=device)
    centre_gd = torch.zeros((1, head_dim), device=device)
    halved = dtype == "float32"
    held = torch.float16 if halved else table_vhd.dtype
    k = torch.zeros((*((2,) if halved else ()), 1, 1, _LENGTH, head_dim), dtype=held, device=device)
    q = k[..., _DISTANCE:, :].contiguous()
    queries = kernels.Turns(turn_ld, turn_ld)
    keys = kernels.Turns(turn_ld, turn_ld, centre_gd, centre_gd)

    def first_pass() -> Any:
        return kernels.first_pass(q, k, _DISTANCE, first_b, reference=True)

    usual: list[Callable[[], Any]] = [
        lambda: kernels.attention_sums(q, k, [_DISTANCE], first_b),
        lambda: kernels.lost_share(q, k, _DISTANCE, first_b),
        lambda: kernels.gather_rotate(table_vhd, ids_bl, queries, first_b, 1),
        lambda: kernels.gather_rotate(table_vhd, ids_bl, keys, first_b, 1),
    ]

    def on_device(call: Callable[[], Any]) -> None:
        with torch.cuda.device(device):
            call()

    pool = ThreadPoolExecutor(5, "compiling")
    started = [pool.submit(on_device, call) for call in [*usual, first_pass]]
    pool.shutdown(wait=False)
    return Compiling(started[:-1], started[-1:])


def head_dim_of(folder: Path) -> int | None:
    """The head_dim that a checkpoint's config names, without transformers; None where it does not."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return dim if isinstance(dim, int) and dim > 0 and dim % 8 == 0 else None
