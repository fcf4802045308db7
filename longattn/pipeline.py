"""A whole job: `run` composes the stages, executes them, and tells what came of it.

`run` is one streaming execution: tasks that name splits -> CPU actors that read, tokenize and cut
windows -> scoring actors -> a sink that makes labelled files appear whole. No stage collects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ray.data.context import DataContext
from ray.data.exceptions import ExecutionTimeoutError

from longattn import ledger
from longattn.claims import Claims
from longattn.composition import RETRIES, score_again_with, score_with, tasks_of, write_to
from longattn.config import Config, redact
from longattn.corpus import check_sources, group_splits, list_splits
from longattn.display import watched
from longattn.lock import HeldError, Hold, held
from longattn.monitor import Monitor, RunError
from longattn.pools import Pools, actors, connected, plan_pools
from longattn.records import Split
from longattn.selection import CategorySelection, select, undecided, unscored
from longattn.stages import LabelledSink, ScoreSettings
from longattn.stopping import Interrupted, Stop, stoppable, waits_for
from longattn.storage import join, read_json, remove, sweep, told_when_slow, write_json
from longattn.windows import SplitWindows

if TYPE_CHECKING:
    from longattn.scoring.checkpoint import Checkpoint

log = logging.getLogger("longattn")

TOLD = 10  # files that are named in the log; of more, how many


@dataclass(frozen=True)
class RunSummary:
    """What a run did; `summary.json` holds the same."""

    output: str
    fingerprint: str
    categories: dict[str, dict[str, Any]]
    stages: dict[str, dict[str, float]]
    splits: dict[str, int]
    faults: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def run(config: Config, *, select_after: bool = True) -> RunSummary:
    """Score what of the corpus is not labelled yet, then select. Same result however often repeated.

    Connects to the cluster of `RAY_ADDRESS` or to one that runs here, or starts Ray here.

    Raises:
        ValueError: a path that matches nothing, an unknown column, an unreadable checkpoint, an
            output folder of other settings; before any actor starts.
        RunError: too many bad records, or a failure of the cluster, in one line.
        HeldError: another run is at work in the output folder, or has taken it over from this one.
        Interrupted: stopped by SIGTERM, with all that was in flight labelled where time allowed.
    """
    started = time.perf_counter()
    with told_when_slow("listing the sources"):
        splits = list_splits(config.sources)
    from longattn.scoring.checkpoint import open_checkpoint  # 7 s: a bad path is told before

    log.debug("%d files; opening the scorer %s", len({s.path for s in splits}), config.scorer.model)
    checkpoint = open_checkpoint(config.scorer.model)
    scorer = config.scorer
    settings = ScoreSettings(
        scorer.model, config.min_distances, scorer.rope_theta, scorer.add_bos, scorer.dtype,
        scorer.query_stride,
    )  # fmt: skip
    settings.bos(checkpoint)
    if not ledger.begun(config.output):  # of what is refused, not even an empty folder is left
        _check(splits)
    with stoppable() as stop, held(config.output, stop.end) as hold:
        return _run(config, splits, checkpoint, settings, select_after, started, stop, hold)


def _run(
    config: Config,
    splits: list[Split],
    checkpoint: Checkpoint,
    settings: ScoreSettings,
    select_after: bool,
    started: float,
    stop: Stop,
    hold: Hold,
) -> RunSummary:
    scorer = config.scorer
    samples = {source.category: source.sample for source in config.sources}
    with told_when_slow("reading the ledger"):
        sweep(config.output)
        grown = ledger.grown_samples(config.output, samples)
        left = _remaining(config, splits, grown)
    _tell_stale(left.stale, splits)
    if ledger.begun(config.output):  # else done before
        _check(left.splits)

    def claim(dtype: str) -> str:
        parts = settings.parts(checkpoint, config.window.tokens, dtype)
        fingerprint = ledger.claim(config.output, parts, config)
        ledger.note_samples(config.output, samples, grown)
        return fingerprint

    labelled = left
    scored: dict[str, float] = {"windows": 0, "tokens": 0, "seconds": 0.0}
    state: dict[str, Any] = {"restarts": 0, "retries": 0, "failed": []}
    if left.splits:
        with connected():
            pools = plan_pools(config.workers, scorer.dtype)
            fingerprint = claim(scorer.dtype or pools.dtype)
            generation = left.generation + hold.owner["takeovers"]
            scored, state = _execute(config, settings, pools, left, generation, stop)
        with told_when_slow("reading the ledger"):
            labelled = _remaining(config, splits)
        if labelled.splits:
            missing = "; ".join(state["failed"][:3] or [s.source for s in labelled.splits[:3]])
            raise RunError(
                f"{len(labelled.splits)} of {len(splits)} splits are unfinished: {missing}; run again"
            )
    else:
        fingerprint = claim(scorer.dtype or ledger.claimed(config.output)["parts"]["dtype"])
    for path in sorted(set(labelled.void.values())):
        log.warning("%s has changed or is gone; what it was will not be labelled whole", path)
    ledger.forget(config.output, labelled.void)
    if too_bad := labelled.seen.too_bad(config.max_bad_fraction):
        raise RunError(too_bad)
    selected_in = time.perf_counter()
    selection: dict[str, CategorySelection] = {}
    if select_after and labelled.windows:
        chosen = config.select
        if chosen.second_pass is not None:
            _score_again(config, settings)
        if stop.asked.is_set():
            raise stop.error
        selection = select(
            config.output,
            alpha=chosen.alpha,
            standardize=chosen.standardize,
            rank_by=chosen.rank_by,
            overlap=chosen.overlap,
            keep=chosen.keep,
            second_pass=chosen.second_pass,
            file_bytes=config.file_bytes,
            on=config.workers.select,
        )
    now = time.perf_counter()
    summary = _summary(
        config,
        fingerprint,
        splits,
        left,
        labelled.windows,
        scored,
        state,
        selection,
        now - selected_in,
        now - started,
    )
    write_json(join(config.output, ledger.FOLDER, "summary.json"), summary.to_dict())
    if selection:
        _report(config.output)
    return summary


def _check(splits: list[Split]) -> None:
    with told_when_slow("looking into the sources"):
        check_sources(splits)


def _remaining(config: Config, splits: list[Split], again: Iterable[str] = ()) -> ledger.Remaining:
    """What remains, after rows that are there twice have been put right."""
    left = ledger.remaining(config.output, splits, again, config.max_record_bytes)
    if left.twice:
        log.warning(
            "%d rows were labelled twice: one of each stays", sum(map(len, left.twice.values()))
        )
        ledger.drop_repeats(left.twice)
        left = ledger.remaining(config.output, splits, again, config.max_record_bytes)
    return left


def _tell_stale(stale: dict[str, int], splits: list[Split]) -> None:
    there = {split.source for split in splits}
    for path, windows in list(stale.items())[:TOLD]:
        what = "has changed" if path in there else "is gone from the listing"
        log.warning("%s %s; %d windows labelled from what it was stay", path, what, windows)
    if len(stale) > TOLD:
        log.warning("%d more files are gone or changed", len(stale) - TOLD)


def _report(output: str) -> None:
    from longattn.report import write_report  # workers have no use for it

    try:
        write_report(output)
    except Exception as error:
        raise RunError(
            f"the selection is whole, but its report is not: {_reason(error)}; "
            f"`longattn report {redact(output)}` writes it again"
        ) from error


def _execute(
    config: Config,
    settings: ScoreSettings,
    pools: Pools,
    left: ledger.Remaining,
    generation: int,
    stop: Stop,
) -> tuple[dict[str, float], dict[str, Any]]:
    """The streaming execution; returns what the scorers did, and the claims' last state.

    Raises RunError; Interrupted after SIGTERM.
    """
    claims = Claims(left.labelled, left.documents, pools.claims)

    def sign() -> tuple[Any, str]:
        state = claims.state()
        return (monitor.snapshot(), state), waits_for(
            state["at"], pools.window_cpus, pools.score_gpus
        )

    monitor = Monitor(config.max_bad_fraction, left.seen)
    log.info(
        "%d splits to read (%d done); window actors %s, scoring actors %s on %s",
        len(left.splits), left.finished, _told(pools.window), _told(pools.score), pools.device,
    )  # fmt: skip
    context = _context(config, pools)
    with DataContext.current(context):
        groups = group_splits(left.splits)
        windows = tasks_of(groups).map_batches(
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
            compute=actors(pools.window),
            num_cpus=pools.window_cpus,
            **RETRIES,
        )
        scored = score_with(
            windows, settings, config.scorer.batch, pools, monitor.score_report(), len(groups)
        )
        try:
            size = sum(split.size for split in left.splits)
            with watched(monitor, size, config.output), stop.drained(claims.stop, sign):
                write_to(scored, LabelledSink(config.output, monitor.write_report()))
        except (Interrupted, HeldError):
            raise
        except ExecutionTimeoutError as error:
            raise RunError(
                f"no progress for {context.execution_no_progress_timeout_s:.0f} s; waited for {sign()[1]}; run again to go on"
            ) from error
        except Exception as error:
            stopped = monitor.snapshot()["stopped"]
            raise RunError(stopped or _reason(error)) from error
    return monitor.snapshot()["scored"], claims.state()


def _context(config: Config, pools: Pools) -> DataContext:
    context = DataContext.get_current().copy()
    context.target_max_block_size = pools.block_bytes  # else smaller yields are merged
    # Ray Data stops a run that stands still for so long; a lost GPU may take as long to be made up.
    stall = max(context.execution_no_progress_timeout_s, config.workers.wait_seconds)
    context.execution_no_progress_timeout_s = stall
    context.enable_progress_bars = False
    return context


def _score_again(config: Config, settings: ScoreSettings) -> None:
    """The second pass: exact scores until none is wanted any more. Raises RunError."""
    begun = join(config.output, ledger.FOLDER, "second_pass.json")
    chosen = config.select.model_dump(mode="json")
    there = read_json(begun) or {}
    # What a killed run had begun is ended first: the next look then sees what it would have seen.
    wanted = unscored(config.output, there["rows"]) if there.get("select") == chosen else {}
    wanted = wanted or undecided(config.output, config.select, config.workers.select)
    if not wanted:
        return
    dtype = ledger.claimed(config.output)["parts"]["dtype"]
    exact = replace(settings, query_stride=1, min_distance=config.min_distance, dtype=dtype)
    with connected():
        pools = plan_pools(config.workers, dtype)
        while wanted:
            log.info("second pass: exact scores for %d windows", sum(map(len, wanted.values())))
            rows = {url.rpartition("/labelled/")[2]: of_file for url, of_file in wanted.items()}
            write_json(begun, {"select": chosen, "rows": rows})
            try:
                with DataContext.current(_context(config, pools)):
                    score_again_with(wanted, exact, config.scorer.batch, pools)
            except (Interrupted, HeldError):
                raise
            except Exception as error:
                raise RunError(_reason(error)) from error
            before, wanted = wanted, undecided(config.output, config.select, config.workers.select)
            if wanted == before:
                raise RunError(f"{redact(config.output)}: the second pass gave no exact scores")
    remove(begun)


def _told(pool: tuple[int, int | None]) -> str:
    return f"{pool[0]} to {pool[1] or 'what the cluster has'}"


def _reason(error: BaseException) -> str:
    """The innermost cause of a failure of Ray, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:500]


