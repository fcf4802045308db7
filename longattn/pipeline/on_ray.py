"""The stages of a run on a Ray cluster, as one streaming execution.

Tasks that name splits -> CPU actors that read, tokenize and cut windows -> scoring actors -> a sink
that makes labelled files appear whole. No stage collects.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.data.context import DataContext
from ray.data.exceptions import ExecutionTimeoutError

from longattn.config import Config
from longattn.corpus.sources import group_splits
from longattn.errors import HeldError, Interrupted, RunError
from longattn.pipeline.display import watched
from longattn.pipeline.labelled_sink import LabelledSink
from longattn.pipeline.monitor import Monitor
from longattn.pipeline.pools import Pools, actor_pool
from longattn.pipeline.steps import (
    RETRIES,
    dataset_of_tasks,
    with_scores,
    write_with,
)
from longattn.pipeline.stopping import Stop, describe_wait
from longattn.pipeline.window_actor import SplitWindows
from longattn.resume.claims import DocumentRegistry
from longattn.resume.remaining import Remaining
from longattn.scoring.settings import ScoreSettings

log = logging.getLogger("longattn")


def execute(
    config: Config,
    settings: ScoreSettings,
    pools: Pools,
    left: Remaining,
    generation: int,
    stop: Stop,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The streaming execution; returns what the scorers did, and the claims' last state.

    Raises RunError; Interrupted after SIGTERM.
    """
    claims = DocumentRegistry(left.labelled, left.documents, pools.claims)

    def sign() -> tuple[Any, str]:
        state = claims.state()
        return (monitor.snapshot(), state), describe_wait(
            state["at"], pools.window_cpus, pools.score_gpus
        )

    monitor = Monitor(config.max_bad_fraction, left.seen)
    log.info(
        "%d splits to read (%d done); window actors %s, scoring actors %s on %s",
        len(left.splits), left.finished, _told(pools.window), _told(pools.score), pools.device,
    )  # fmt: skip
    context = data_context(config, pools)
    with DataContext.current(context):
        groups = group_splits(left.splits)
        windows = dataset_of_tasks(groups).map_batches(
            SplitWindows,
            fn_constructor_kwargs={
                "model": config.scorer.model,
                "window": config.window.tokens,
                "min_distance": config.min_distance,
                "samples": {source.category: source.sample for source in config.sources},
                "output": config.output,
                "max_record_bytes": config.max_record_bytes,
                "block_bytes": pools.block_bytes,
                "report": monitor.window_report(),
                "claims": claims,
                "generation": generation,
            },
            batch_size=1,
            batch_format="numpy",
            compute=actor_pool(pools.window),
            num_cpus=pools.window_cpus,
            **RETRIES,
        )
        scored = with_scores(
            windows, settings, config.scorer.batch, pools, monitor.score_report(), len(groups)
        )
        try:
            size = sum(split.size for split in left.splits)
            with watched(monitor, size, config.output), stop.drained(claims.stop, sign):
                write_with(scored, LabelledSink(config.output, monitor.write_report()))
        except (Interrupted, HeldError):
            raise
        except ExecutionTimeoutError as error:
            raise RunError(
                f"no progress for {context.execution_no_progress_timeout_s:.0f} s; waited for {sign()[1]}; run again to go on"
            ) from error
        except Exception as error:
            stopped = monitor.snapshot()["stopped"]
            raise RunError(stopped or innermost_reason(error)) from error
    return monitor.snapshot()["scored"], claims.state()


def data_context(config: Config, pools: Pools) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = pools.block_bytes  # else smaller yields are merged
    # Ray Data stops a run that stands still for so long; a lost GPU may take as long to be made up.
    stall = max(context.execution_no_progress_timeout_s, config.workers.wait_seconds)
    context.execution_no_progress_timeout_s = stall
    context.enable_progress_bars = False
    return context


def _told(pool: tuple[int, int | None]) -> str:
    return f"{pool[0]} to {pool[1] or 'what the cluster has'}"


def innermost_reason(error: BaseException) -> str:
    """The innermost cause of a failure of Ray, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:500]
