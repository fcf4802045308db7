"""The pipeline on Ray Data: functions from Dataset to Dataset, and `run`, which composes a whole job.

`run` is one streaming execution: tasks that name splits -> CPU actors that read, tokenize and cut
windows -> scoring actors -> a sink that makes labelled files appear whole. No stage collects.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.context import DataContext

from longattn import ledger
from longattn.claims import Claims
from longattn.config import Config, Sample, Source, Workers, redact
from longattn.corpus import check_sources, group_splits, list_splits
from longattn.display import watched
from longattn.lock import Hold, held
from longattn.monitor import Monitor, RunError
from longattn.pools import Pools, plan_pools
from longattn.records import Record, Split, read_split
from longattn.selection import CategorySelection, select
from longattn.stopping import Interrupted, Stop, stoppable, waits_for
from longattn.storage import (
    CATEGORY,
    LABELLED,
    content_name,
    join,
    list_files,
    open_parquet,
    sweep,
    write_json,
    write_table,
)
from longattn.windows import DocumentWindows, SplitWindows, load_tokenizer

if TYPE_CHECKING:  # not imported by workers that do not score: transformers takes them 4 s
    from longattn.scoring.checkpoint import Checkpoint

log = logging.getLogger("longattn")

DEFINITION = 1  # version of what a score means; a change of any number raises it
MAX_BLOCK = 32 * 2**20
# Ray Data starts an actor again for ever, and a task. Ray 2.60 has no other way to bound that, and
# says at each use that this one will go in 2.64.
warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
RETRIES: dict[str, Any] = {"max_restarts": 100, "max_task_retries": 20}


# --- composition: functions from Dataset to Dataset ----------------------------------------------


def read_documents(sources: Iterable[Source | dict[str, Any]]) -> Dataset:
    """Documents of the sources as rows `content`, `category`, `source`; bad records are left out.

    Raises ValueError at once for a path that matches nothing or a column that is not there.
    """
    checked = [s if isinstance(s, Source) else Source.model_validate(s) for s in sources]
    splits = list_splits(checked)
    check_sources(splits)
    return _tasks(group_splits(splits)).map_batches(
        _read_task, batch_size=1, batch_format="numpy", num_cpus=0.25
    )


def _read_task(batch: dict[str, Any]) -> Iterator[pa.Table]:
    for split in ledger.unpack_task(batch["task"][0]):
        for record in read_split(split):
            if isinstance(record, Record):
                row = {"content": record.text, "category": split.category, "source": split.path}
                yield pa.table(
                    {name: pa.array([value], pa.large_string()) for name, value in row.items()}
                )


def window_documents(
    documents: Dataset,
    *,
    model: str = "builtin",
    window: int = 32768,
    min_distance: int | None = None,
    text_column: str = "content",
    sample: Sample | None = None,
    workers: tuple[int, int] = (1, 64),
) -> Dataset:
    """Documents -> windows, with the tokenizer of the scoring checkpoint.

    Reads `text_column` and, where they are there, `category` and `source`; gives storage.WINDOWS.
    `min_distance` is that of the far recurrence; a quarter of the window by default.
    """
    return documents.map_batches(
        DocumentWindows,
        fn_constructor_kwargs={
            "model": model, "window": window, "min_distance": min_distance or max(1, window // 4),
            "text_column": text_column, "sample": sample, "block_bytes": MAX_BLOCK // 2,
        },
        batch_size=16,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
        num_cpus=0.25,
    )  # fmt: skip


def score_windows(
    windows: Dataset,
    *,
    model: str = "builtin",
    min_distance: int | None = None,
    rope_theta: float | None = None,
    add_bos: bool | None = None,
    dtype: str | None = None,
    batch: int = 8,
    workers: tuple[int, int] = (1, 8),
    gpus_per_scorer: float | None = None,
) -> Dataset:
    """Windows (a column `input_ids`, all of one length) -> the same rows with their scores.

    Adds `ds`, `variance` (mean over heads) and `ds_heads`, `variance_heads`.
    """
    pools = plan_pools(Workers(score=workers, gpus_per_scorer=gpus_per_scorer), dtype)
    settings = ScoreSettings(model, min_distance, rope_theta, add_bos, dtype)
    return _score(windows, settings, batch, pools, _ignore)


def write_labelled(scored: Dataset, path: str) -> None:
    """Write scored windows below `<path>/labelled/category=.../`; each file appears whole."""
    _write(scored, LabelledSink(path))


def _write(scored: Dataset, sink: LabelledSink) -> None:
    retries = RETRIES["max_task_retries"]
    scored.write_datasink(sink, ray_remote_args={"num_cpus": 0, "max_retries": retries})


def read_labelled(path: str, columns: Sequence[str] | None = None) -> Dataset:
    """The labelled windows below `<path>/labelled` as a Dataset, only the named columns if given."""
    files = list(list_files(join(path, "labelled"), ".parquet"))
    if not files:
        raise ValueError(f"{join(path, 'labelled')}: no labelled windows there")
    names = list(columns or LABELLED.names)

    def read(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for url in batch["url"]:
            with open_parquet(url) as parquet:
                for group in range(parquet.num_row_groups):
                    yield parquet.read_row_group(group, columns=names)

    tasks = ray.data.from_items(
        [{"url": url} for url in files], override_num_blocks=min(len(files), 1000)
    )
    return tasks.map_batches(read, batch_size=1, batch_format="numpy")


# --- the scoring stage and the sink --------------------------------------------------------------


@dataclass(frozen=True)
class ScoreSettings:
    """What decides a score, beside the window."""

    model: str
    min_distance: int | tuple[int, ...] | None
    rope_theta: float | None
    add_bos: bool | None
    dtype: str | None
    query_stride: int = 1

    def distances(self, window: int) -> list[int]:
        k = self.min_distance or window // 4
        return [k] if isinstance(k, int) else list(k)

    def parts(self, checkpoint: Checkpoint, window: int, dtype: str) -> dict[str, Any]:
        """Everything that goes into the fingerprint of the scores."""
        distances = self.distances(window)
        parts = {
            "definition": DEFINITION,
            "weights": checkpoint.fingerprint(),
            "tokenizer": load_tokenizer(self.model).fingerprint,
            "window": window,
            "min_distance": distances if len(distances) > 1 else distances[0],
            "rope_theta": self.rope_theta,
            "bos": self.bos(checkpoint),
            "dtype": dtype,
        }
        return parts if self.query_stride == 1 else {**parts, "query_stride": self.query_stride}

    def bos(self, checkpoint: Checkpoint) -> int | None:
        """The id put in front when scoring, or None.

        Raises ValueError where one is demanded and the checkpoint has none.
        """
        if self.add_bos is False:
            return None
        bos = load_tokenizer(self.model).bos_token_id
        if self.add_bos and bos is None:
            bos = checkpoint.config.bos_token_id
            if bos is None:
                raise ValueError(
                    f"scorer.add_bos: {self.model} has no BOS token; null or false is allowed"
                )
        return bos


class ScoreWindows:
    """Ray Data actor: a table of windows -> the table with their scores."""

    def __init__(
        self,
        settings: ScoreSettings,
        device: str,
        threads: int,
        report: Callable[..., None],
    ) -> None:
        import torch

        from longattn.scoring.checkpoint import open_checkpoint
        from longattn.scoring.scorer import AttentionScorer

        if device == "cpu":
            torch.set_num_threads(threads)
        self.settings, self.report = settings, report
        self.checkpoint = open_checkpoint(settings.model)
        self.bos = settings.bos(self.checkpoint)
        self.scorer = AttentionScorer.from_pretrained(
            settings.model, device=device, dtype=settings.dtype, rope_theta=settings.rope_theta
        )
        self.fingerprints: dict[int, str] = {}
        self.left = time.perf_counter()  # when the last call ended

    def __call__(self, batch: pa.Table) -> pa.Table:
        if not len(batch):
            return batch
        started = time.perf_counter()
        ids_bl = _ids(batch)
        length = ids_bl.shape[1]
        if self.bos is not None:  # takes position 0, and the last token gives way
            ids_bl = np.concatenate([np.full_like(ids_bl[:, :1], self.bos), ids_bl[:, :-1]], axis=1)
        distances = self.settings.distances(length)
        in_kernel = time.perf_counter()
        scores = self.scorer.score(ids_bl, distances, self.settings.query_stride)
        in_kernel = time.perf_counter() - in_kernel
        ds_bhk, variance_bhk = scores.ds.numpy(), scores.variance.numpy()
        ds_bh, variance_bh = ds_bhk[..., 0].copy(), variance_bhk[..., 0].copy()
        if "fingerprint" in batch.column_names:
            batch = batch.drop_columns(["fingerprint"])
        columns = {
            "ds": pa.array(ds_bh.mean(axis=1)),
            "variance": pa.array(variance_bh.mean(axis=1)),
            "ds_heads": _lists(ds_bh),
            "variance_heads": _lists(variance_bh),
            "fingerprint": pa.array([self._fingerprint(length)] * len(batch)),
        }
        for column, k in list(enumerate(distances))[1:]:
            columns[f"ds_k{k}"] = pa.array(ds_bhk[..., column].copy().mean(axis=1))
            columns[f"variance_k{k}"] = pa.array(variance_bhk[..., column].copy().mean(axis=1))
        for name, column in columns.items():
            batch = batch.append_column(name, column)
        waiting, self.left = started - self.left, time.perf_counter()
        named = "category" in batch.column_names
        categories = batch["category"].to_pylist() if named else [""] * len(batch)
        self.report(Counter(categories), length, self.left - started, in_kernel, waiting)
        return batch

    def _fingerprint(self, window: int) -> str:
        if window not in self.fingerprints:
            dtype = str(self.scorer.dtype).removeprefix("torch.")
            parts = self.settings.parts(self.checkpoint, window, dtype)
            self.fingerprints[window] = ledger.fingerprint(parts)
        return self.fingerprints[window]


def _ids(batch: pa.Table) -> np.ndarray:
    """`input_ids` as (windows, tokens) int64; raises ValueError on mixed lengths."""
    ids = batch["input_ids"].combine_chunks()
    lengths = set(pa.compute.list_value_length(ids).to_pylist())
    if len(lengths) != 1:
        raise ValueError(f"windows of one length are wanted; given lengths {sorted(lengths)[:5]}")
    return ids.flatten().to_numpy().astype(np.int64).reshape(len(batch), -1)


def _lists(values_bh: np.ndarray) -> pa.ListArray:
    offsets = np.arange(0, values_bh.size + 1, values_bh.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values_bh.astype(np.float32).ravel()))


def _score(
    windows: Dataset,
    settings: ScoreSettings,
    batch: int,
    pools: Pools,
    report: Callable[..., None],
) -> Dataset:
    return windows.map_batches(
        ScoreWindows,
        fn_constructor_args=(settings, pools.device, pools.threads, report),
        batch_size=batch,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=pools.score[0], max_size=pools.score[1]),
        num_cpus=pools.score_cpus,
        num_gpus=pools.score_gpus or None,
        **RETRIES,
    )


def _ignore(*_: object) -> None: ...


class LabelledSink(Datasink[int]):
    """Writes each block's windows as one file a category, named after the ids inside it."""

    def __init__(
        self, output: str, report: Callable[[str, int, int, float], None] = _ignore
    ) -> None:
        self.output, self.report = output, report

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return 0
        table = pa.concat_tables(tables, promote_options="default")
        categories = table["category"].cast(pa.string())
        for category in pa.compute.unique(categories).to_pylist():
            self._write(category, table.filter(pa.compute.equal(categories, category)))
        return len(table)

    def _write(self, category: str, table: pa.Table) -> None:
        started = time.perf_counter()
        metadata: dict[str, Any] = {}
        if "fingerprint" in table.column_names:
            metadata["fingerprint"] = table["fingerprint"][0].as_py()
        if "split" in table.column_names:
            columns = (table[name].to_pylist() for name in ("split", "source", "data_id"))
            metadata["runs"] = ledger.runs(*columns)
        for field in LABELLED:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        table = table.set_column(
            table.column_names.index("category"),
            pa.field("category", CATEGORY),
            pa.array([category] * len(table)).dictionary_encode(),
        )
        further = [f for f in table.schema if re.fullmatch(r"(ds|variance)_k\d+", f.name)]
        schema = pa.schema([*LABELLED, *further])  # of further distances
        table = table.select(schema.names).cast(schema)
        url = join(self.output, "labelled", f"category={category}", content_name(table["data_id"]))
        size = write_table(url, table, metadata)
        self.report(category, len(table), size, time.perf_counter() - started)


