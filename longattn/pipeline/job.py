"""A whole run: what remains is found, executed, selected from, and summed up."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray.data.context import DataContext

from longattn.cluster import connected
from longattn.config import Config
from longattn.corpus.records import Split
from longattn.corpus.sources import check_sources, list_splits
from longattn.errors import HeldError, Interrupted, RunError
from longattn.pipeline.pools import plan_pools
from longattn.pipeline.steps import (
    score_again_with,
)
from longattn.pipeline.stopping import Stop, stop_on_sigterm
from longattn.resume.fingerprint import (
    grown_samples,
    note_samples,
    own_folder,
    read_run_record,
    require_run_record,
)
from longattn.resume.lock import Hold, held
from longattn.resume.markers import forget
from longattn.resume.remaining import Remaining, drop_repeats, find_remaining
from longattn.scoring.settings import ScoreSettings
from longattn.selection import CategorySelection, select, undecided, unscored
from longattn.storage.files import join, read_json, remove, sweep, warn_if_slow, write_json
from longattn.storage.output_folder import FOLDER
from longattn.text import without_secrets

if TYPE_CHECKING:
    from longattn.scoring.checkpoint import Checkpoint
from longattn.pipeline.on_ray import data_context, execute, innermost_reason
from longattn.pipeline.summary import RunSummary, summarise

log = logging.getLogger("longattn")

TOLD = 10  # files that are named in the log; of more, how many


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
    with warn_if_slow("listing the sources"):
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
    if not read_run_record(config.output):  # of what is refused, not even an empty folder is left
        _check(splits)
    with stop_on_sigterm() as stop, held(config.output, stop.end) as hold:
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
    with warn_if_slow("reading the ledger"):
        sweep(config.output)
        grown = grown_samples(config.output, samples)
        left = _remaining(config, splits, grown)
    _tell_stale(left.stale, splits)
    if read_run_record(config.output):  # else done before
        _check(left.splits)

    def claim(dtype: str) -> str:
        parts = settings.parts(checkpoint, config.window.tokens, dtype)
        fingerprint = own_folder(config.output, parts, config)
        note_samples(config.output, samples, grown)
        return fingerprint

    labelled = left
    scored: dict[str, float] = {"windows": 0, "tokens": 0, "seconds": 0.0}
    state: dict[str, Any] = {"restarts": 0, "retries": 0, "failed": []}
    if left.splits:
        with connected():
            pools = plan_pools(config.workers, scorer.dtype)
            fingerprint = claim(scorer.dtype or pools.dtype)
            generation = left.generation + hold.owner["takeovers"]
            scored, state = execute(config, settings, pools, left, generation, stop)
        with warn_if_slow("reading the ledger"):
            labelled = _remaining(config, splits)
        if labelled.splits:
            missing = "; ".join(state["failed"][:3] or [s.source for s in labelled.splits[:3]])
            raise RunError(
                f"{len(labelled.splits)} of {len(splits)} splits are unfinished: {missing}; run again"
            )
    else:
        fingerprint = claim(scorer.dtype or require_run_record(config.output)["parts"]["dtype"])
    for path in sorted(set(labelled.void.values())):
        log.warning("%s has changed or is gone; what it was will not be labelled whole", path)
    forget(config.output, labelled.void)
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
    summary = summarise(
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
    write_json(join(config.output, FOLDER, "summary.json"), summary.to_dict())
    if selection:
        _report(config.output)
    return summary


def _check(splits: list[Split]) -> None:
    with warn_if_slow("looking into the sources"):
        check_sources(splits)


def _remaining(config: Config, splits: list[Split], again: Iterable[str] = ()) -> Remaining:
    """What remains, after rows that are there twice have been put right."""
    left = find_remaining(config.output, splits, again, config.max_record_bytes)
    if left.twice:
        log.warning(
            "%d rows were labelled twice: one of each stays", sum(map(len, left.twice.values()))
        )
        drop_repeats(left.twice)
        left = find_remaining(config.output, splits, again, config.max_record_bytes)
    return left


def _tell_stale(stale: dict[str, int], splits: list[Split]) -> None:
    there = {split.source for split in splits}
    for path, windows in list(stale.items())[:TOLD]:
        what = "has changed" if path in there else "is gone from the listing"
        log.warning("%s %s; %d windows labelled from what it was stay", path, what, windows)
    if len(stale) > TOLD:
        log.warning("%d more files are gone or changed", len(stale) - TOLD)


def _report(output: str) -> None:
    from longattn.reports.report import write_report  # workers have no use for it

    try:
        write_report(output)
    except Exception as error:
        raise RunError(
            f"the selection is whole, but its report is not: {innermost_reason(error)}; "
            f"`longattn report {without_secrets(output)}` writes it again"
        ) from error


def _score_again(config: Config, settings: ScoreSettings) -> None:
    """The second pass: exact scores until none is wanted any more. Raises RunError."""
    begun = join(config.output, FOLDER, "second_pass.json")
    chosen = config.select.model_dump(mode="json")
    there = read_json(begun) or {}
    # What a killed run had begun is ended first: the next look then sees what it would have seen.
    wanted = unscored(config.output, there["rows"]) if there.get("select") == chosen else {}
    wanted = wanted or undecided(config.output, config.select, config.workers.select)
    if not wanted:
        return
    dtype = require_run_record(config.output)["parts"]["dtype"]
    exact = replace(settings, query_stride=1, min_distance=config.min_distance, dtype=dtype)
    with connected():
        pools = plan_pools(config.workers, dtype)
        while wanted:
            log.info("second pass: exact scores for %d windows", sum(map(len, wanted.values())))
            rows = {url.rpartition("/labelled/")[2]: of_file for url, of_file in wanted.items()}
            write_json(begun, {"select": chosen, "rows": rows})
            try:
                with DataContext.current(data_context(config, pools)):
                    score_again_with(wanted, exact, config.scorer.batch, pools)
            except (Interrupted, HeldError):
                raise
            except Exception as error:
                raise RunError(innermost_reason(error)) from error
            before, wanted = wanted, undecided(config.output, config.select, config.workers.select)
            if wanted == before:
                raise RunError(
                    f"{without_secrets(config.output)}: the second pass gave no exact scores"
                )
    remove(begun)
