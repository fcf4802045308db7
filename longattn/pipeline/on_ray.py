"""The stages of a run on a Ray cluster, as one streaming execution.

Tasks that name splits -> CPU actors that read, tokenize and cut windows -> scoring actors -> a sink
that makes labelled files appear whole. No stage collects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data.context import DataContext
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longattn.cluster import connected, require_shared_folder
from longattn.config import Config
from longattn.corpus.sources import group_splits
from longattn.errors import HeldError, Interrupted, RunError
from longattn.pipeline.display import watched
from longattn.pipeline.execution import Outcome, Work
from longattn.pipeline.failures import reason_of
from longattn.pipeline.feed import Feed
from longattn.pipeline.monitor import Monitor, Progress, RunMonitor
from longattn.pipeline.pools import Pools, actor_pool, plan_pools
from longattn.pipeline.score_actor import ScoreStage
from longattn.pipeline.steps import RETRIES, LabelledSink, dataset_of_tasks, with_scores, write_with
from longattn.pipeline.stopping import Sign, Stop, busy_machine
from longattn.pipeline.streamed import (
    StreamedScores,
    StreamedSink,
    StreamedSplits,
    TaskQueue,
    dataset_of_queue,
    filled,
    streaming,
)
from longattn.pipeline.window_actor import SplitWindows
from longattn.resume.claims import Caller, DocumentRegistry, shared_registries
from longattn.scoring.settings import ScoreSettings
from longattn.text import counted

log = logging.getLogger("longattn")


@contextmanager
def on_ray(
    config: Config, settings: ScoreSettings, meanwhile: Callable[[], object]
) -> Iterator[RayStages]:
    """A cluster with the pools of a run, for a block."""
    with connected():
        require_shared_folder(config.output)
        yield RayStages(config, plan_pools(config.workers, settings.dtype, meanwhile))


class OnDriverNode:
    """A `Caller` of an actor on the driver's node.

    On another, a spot node's death would end the run, and the actor would keep an idle node from
    being given back.
    """

    def __init__(self, target: Any, *arguments: Any, **named: Any) -> None:
        def made() -> Any:
            return target(*arguments, **named)

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0)(_Hosted)
        self._actor = actor.options(scheduling_strategy=here).remote(made)

    def ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        reference = self._actor.call.remote(method, *arguments)
        return lambda: ray.get(reference)


class _Hosted:
    """The actor: it makes its target where it runs, and calls it."""

    def __init__(self, made: Callable[[], Any]) -> None:
        self._target = made()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._target, method)(*arguments)


def _failure(monitor: Monitor, error: Exception) -> str:
    """Why the run failed, also where its monitor, which knows, was lost itself."""
    try:
        return run_failure(monitor.progress(), error)
    except RayActorError as lost:
        if "never ran" in str(lost):  # a Ray without tokens cannot call a driver that asks for one
            return (
                "Ray started no actor on the driver's node: it may have ended meanwhile, or been started "
                "with another RAY_AUTH_MODE than is set here; RAY_ADDRESS=local starts one for this run"
            )
        return f"an actor on the driver's node was lost; run again to go on ({reason_of(lost)})"


class RayStages:
    """The stages of a run in the pools of a cluster."""

    def __init__(self, config: Config, pools: Pools) -> None:
        self.config, self.pools = config, pools

    @property
    def device(self) -> str:
        return self.pools.device

    def execute(self, work: Work, stop: Stop) -> Outcome:
        """The streaming execution; raises RunError, or Interrupted after a signal."""
        pools, left = self.pools, work.left
        registry = DocumentRegistry(
            [
                OnDriverNode(lambda part=part: part)
                for part in shared_registries(left.labelled, left.documents, pools.registries)
            ]
        )
        monitor = Monitor(
            OnDriverNode(RunMonitor, self.config.max_bad_fraction, left.seen, export=True)
        )
        log.info(
            "%s to read (%d done); window actors %s, scoring actors %s on %s",
            counted(len(left.splits), "split"),
            left.finished,
            _bounds(pools.window),
            _bounds(pools.score),
            pools.device,
        )

        def sign() -> Sign:
            progress, state = monitor.progress(), registry.state()
            if work.waits_for_files(progress):
                return Sign(object())
            waits = describe_wait(state.at, pools.window_cpus, pools.score_gpus)
            return Sign((progress, state), waits, progress.computing)

        context = self._context(work.feed)
        with DataContext.current(context):
            queue = OnDriverNode(TaskQueue) if work.feed else None
            scored = self._scored(work, registry, monitor, queue)
            sink = (StreamedSink if queue else LabelledSink)(
                self.config.output, monitor.write_report(), monitor.failure_report()
            )
            try:
                with (
                    watched(monitor, work.stored_bytes, self.config.output, work.lag),
                    stop.draining(work.halt(registry), sign),
                    work.attended(monitor, registry),
                    filled(work.feed, queue),
                ):
                    write_with(scored, sink)
            except (Interrupted, HeldError):
                raise
            except ExecutionTimeoutError as error:
                seconds = context.execution_no_progress_timeout_s
                raise RunError(
                    f"no progress for {seconds:.0f} s; waited for {sign().waiting}; run again to go on"
                    f"{busy_machine()}"
                ) from error
            except Exception as error:
                raise RunError(_failure(monitor, error)) from error
        return Outcome(monitor.progress(), registry.state())

    def _scored(
        self, work: Work, registry: DocumentRegistry, monitor: Monitor, queue: Caller | None
    ) -> Any:
        """The stages but the last; with a `queue`, those of a run that goes on."""
        pools = self.pools
        groups = group_splits(work.left.splits)
        tasks = dataset_of_queue(queue) if queue else dataset_of_tasks(groups)
        windows = tasks.map_batches(
            StreamedSplits if queue else SplitWindows,
            fn_constructor_args=(
                work.window_stage(pools.block_bytes),
                registry,
                monitor.window_report(),
                monitor.failure_report(),
            ),
            batch_size=1,
            batch_format="numpy",
            compute=actor_pool(pools.window),
            num_cpus=pools.window_cpus,
            **RETRIES,
        )
        stage = ScoreStage(work.settings, pools.device, pools.threads, self.config.scorer.batch)
        reports = monitor.score_report(), monitor.failure_report(), monitor.pulse_report()
        scores = StreamedScores if queue else None
        return with_scores(windows, stage, pools, reports, len(groups), scores)

    def _context(self, feed: Feed | None) -> DataContext:
        context = DataContext.get_current().copy()
        # The window stage gives blocks of this size, and none is merged with the next or cut: so
        # the labelled files of a run are the same whatever the cluster.
        context.target_max_block_size = self.pools.block_bytes - 1
        # Ray Data stops a run that stands still for so long; a lost GPU may take as long to be
        # made up.
        stall = max(context.execution_no_progress_timeout_s, self.config.workers.wait_seconds)
        context.execution_no_progress_timeout_s = stall
        context.enable_progress_bars = False
        if feed:
            streaming(context, feed.idle)
        return context


def _bounds(pool: tuple[int, int | None]) -> str:
    return f"{pool[0]} to {pool[1] or 'what the cluster has'}"


def run_failure(progress: Progress, error: BaseException) -> str:
    """Why a run failed, in one line: what a stage reported, or else the innermost cause."""
    if progress.stopped:
        return progress.stopped
    for failure in progress.failures:
        log.debug("%s", failure.stack)
    if progress.failures:
        return str(progress.failures[0])
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)


def describe_wait(at: list[str], cpus: float, gpus: float) -> str:
    """What a run without progress waits for, as far as can be seen.

    Args:
        at: documents that are being tokenized.
        cpus, gpus: what one actor of each pool needs.
    """
    resources = ray.cluster_resources()
    if resources.get("GPU", 0) < gpus:
        return f"a node with {gpus:g} GPU; the cluster has {resources.get('GPU', 0):g}"
    free = ray.available_resources()
    if free.get("CPU", 0) < cpus and free.get("CPU", 0) == 0:
        return "free CPUs: other work on the cluster may have all of them"
    if at:
        return f"the tokenizer, at documents {', '.join(at[:3])}"
    return "its scorers, or the storage; `ray status` and the Ray dashboard say more"
