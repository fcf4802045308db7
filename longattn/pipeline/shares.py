"""A run of a share of the corpus: what it has done, and what falls to the last one to end."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from longattn.errors import HeldError
from longattn.pipeline.monitor import StageWork
from longattn.pipeline.stopping import Stop
from longattn.pipeline.summary import RunSummary, summarise
from longattn.resume.markers import read_markers
from longattn.resume.remaining import find_remaining
from longattn.resume.shards import Shard, held, selecting, shards_held

if TYPE_CHECKING:
    from longattn.pipeline.job import Done, Job

log = logging.getLogger("longattn")

SHOWN = 10  # shares that are named in the log


def of_share(job: Job, shard: Shard, done: Done) -> RunSummary:
    """The summary of a share: nothing is selected, and no record of the folder written."""
    splits = [split for split in job.splits if shard.has(split.id)]
    windows = Counter[str]()
    for name, marker in read_markers(job.config.output).items():
        if shard.has(name):
            windows[marker.category] += marker.windows
    after = replace(done.labelled, windows=dict(windows))
    remaining = done.before, after
    summary = summarise(job.config, done.fingerprint, splits, remaining, done.outcome, {})
    return summary.timed(select=0.0, total=time.perf_counter() - job.started)


def together(parts: Sequence[Done], whole: Done) -> Done:
    """What one run has done of several shares; `whole` is of all splits, once they are labelled."""
    dones = [*parts, whole]
    splits = {split.id: split for done in dones for split in done.before.splits}
    finished = whole.before.finished + len(whole.before.splits) - len(splits)
    outcomes = [done.outcome for done in dones if done.outcome]
    outcome = None
    if outcomes:
        scored = StageWork()
        for one in outcomes:
            work = one.progress.scored
            scored = scored.plus(work.windows, work.tokens, work.seconds)
        outcome = replace(
            outcomes[-1],
            progress=replace(outcomes[-1].progress, scored=scored),
            registry=replace(
                outcomes[-1].registry,
                restarts=sum(one.registry.restarts for one in outcomes),
                retries=sum(one.registry.retries for one in outcomes),
            ),
        )
    before = replace(whole.before, splits=list(splits.values()), finished=finished)
    return replace(whole, before=before, outcome=outcome)


def taken_up(job: Job, own: Shard, stop: Stop, stack: ExitStack) -> list[Done] | None:
    """What was done for dead runs, where all is labelled and what follows falls to this run; else None.

    Labels the shares of runs that have died first. From then on the job is one of the whole; while
    `stack` is open, no other run does what follows.
    """
    output, done = job.config.output, []
    for shard in shards_held(output):
        if shard == own:
            continue
        with ExitStack() as one:
            try:
                hold = one.enter_context(held(output, stop.end, shard))
            except HeldError:  # its run lives
                continue
            log.warning("the run of share %s has died: what it left is done here", shard)
            job.shard = shard
            done.append(job.label(stop, hold))
        if stop.asked.is_set():
            raise stop.error
    job.shard = None
    # Only read: what is not whole here may be at work in another run.
    left = find_remaining(output, job.splits).splits
    unfinished = {Shard.of(split.id, own.count) for split in left}
    if unfinished:
        shares = ", ".join(map(str, sorted(unfinished)[:SHOWN]))
        log.info("shares that are not labelled yet: %s; the last run to end selects", shares)
        return None
    try:
        stack.enter_context(selecting(output))
    except HeldError:  # of another share, which has ended at the same time
        log.info("another run selects")
        return None
    return done