# --- the whole job -------------------------------------------------------------------------------


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

    Connects to the cluster of `RAY_ADDRESS`, or starts Ray here.

    Raises:
        ValueError: a path that matches nothing, an unknown column, an unreadable checkpoint, an
            output folder of other settings; before any actor starts.
        RunError: too many bad records, or a failure of the cluster, in one line.
        HeldError: another run is at work in the output folder.
        Interrupted: stopped by SIGTERM, with all that was in flight labelled where time allowed.
    """
    started = time.perf_counter()
    splits = list_splits(config.sources)
    check_sources(splits)
    from longattn.scoring.checkpoint import open_checkpoint  # 7 s: a bad path is told before

    checkpoint = open_checkpoint(config.scorer.model)
    scorer = config.scorer
    settings = ScoreSettings(
        scorer.model, config.min_distances, scorer.rope_theta, scorer.add_bos, scorer.dtype,
        scorer.query_stride,
    )  # fmt: skip
    settings.bos(checkpoint)
    with stoppable() as stop, held(config.output) as hold:
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
    sweep(config.output)
    left = _remaining(config.output, splits)
    for path in left.stale:
        log.warning("%s is gone or changed since its windows were labelled; they stay", path)

    scored: dict[str, float] = {"windows": 0, "tokens": 0, "seconds": 0.0}
    state: dict[str, Any] = {"restarts": 0, "retries": 0, "failed": []}
    if left.splits:
        with connected():
            stop.install()
            pools = plan_pools(config.workers, scorer.dtype)
            parts = settings.parts(checkpoint, config.window.tokens, scorer.dtype or pools.dtype)
            fingerprint = ledger.claim(config.output, parts, config)
            scored, state = _execute(config, settings, pools, left, stop)
        if hold.lost:
            raise RunError(f"{redact(config.output)}: another run has taken the folder over")
        after = _remaining(config.output, splits)
        if after.splits:
            missing = "; ".join(state["failed"][:3] or [s.path for s in after.splits[:3]])
            raise RunError(
                f"{len(after.splits)} of {len(splits)} splits are unfinished: {missing}; run again"
            )
    else:
        there = ledger.claimed(config.output)
        dtype = scorer.dtype or there["parts"]["dtype"]
        fingerprint = ledger.claim(
            config.output, settings.parts(checkpoint, config.window.tokens, dtype), config
        )
    selected_in = time.perf_counter()
    selection: dict[str, CategorySelection] = {}
    if select_after and ledger.labelled_files(config.output):
        chosen = config.select
        selection = select(
            config.output,
            alpha=chosen.alpha,
            standardize=chosen.standardize,
            rank_by=chosen.rank_by,
            overlap=chosen.overlap,
            keep=chosen.keep,
            file_bytes=config.file_bytes,
        )
    now = time.perf_counter()
    summary = _summary(
        config,
        fingerprint,
        splits,
        left,
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


def _remaining(output: str, splits: list[Split]) -> ledger.Remaining:
    """What remains, after rows that are there twice have been put right."""
    left = ledger.remaining(output, splits)
    if left.twice:
        log.warning(
            "%d rows were labelled twice: one of each stays", sum(map(len, left.twice.values()))
        )
        ledger.drop_repeats(left.twice)
        left = ledger.remaining(output, splits)
    return left


def _report(output: str) -> None:
    from longattn.report import write_report  # workers have no use for it

    try:
        write_report(output)
    except Exception as error:
        raise RunError(
            f"the selection is whole, but its report is not: {_reason(error)}; "
            f"`longattn report {redact(output)}` writes it again"
        ) from error


@contextmanager
def connected() -> Iterator[None]:
    """A Ray cluster: the one already connected to, that of RAY_ADDRESS, or one started here."""
    if ray.is_initialized():
        yield
        return
    ray.init(logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def _tasks(groups: list[list[Split]]) -> Dataset:
    """A Dataset of one block a task."""
    rows = [{"task": ledger.pack_task(splits)} for splits in groups]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _execute(
    config: Config, settings: ScoreSettings, pools: Pools, left: ledger.Remaining, stop: Stop
) -> tuple[dict[str, float], dict[str, Any]]:
    """The streaming execution; returns what the scorers did, and the claims' last state.

    Raises RunError; Interrupted after SIGTERM.
    """
    claims = Claims(left.labelled, left.documents)

    def sign() -> tuple[Any, str]:
        state = claims.state()
        return (monitor.snapshot(), state), waits_for(
            state["at"], pools.window_cpus, pools.score_gpus
        )

    monitor = Monitor(config.max_bad_fraction)
    log.info(
        "%d splits to read (%d done); window actors %d to %d, scoring actors %d to %d on %s",
        len(left.splits), left.finished, *pools.window, *pools.score, pools.device,
    )  # fmt: skip
    context = DataContext.get_current().copy()
    context.target_max_block_size = pools.block_bytes  # else smaller yields are merged
    # Ray Data stops a run that stands still for so long; a lost GPU may take as long to be made up.
    stall = max(context.execution_no_progress_timeout_s, config.workers.wait_seconds)
    context.execution_no_progress_timeout_s = stall
    context.enable_progress_bars = False
    with DataContext.current(context):
        windows = _tasks(group_splits(left.splits)).map_batches(
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
                "generation": left.generation,
            },
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(min_size=pools.window[0], max_size=pools.window[1]),
            num_cpus=pools.window_cpus,
            **RETRIES,
        )
        scored = _score(windows, settings, config.scorer.batch, pools, monitor.score_report())
        try:
            size = sum(split.size for split in left.splits)
            with watched(monitor, size, config.output), stop.drained(claims.stop, sign):
                _write(scored, LabelledSink(config.output, monitor.write_report()))
        except Interrupted:
            raise
        except Exception as error:
            stopped = monitor.snapshot()["stopped"]
            raise RunError(stopped or _reason(error)) from error
    return monitor.snapshot()["scored"], claims.state()


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
