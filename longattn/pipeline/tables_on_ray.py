"""Score tables on a Ray cluster: a pool of actors, each table a task of its own.

A model's actors take a GPU each, where there are some; those of CPU measures a core. Ray Data starts
and ends actors as tables wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.data.context import DataContext

from longattn.cluster import connected, require_shared_folder
from longattn.config import Workers
from longattn.errors import HeldError, Interrupted, RunError
from longattn.pipeline.failures import reason_of
from longattn.pipeline.on_ray import OnDriverNode, describe_wait
from longattn.pipeline.pools import Pools, actor_pool, plan_pools
from longattn.pipeline.steps import RETRIES
from longattn.pipeline.stopping import Sign, Stop
from longattn.pipeline.table_monitor import TableMonitor, TableProgress, watched_tables
from longattn.pipeline.table_stage import ScoreTables, TableReports, TableStage

MOST_TASKS = 4096  # of one score; each then has several tables


@contextmanager
def tables_on_ray(output: str, workers: Workers, dtype: str | None) -> Iterator[RayTables]:
    """A cluster that computes tables, for a block."""
    with connected():
        require_shared_folder(output)
        yield RayTables(workers, plan_pools(workers, dtype, tell=False))


class RayTables:
    """Computes the tables of a score in a pool of actors."""

    def __init__(self, workers: Workers, pools: Pools) -> None:
        self.workers, self.pools = workers, pools

    @property
    def device(self) -> str:
        return self.pools.device

    def execute(self, stage: TableStage, labelled: Sequence[str], stop: Stop) -> TableProgress:
        """Write the tables of labelled files; raises RunError, or Interrupted after a signal."""
        name, files = stage.score.name, len(labelled)
        monitor = OnDriverNode(TableMonitor, name, files, stage.record.parts.window, export=True)
        reports = TableReports(monitor)

        def progress() -> TableProgress:
            now: TableProgress = monitor.ask("progress")()
            return now

        pool = self._pool(stage, files)

        def sign() -> Sign:
            waits = describe_wait([], pool["num_cpus"], pool["num_gpus"] or 0)
            return Sign(now := progress(), waits, now.computing)

        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        stall = max(context.execution_no_progress_timeout_s, self.workers.wait_seconds)
        context.execution_no_progress_timeout_s = stall
        here = replace(stage, device=self.pools.device, threads=self.pools.threads)
        with DataContext.current(context):
            tasks = ray.data.from_items(
                [{"url": url} for url in labelled], override_num_blocks=min(files, MOST_TASKS)
            )
            written = tasks.map_batches_internal(
                ScoreTables,
                fn_constructor_args=(here, reports),
                batch_size=None,
                batch_format="numpy",
                **pool,
                **RETRIES,
            )
            try:
                with (
                    watched_tables(name, progress),
                    stop.draining(lambda: monitor.ask("stop")(), sign),
                ):
                    for _ in written.iter_batches(batch_size=None):
                        pass
            except (Interrupted, HeldError):
                raise
            except Exception as error:
                failures = progress().failures
                why = str(failures[0]) if failures else reason_of(_innermost(error))
                raise RunError(f"score {name}: {why}; run again to go on") from error
        return progress()

    def _pool(self, stage: TableStage, files: int) -> dict[str, Any]:
        """How Ray Data is to run the actors."""
        pools = self.pools
        if stage.score.model is None:
            cpus = min(1.0, pools.window_cpus)
            return {"compute": actor_pool(pools.window), "num_cpus": cpus, "num_gpus": None}
        first = min(pools.idle_gpus, files)
        return {
            "compute": actor_pool(pools.score, 1, first),
            "num_cpus": pools.score_cpus,
            "num_gpus": pools.score_gpus or None,
        }


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