def _summary(
    config: Config,
    fingerprint: str,
    splits: list[Split],
    left: ledger.Remaining,
    windows: dict[str, int],
    scored: dict[str, float],
    state: dict[str, Any],
    selection: dict[str, CategorySelection],
    select_seconds: float,
    seconds: float,
) -> RunSummary:
    """Totals of the whole folder by category, from the markers; rates of this run by stage."""
    markers = ledger.read_markers(config.output)
    this_run = {split.id for split in left.splits}
    categories: dict[str, dict[str, Any]] = {}
    read = {"documents": 0, "bytes": 0, "tokens": 0, "seconds": 0.0}
    for split in splits:
        counts = markers[split.id].counts
        total = categories.setdefault(split.category, {"quarantine": {}})
        for name, value in counts.items():
            if name == "bad":
                for reason, n in value.items():
                    total["quarantine"][reason] = total["quarantine"].get(reason, 0) + n
            elif name != "seconds":
                total[name] = total.get(name, 0) + value
        if split.id in this_run:
            read = {name: value + counts[name] for name, value in read.items()}
    for category, total in categories.items():  # some may be of files that are gone or changed
        total["windows"] = windows.get(category, 0)
    for category, chosen in selection.items():
        categories.setdefault(category, {"quarantine": {}}).update(chosen.to_dict())
    return RunSummary(
        output=redact(config.output),
        fingerprint=fingerprint,
        categories=categories,
        stages={
            "window": _rate(read),
            "score": _rate(scored),
            "select": {"seconds": select_seconds},
        },
        splits={"all": len(splits), "read": len(left.splits), "done before": left.finished},
        faults={"actor restarts": state["restarts"], "splits tried again": state["retries"]},
        seconds=seconds,
    )


def _rate(stage: dict[str, float]) -> dict[str, float]:
    """A stage's totals over all its actors, with tokens a second of one actor."""
    rate = stage["tokens"] / stage["seconds"] if stage["seconds"] else 0.0
    return {**stage, "tokens_per_second": rate}
