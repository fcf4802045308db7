"""A run of a share of the corpus: what it has done, and what falls to the last one to end."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from longattn.errors import HeldError
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
    return summarise(job.config, done.fingerprint, splits, (done.before, after), done.outcome, {})


def is_last(job: Job, own: Shard, stop: Stop, stack: ExitStack) -> bool:
    """Whether all shares are labelled, and what follows falls to this run.

    Labels the shares of runs that have died first. From then on the job is one of the whole; while
    `stack` is open, no other run does what follows.
    """
    output = job.config.output
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
            job.label(stop, hold)
        if stop.asked.is_set():
            raise stop.error
    job.shard = None
    # Only read: what is not whole here may be at work in another run.
    left = find_remaining(output, job.splits).splits
    unfinished = {Shard.of(split.id, own.count) for split in left}
    if unfinished:
        shares = ", ".join(map(str, sorted(unfinished)[:SHOWN]))
        log.info("shares that are not labelled yet: %s; the last run to end selects", shares)
        return False
    try:
        stack.enter_context(selecting(output))
    except HeldError:  # of another share, which has ended at the same time
        log.info("another run selects")
        return False
    return True
