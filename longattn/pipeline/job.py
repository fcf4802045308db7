"""A whole run: find what remains, execute it, compute further scores, select, and sum up.

`Job.run` is its body: read it first. An executor, Ray's or this process, does the work between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from longattn.config import Config, ConfigLike
from longattn.corpus.apart import require_apart
from longattn.corpus.first_look import check_sources, column_types, with_types
from longattn.corpus.sources import list_sources
from longattn.errors import RunError
from longattn.models import require_reachable
from longattn.pipeline.execution import Executor, Outcome, Work
from longattn.pipeline.failures import reason_of
from longattn.pipeline.feed import Feed
from longattn.pipeline.remarks import log_stale, remarks
from longattn.pipeline.score_tables import (
    TableJob,
    TableSummary,
    WindowFacts,
    tables_executor,
)
from longattn.pipeline.shares import of_share, taken_up, together
from longattn.pipeline.stopping import Stop, stop_on_sigterm
from longattn.pipeline.summary import RunSummary, proofs, summarise
from longattn.reports.retelling import selection_proof
from longattn.resume.damage import damaged_records, set_aside
from longattn.resume.empty_folder import is_alone, is_empty, take_over_empty
from longattn.resume.fingerprint import (
    grown_samples,
    note_samples,
    own_folder,
    read_run_record,
    require_settings_of,
)
from longattn.resume.lock import Hold
from longattn.resume.markers import forget
from longattn.resume.remaining import Remaining, drop_repeats, find_remaining, mixture_remark
from longattn.resume.shards import Shard, held, note_shards
from longattn.resume.user_columns import decide_types, known_types, log_new_columns
from longattn.scoring.settings import ScoreParts, ScoreSettings
from longattn.selection.columns import require_selectable
from longattn.selection.select_windows import select
from longattn.selection.selection_record import CategorySelection
from longattn.storage.files import sweep, warn_if_slow
from longattn.storage.output_folder import OutputFolder, require_writable
from longattn.storage.records import read_record, write_record
from longattn.storage.tables import DamagedFileError
from longattn.text import counted, counted_are, without_secrets
from longattn.windows.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from longattn.scoring.checkpoint import Checkpoint
    from longattn.scoring.precision import Errors

log = logging.getLogger("longattn")

SHOWN = 10  # files that are named in the log; of more, how many

ExecutorName = Literal["ray", "local"]


def run(
    config: ConfigLike,
    *,
    executor: ExecutorName = "ray",
    select_after: bool = True,
    check: bool = False,
    shard: str | None = None,
) -> RunSummary:
    """Score what of the corpus is not labelled yet, then select. Same result however often repeated.

    Args:
        config: path, mapping or `Config`.
        executor: `ray` works on the cluster of RAY_ADDRESS, one that runs here, or one started here;
            `local` in this process, on a GPU if there is one. The files are the same.
        select_after: whether to select; `select` does it later as well.
        check: whether to read every labelled file first, and score again what is not as it was
            written; else footers and row counts are compared.
        shard: `i/n`: take share i of n, by the ids of the splits; other runs take the others at the
            same time, on this cluster or on others. The last to end takes up what dead ones left,
            and selects.

    Raises:
        ValueError: a path that matches nothing, an unknown column, an unreadable checkpoint, an
            output folder of other settings; before any actor starts.
        RunError: too many bad records, or a failure of the cluster, in one line.
        HeldError: another run is at work in the output folder, or has taken it over from this one.
        Interrupted: stopped by SIGTERM or Ctrl-C, with all that was in flight labelled where time
            allowed.
    """
    if executor not in ("ray", "local"):
        raise ValueError(f"executor {executor!r}: 'ray' or 'local' is allowed")
    config = Config.of(config)
    job = Job(config, executor, whole=check, shard=Shard.parse(shard) if shard else None)
    job.check()
    if select_after:
        require_selectable(config, job.types)
    with stop_on_sigterm() as stop, held(config.output, stop.end, job.shard) as hold:
        return job.run(stop, hold, select_after=select_after)


@dataclass(frozen=True)
class Done:
    """What a run has done when it comes to select."""

    fingerprint: str
    before: Remaining
    labelled: Remaining
    outcome: Outcome | None
    """None where there was nothing to do."""


class Job:
    """A run of one config into its output folder."""

    def __init__(
        self,
        config: Config,
        executor: ExecutorName = "ray",
        *,
        whole: bool = False,
        shard: Shard | None = None,
    ) -> None:
        self.config, self.executor, self.whole, self.shard = config, executor, whole, shard
        self.started = time.perf_counter()
        self.folder = OutputFolder(config.output)
        self.settings = ScoreSettings.of(config)
        self.precision: dict[str, Any] = {}
        self.columns = sorted({name for source in config.sources for name in source.columns})
        self.samples = {source.category: source.sample for source in config.sources}
        require_writable(config.output)
        require_apart(config.sources, config.output)
        self.tables: dict[str, TableSummary] = {}
        self.types: dict[str, str] = {}  # of the user's columns, as far as `check` finds them
        self._cluster = ExitStack()  # keeps Ray between the stages and the further scores
        self.listing = list_sources(config.sources)
        self.splits = self.listing.splits
        for line in self.listing.left_out_lines():
            log.warning("%s", line)

    def check(self) -> None:
        """Refuse what cannot work before anything is made. Raises ValueError."""
        require_reachable(self.settings.model)
        self.settings.bos(self.checkpoint)
        load_tokenizer(self.settings.model).warn_if_slow()
        if self.config.scores:
            wanted = self.config.scorer.dtype
            require_settings_of(self.config.output, lambda dtype: self._parts(wanted or dtype))
            self.table_job.check()
        self.types = known_types(self.folder)
        if read_run_record(self.config.output) is None:  # of what is refused, no folder is left
            check_sources(self.splits, self.config.sources)
            self.types = column_types(self.splits, sources=self.config.sources)

    def run(self, stop: Stop, hold: Hold, *, select_after: bool = True) -> RunSummary:
        """Find what remains, execute it, compute further scores, select, and sum up."""
        with ExitStack() as stack:
            with self._cluster:
                done = self.label(stop, hold)
                if stop.asked.is_set():
                    raise stop.error
                if self.shard:
                    own = of_share(self, self.shard, done)
                    others = taken_up(self, self.shard, stop, stack)
                    if others is None:
                        return own
                    done = together([done, *others], self.label(stop, hold))
                done = self.score(done, stop, hold)
            return self.finish(done, stop, hold, select_after=select_after)

    def finish(self, done: Done, stop: Stop, hold: Hold, *, select_after: bool) -> RunSummary:
        """Select from what is labelled, and sum up."""
        if self.config.select.chooses_heads and done.labelled.windows:
            self._choose_heads()
        set_aside(self.config.output, damaged_records(self.config.output))
        started = time.perf_counter()
        try:
            selection = self.select(done.labelled) if select_after else {}
        except DamagedFileError as error:
            with self._cluster:
                done = self._made_whole(error, stop, hold)
            started = time.perf_counter()
            selection = self.select(done.labelled)
        summary = summarise(
            self.config,
            done.fingerprint,
            self.splits,
            (done.before, done.labelled),
            done.outcome,
            selection,
        ).timed(select=time.perf_counter() - started, total=time.perf_counter() - self.started)
        facts = {
            "left_out": self.listing.left_out,
            "precision": self.precision,
            "scored_on": done.labelled.scored_on,
            **({"scores": self._work_so_far()} if self.tables else {}),
            **proofs(self.folder, self.splits),
            **(selection_proof(self.folder, self.config.select.name) if selection else {}),
        }
        now = {name: of.progress.written for name, of in self.tables.items()}
        summary = replace(summary, extra=facts, tables_written=now)
        write_record(self.folder.record("summary"), summary.to_dict())
        told = remarks(self.config, {n: c.to_dict() for n, c in summary.categories.items()})
        if not any(category.windows for category in summary.categories.values()):
            raise RunError(f"no window in the whole corpus: {'; '.join(told)}")
        for remark in filter(None, [*told, mixture_remark(done.labelled.scored_on)]):
            log.warning("%s", remark)
        if selection:
            self._report()
        return summary

    def label(self, stop: Stop, hold: Hold, feed: Feed | None = None) -> Done:
        """Score every window that is not labelled yet; raises RunError where some remain.

        With a `feed`, what comes meanwhile, too, and what then remains is left to its owner.
        """
        with warn_if_slow("reading the ledger"):
            if is_alone(self.config.output, self.shard):  # else another run writes there
                sweep(self.config.output)
                wanted = self.config.scorer.dtype
                if take_over_empty(self.config.output, self._parts, wanted, self.samples):
                    check_sources(self.splits, self.config.sources)
            grown = grown_samples(self.config.output, self.samples)
            left = self._remaining(grown)
        first = feed is None or not feed.executions  # later a feed reports what becomes of files
        if first:
            listed = {split.source for split in self.splits} if left.stale else set()
            log_stale(left.stale, listed | set(feed.watch.paths if feed else ()))
        if left.windows:
            log_new_columns(self.folder, self.columns)
        if first and read_run_record(self.config.output) is not None:  # else done before
            check_sources(left.splits, self.config.sources)
        outcome, labelled = None, left
        before = {split.id for split in self.splits} - {split.id for split in left.splits}
        if left.splits:
            generation = left.generation + hold.owner["takeovers"]
            with self._executor()(self.config, self.settings, self._measure) as stages:
                self._choose_dtype(stages.device)
                fingerprint = self._own(self.precision["dtype"], grown)
                types = decide_types(self.folder, left.splits, self.config.sources)
                typed = replace(left, splits=with_types(left.splits, types))
                settings = replace(self.settings, dtype=self.precision["dtype"])
                columns = {name: types[name] for name in self.columns if name in types}
                work = Work(self.config, settings, typed, generation, columns, feed)
                outcome = stages.execute(work, stop)
            if feed:
                self.splits = feed.watch.splits
                came = [split for split in self.splits if split.id not in before]
                left = replace(left, splits=came)
            with warn_if_slow("reading the ledger"):
                labelled = self._remaining()
            if labelled.splits and not feed:
                missing = outcome.registry.failed[:3] or [s.source for s in labelled.splits[:3]]
                of_all = counted_are(labelled.finished + len(labelled.splits), "split")
                raise RunError(
                    f"{len(labelled.splits)} of {of_all} unfinished: {'; '.join(missing)}; run again"
                )
        else:
            record = read_run_record(self.config.output)  # none is there if a share has no splits
            dtype = self.config.scorer.dtype or (record.parts.dtype if record else None)
            fingerprint = self._own(dtype, grown) if dtype else ""
        for path in sorted(set(labelled.void.values())):
            log.warning("%s has changed or is gone; what it was will not be labelled whole", path)
        forget(self.config.output, labelled.void)
        for line in labelled.seen.unread_lines(SHOWN):
            log.warning("%s", line)
        if too_bad := labelled.seen.too_bad(self.config.max_bad_fraction):
            raise RunError(too_bad)
        return Done(fingerprint, left, labelled, outcome)

    def score(self, done: Done, stop: Stop, hold: Hold) -> Done:
        """Compute the tables of further scores that are not there yet; what is labelled then."""
        try:
            self.tables = self._score(stop)
        except DamagedFileError as error:
            return self._made_whole(error, stop, hold)
        return done

    def _made_whole(self, error: DamagedFileError, stop: Stop, hold: Hold) -> Done:
        """After a damaged file was met: all are read, and what is not as it was written is made anew."""
        log.warning("%s: every labelled file and score table is read now", error)
        self.whole = True
        if self.config.scores:
            self.table_job.read_whole()
        done = self.label(stop, hold)
        self.tables |= self._score(stop)
        return done

    def _score(self, stop: Stop) -> dict[str, TableSummary]:
        if not self.config.scores:
            return {}
        config, executor = self.config, tables_executor(self.executor)
        return self.table_job.run(
            stop, lambda dtype: executor(config.output, config.workers, dtype)
        )

    def _work_so_far(self) -> dict[str, dict[str, Any]]:
        """Of each score its tables, and the work of this run and those before."""
        before = (read_record(self.folder.record("summary")) or {}).get("scores", {})
        return {
            name: {
                key: value if key == "tables" else value + before.get(name, {}).get(key, 0)
                for key, value in of.to_dict().items()
            }
            for name, of in self.tables.items()
        }

    @cached_property
    def table_job(self) -> TableJob:
        config = self.config
        tokenizer = load_tokenizer(config.scorer.model).fingerprint
        facts = WindowFacts(
            config.window.tokens, config.min_distance, tokenizer, tuple(self.columns)
        )
        return TableJob(config.output, config.scores, facts, whole=self.whole)

    def select(self, labelled: Remaining) -> dict[str, CategorySelection]:
        """Select from all that is labelled, where there is something."""
        if not labelled.windows:
            return {}
        return select(self.config.output, self.config.select, file_bytes=self.config.file_bytes)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        from longattn.scoring.checkpoint import open_checkpoint  # 7 s: a bad path is told before

        files = len({split.path for split in self.splits})
        log.debug(
            "%s; opening the scorer %s",
            counted(files, "file"),
            without_secrets(self.config.scorer.model),
        )
        return open_checkpoint(self.config.scorer.model)

    def _choose_heads(self) -> None:
        """Choose heads for the categories that have none chosen yet; they stay as they are from then on."""
        from longattn.reports.head_choice import choose_heads

        with warn_if_slow("choosing heads"):
            for name in choose_heads(self.config):
                log.debug("%s: heads were chosen", name)

    def _executor(self) -> Executor:
        if self.executor == "local":
            from longattn.pipeline.in_process import in_process

            return in_process
        from longattn.pipeline.on_ray import on_ray

        if self.config.scores:
            from longattn.cluster import connected

            self._cluster.enter_context(connected())
        return on_ray

    def _choose_dtype(self, device: str) -> None:
        """Settle the dtype of the products; where it is chosen, how far it is off float32."""
        scorer = self.config.scorer
        if scorer.dtype or device == "cpu":
            self.precision = {"dtype": scorer.dtype or "float32"}
            return
        errors = self._on_gpu
        log.info("products in %s (of float32, %d tokens of real text)", errors, errors.tokens)
        self.precision = asdict(errors)

    @cached_property
    def _on_gpu(self) -> Errors:
        """The dtype of a GPU's products that real text allows, and its errors."""
        from longattn.scoring.precision import choose_dtype

        with warn_if_slow("choosing the dtype of the products"):
            return choose_dtype(self.checkpoint, self.config.scorer.rope_theta)

    def _measure(self) -> None:
        """What a run on GPUs needs to know of the checkpoint."""
        if not self.config.scorer.dtype:
            _ = self._on_gpu
        self.checkpoint.fingerprint()

    def _parts(self, dtype: str) -> ScoreParts:
        return self.settings.parts(self.checkpoint, self.config.window.tokens, dtype)

    def _own(self, dtype: str, grown: set[str]) -> str:
        """Make the folder this run's; returns the fingerprint of its scores."""
        output = self.config.output
        empty = is_alone(output, self.shard) and is_empty(output)
        fingerprint = own_folder(output, self._parts(dtype), self.config, empty=empty)
        note_samples(self.config.output, self.samples, grown)
        if self.shard:
            note_shards(self.config.output, self.shard)
        return fingerprint

    def _remaining(self, again: Iterable[str] = ()) -> Remaining:
        """What remains, after damaged files and rows that are there twice have been put right."""
        output, largest = self.config.output, self.config.max_record_bytes
        whole, self.whole = self.whole, False
        find = partial(find_remaining, output, self.splits, again, largest, shard=self.shard)
        try:
            left = find(whole=whole)
        except DamagedFileError:  # in the ids of a split that is not done
            left = find(whole=True)
        if left.damaged:
            set_aside(output, left.damaged)
            left = find()
        for url in left.foreign[:SHOWN]:
            log.warning("%s was not written by longattn: left alone", without_secrets(url))
        if left.twice:
            repeats = sum(map(len, left.twice.values()))
            log.warning("%s labelled twice: one of each stays", counted(repeats, "row"))
            drop_repeats(left.twice)
            left = find()
        return left

    def _report(self) -> None:
        from longattn.reports.report import write_report  # workers have no use for it

        output = self.config.output
        try:
            write_report(output)
        except Exception as error:
            raise RunError(
                f"the selection is whole, but its report is not: {reason_of(error)}; "
                f"`longattn report {without_secrets(output)}` writes it again"
            ) from error
