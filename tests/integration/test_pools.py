"""Pools on a cluster of two cores; on one that grows GPU nodes: tests/integration/test_cluster.py."""

import pytest

from longattn.config import Workers
from longattn.errors import RunError
from longattn.pipeline import pools
from longattn.pipeline.pools import Pools, plan_pools
from longattn.pipeline.steps import scoring_pool


def test_on_two_cores_all_stages_fit_beside_a_driver_that_took_one(ray_cluster):
    planned = plan_pools(Workers(), None)
    taken = planned.window[0] * planned.window_cpus + planned.score[0] * planned.score_cpus
    assert taken <= 1 and planned.score_gpus == 0
    assert planned.window == planned.score == (1, 1) and planned.threads == 2
    assert planned.device == "cpu"


def test_a_gpu_that_does_not_come_is_told_in_one_line(ray_cluster):
    with pytest.raises(RunError, match=r"workers\.wait_seconds 0\.5: the cluster has 0 GPUs"):
        plan_pools(Workers(gpus_per_scorer=1, wait_seconds=0.5), None)


@pytest.mark.parametrize(
    ("idle", "tasks", "pool", "first"),
    [(3, 9, (1, None), 3), (3, 2, (1, None), 2), (3, 9, (1, 2), 2), (0, 9, (4, None), 4)],
)
def test_scoring_starts_on_every_idle_gpu_that_has_a_task(idle, tasks, pool, first):
    planned = Pools((1, None), 1, pool, 0, 1, "cuda", 1, idle)
    assert scoring_pool(planned, tasks)["compute"].initial_size == first


def test_a_gpu_node_without_cuda_scores_only_where_its_dtype_was_chosen(ray_cluster, monkeypatch):
    monkeypatch.setattr(pools, "_await_gpu", lambda *given: "cpu")
    with pytest.raises(RunError, match="torch sees no CUDA device"):
        plan_pools(Workers(gpus_per_scorer=1), None)
    planned = plan_pools(Workers(gpus_per_scorer=0.5), "float32")
    assert (planned.device, planned.score_gpus) == ("cpu", 0.5)
    monkeypatch.setattr(pools, "_await_gpu", lambda *given: "cuda")
    planned = plan_pools(Workers(gpus_per_scorer=1), None)
    assert (planned.score_cpus, planned.window_cpus) == (0, 1)
    assert planned.device == "cuda" and planned.block_bytes == 32 << 20
