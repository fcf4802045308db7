"""How many actors a run may have, what each holds, and the wait for the GPUs that it needs.

Scoring starts on every GPU that is free, if there are tasks enough. From there Ray Data sizes the pools
within these bounds: it measures what an actor of each stage gives, asks the cluster for nodes in that
proportion, starts scoring actors as windows pile up and lets a pool shrink that waits. A GPU actor takes
no CPU and the driver none, so that whatever CPUs there are go to the window actors and nothing waits for
a core that another holds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import ray
from ray.data import ActorPoolStrategy

from longattn.config import Workers
from longattn.errors import RunError
from longattn.pipeline.execution import BLOCK_BYTES

log = logging.getLogger("longattn")

# Actors of a pool without a bound of its own: with none at all Ray Data 2.60 was seen to use two of three
# GPU nodes. So it does where a node is given back before an actor is placed on it, whatever the bound.
MOST_ACTORS = 4096


def actor_pool(
    pool: tuple[int, int | None], blocks_at_once: int = 1, first: int = 0
) -> ActorPoolStrategy:
    """From the smallest to the largest pool, as Ray Data wants it; `first` is its size at first.

    Of several blocks at once an actor computes one, while others are fetched, cut into batches and
    given on.
    """
    smallest, largest = pool[0], pool[1] or max(pool[0], MOST_ACTORS)
    return ActorPoolStrategy(
        min_size=smallest,
        max_size=largest,
        initial_size=min(max(smallest, first), largest),
        max_concurrent_calls_per_actor=blocks_at_once,
    )


@dataclass(frozen=True)
class Pools:
    """Actors of a run and what each holds."""

    window: tuple[int, int | None]
    window_cpus: float
    score: tuple[int, int | None]
    score_cpus: float
    score_gpus: float
    device: Literal["cuda", "cpu"]
    threads: int  # of a scoring actor that computes on a CPU
    idle_gpus: int = 0  # for how many scoring actors there are free GPUs at the start

    @property
    def block_bytes(self) -> int:
        return BLOCK_BYTES[self.device]

    @property
    def registries(self) -> int:
        """Actors that share the registry of documents.

        One takes 1,900 calls a second, two for each document: 15 GPUs of 64K-token documents.
        """
        return 8 if self.device == "cuda" else 1


def plan_pools(
    workers: Workers,
    dtype: str | None,
    meanwhile: Callable[[], object] = lambda: None,
    *,
    tell: bool = True,
) -> Pools:
    """Fit the pools to the cluster: scorers on GPUs where it has or can get some, else on its CPUs.

    With GPUs it does `meanwhile` and waits until one can be had, which starts the first GPU node of
    a cluster that grows from none. On CPUs, scoring actors times their threads equal the cores, and
    each reserves half of its threads, so that the other stages always find room.

    Args:
        tell: whether to log that no GPU was found.

    Raises:
        RunError: no GPU within `workers.wait_seconds`, or one that torch cannot use, unless `dtype`
            is set to float32, which a CPU computes too.
    """
    window, score = workers.window, workers.score
    cluster = ray.cluster_resources()
    gpus = workers.gpus_per_scorer
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU", 0) or _possible_gpus() else 0.0
    if gpus:
        free = ray.available_resources().get("GPU", 0)  # after the wait it lags behind
        device = _await_gpu(gpus, workers.wait_seconds, meanwhile)
        if device == "cpu" and dtype != "float32":
            raise RunError(
                "torch sees no CUDA device on a node with a GPU: install a build of torch for its "
                "driver there, or set scorer.dtype: float32 to compute on the CPUs of GPU nodes"
            )
        return Pools(window, 1, score, 0, gpus, device, 1, int(free / gpus))
    if tell and workers.gpus_per_scorer is None:
        log.info(
            "no GPU in the cluster: scoring on its CPUs; for GPU nodes that are yet to come set "
            "workers.gpus_per_scorer: 1"
        )
    cores = max(1, int(cluster.get("CPU", 1)))
    node = max(1, *(int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]))
    actor_pool = min(max(cores // 4, score[0]), score[1] or cores)
    threads = max(1, min(cores // actor_pool, node))
    pool = (window[0], max(window[0], min(window[1] or cores, cores // 8)))
    if cores < 4:
        return Pools(pool, 0.25, (actor_pool, actor_pool), 0.5 / actor_pool, 0, "cpu", threads)
    return Pools(pool, 1, (actor_pool, actor_pool), max(1, threads // 2), 0, "cpu", threads)


def _possible_gpus() -> float:
    """GPUs that the cluster may grow to, where its autoscaler tells (Ray's own does not), or 0."""
    return (ray._private.state.state.get_max_resources_from_cluster_config() or {}).get("GPU", 0)


def _await_gpu(
    gpus: float, seconds: float, meanwhile: Callable[[], object]
) -> Literal["cuda", "cpu"]:
    """Wait until a scorer's share of GPUs is free; what torch can compute on there."""
    found = ray.remote(num_cpus=0, num_gpus=gpus)(_device).remote()
    meanwhile()
    if not ray.wait([found], timeout=min(10, seconds))[0]:
        log.info("waiting up to %g s (workers.wait_seconds) for a GPU", seconds)
        if not ray.wait([found], timeout=max(0, seconds - 10))[0]:
            ray.cancel(found, force=True)
            raise RunError(
                f"no GPU within workers.wait_seconds {seconds:g}: the cluster has "
                f"{ray.cluster_resources().get('GPU', 0):g} GPUs, of which "
                f"{ray.available_resources().get('GPU', 0):g} free, and a scorer wants {gpus:g}; "
                "workers.gpus_per_scorer: 0 scores on CPUs"
            )
    return ray.get(found)


def _device() -> Literal["cuda", "cpu"]:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
