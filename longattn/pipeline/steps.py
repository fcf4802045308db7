"""Composition: functions from Dataset to Dataset, of which `run` is made and users make their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset, Datasink
from ray.data.block import Block, BlockAccessor

from longattn.config import ConfigLike, Sample, Scorer, Source, Workers, output_of
from longattn.corpus.columns import arrow_type
from longattn.corpus.first_look import check_sources, column_types, with_types
from longattn.corpus.reading import read_split
from longattn.corpus.records import Record, Split, pack_task, unpack_task
from longattn.corpus.sources import group_splits, list_splits
from longattn.pipeline.failures import FailureReport, failures_reported, no_failure_report
from longattn.pipeline.inputs import as_dataset, as_model, as_sources
from longattn.pipeline.labelled_sink import WriteReport, no_report, write_labelled_windows
from longattn.pipeline.pools import Pools, actor_pool, plan_pools
from longattn.pipeline.score_actor import ScoreStage, ScoreWindows, ScoringReports
from longattn.pipeline.window_actor import DocumentWindows
from longattn.ray_messages import without_noise
from longattn.scoring.settings import ScoreSettings
from longattn.settings.numbers import TokenLength, read_number
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import LABELLED, open_parquet, own_files
from longattn.text import without_secrets

MAX_BLOCK = 32 * 2**20
WRITERS = 128  # files being written at once; an upload of a second keeps up with 300 GPUs
# Ray Data starts an actor again for ever, and a task. Ray 2.60 has no other way to bound that, and
# says at each use that this one will go in 2.64.
warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")  # of WRITERS
RETRIES: dict[str, Any] = {"max_restarts": 100, "max_task_retries": 20}


def read_documents(sources: Iterable[Source | dict[str, Any]] | ConfigLike) -> Dataset:
    """Documents of the sources as rows `content`, `category`, `source`; bad records are left out.

    The `columns` of a source come with them. `sources` may be a config, too.

    Raises ValueError at once for a path that matches nothing or a column that is not there.
    """
    chosen = as_sources(sources)
    splits = list_splits(chosen)
    check_sources(splits, chosen)
    splits = with_types(splits, column_types(splits))
    return dataset_of_tasks(group_splits(splits)).map_batches(
        _read_task, batch_size=1, batch_format="numpy", num_cpus=0.25
    )


def _read_task(batch: dict[str, Any]) -> Iterator[pa.Table]:
    for split in unpack_task(batch["task"][0]):
        for record in read_split(split):
            if isinstance(record, Record):
                row = {"content": record.text, "category": split.category, "source": split.source}
                columns = {
                    name: pa.array([value], pa.large_string()) for name, value in row.items()
                }
                for name, kind in split.columns:
                    columns[name] = pa.array([record.extra.get(name)], arrow_type(kind))
                yield pa.table(columns)


def window_documents(
    documents: Any,
    *,
    model: str = "builtin",
    window: int | str = 32768,
    min_distance: int | str | None = None,
    text_column: str = "content",
    sample: Sample | dict[str, Any] | None = None,
    workers: tuple[int, int | None] = (1, None),
) -> Dataset:
    """Documents -> windows, with the tokenizer of the scoring checkpoint.

    Reads `text_column` and, where they are there, `category` and `source`; gives storage.WINDOWS.
    `documents`: a Ray Dataset, a table of pandas, Arrow, Polars or Hugging Face, or a list of rows or
    texts. `min_distance` is that of the far recurrence; a quarter of the window by default.
    `workers`: the smallest and the largest pool of actors; None: as large as the cluster.

    Raises ValueError, one line, for an argument that cannot be meant.
    """
    window = read_number(TokenLength, "window", window)
    if min_distance is None:
        min_distance = max(1, window // 4)
    min_distance = read_number(TokenLength, "min_distance", min_distance)
    sample = sample and Sample.check(sample, "sample")
    model = as_model(model)
    return as_dataset(documents, "documents", text_column).map_batches(
        DocumentWindows,
        fn_constructor_kwargs={
            "model": model,
            "window": window,
            "min_distance": min_distance,
            "text_column": text_column,
            "sample": sample,
            "block_bytes": MAX_BLOCK // 2,
        },
        batch_size=16,
        batch_format="pyarrow",
        compute=actor_pool(workers),
        num_cpus=0.25,
    )


def score_windows(
    windows: Any,
    *,
    model: str = "builtin",
    min_distance: int | str | None = None,
    rope_theta: float | None = None,
    add_bos: bool | None = None,
    dtype: str | None = None,
    batch: int | None = None,
    workers: tuple[int, int | None] = (1, None),
    gpus_per_scorer: float | None = None,
) -> Dataset:
    """Windows (a column `input_ids`, all of one length) -> the same rows with their scores.

    Adds `ds`, `variance` (mean over heads), `ds_heads`, `variance_heads`, and what scored them:
    `fingerprint`, `scored_by`. `windows` may be what `window_documents` takes, too.

    Raises ValueError, one line, for an argument that cannot be meant.
    """
    pool = {"score": workers, "gpus_per_scorer": gpus_per_scorer}
    scorer = Scorer.check(
        {
            "model": model,
            "min_distance": min_distance,
            "rope_theta": rope_theta,
            "add_bos": add_bos,
            "dtype": dtype,
            "batch": batch,
        },
        "score_windows",
    )
    settings = ScoreSettings(
        as_model(scorer.model), scorer.min_distance, rope_theta, add_bos, scorer.dtype
    )
    windows = as_dataset(windows, "windows", "input_ids")
    pools = plan_pools(Workers.check(pool, "score_windows: workers"), dtype)
    stage = ScoreStage(settings, pools.device, pools.threads, scorer.batch, run=False)
    return with_scores(windows, stage, pools)


def write_labelled(scored: Dataset, path: ConfigLike) -> None:
    """Write scored windows below `<path>/labelled/<category>/`; each file appears whole.

    `select`, `report`, `inspect` and `verify` take the folder; what only a run knows, they say.
    """
    write_with(scored, LabelledSink(output_of(path)))


class LabelledSink(Datasink[int]):
    """The sink of a run as Ray Data calls it: each block becomes one file a category."""

    def __init__(
        self,
        output: str,
        report: WriteReport = no_report,
        failed: FailureReport = no_failure_report,
    ) -> None:
        self.output, self.report, self.failed = output, report, failed

    def write(self, blocks: Iterable[Block], ctx: Any) -> int:
        tables = [self.table(block) for block in blocks]
        with failures_reported(self.failed, "writing", lambda: without_secrets(self.output)):
            return write_labelled_windows(self.output, tables, self.report)

    def table(self, block: Block) -> pa.Table:
        return BlockAccessor.for_block(block).to_arrow()


def write_with(scored: Dataset, sink: LabelledSink) -> None:
    """Execute, and give what is scored to the sink.

    A task of it takes no CPU, so that nothing keeps it from writing; but Ray starts a process for
    each that waits, 2 s of a core, so where CPUs score, which takes far longer than to write, it is
    few of them.
    """
    cluster = ray.cluster_resources()
    writers = WRITERS if cluster.get("GPU") else max(2, int(cluster.get("CPU", 1)) // 16)
    arguments = {"num_cpus": 0, "max_retries": RETRIES["max_task_retries"]}
    with without_noise():
        scored.write_datasink(sink, ray_remote_args=arguments, concurrency=writers)


def read_labelled(path: ConfigLike, columns: Sequence[str] | None = None) -> Dataset:
    """The labelled windows below `<path>/labelled` as a Dataset, only the named columns if given."""
    folder = OutputFolder(output_of(path))
    files = own_files(folder.labelled_files())
    if not files:
        raise ValueError(f"{folder.labelled}: no labelled windows there")
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


def with_scores(
    windows: Dataset,
    stage: ScoreStage,
    pools: Pools,
    reports: ScoringReports = (no_report, no_failure_report, no_report),
    tasks: int = 1,
    scores: type[ScoreWindows] | None = None,
) -> Dataset:
    """The scoring stage, with actors as `pools` says; `reports` as a `Monitor` gives them.

    A block of windows is scored whole, so that what is written depends on no other block. `tasks` is
    how many the stage before has: no more actors start at first. `scores`: another class of actors.
    """
    # `map_batches` itself wants a number of rows where there are GPUs, which would put blocks together.
    return windows.map_batches_internal(
        scores or ScoreWindows,
        fn_constructor_args=(stage, *reports),
        batch_size=None,
        batch_format="pyarrow",
        **scoring_pool(pools, tasks),
    )


def scoring_pool(pools: Pools, tasks: int) -> dict[str, Any]:
    """How Ray Data is to run scoring actors."""
    blocks_at_once = 2 if pools.device == "cuda" else 1
    return {
        "compute": actor_pool(pools.score, blocks_at_once, min(pools.idle_gpus, tasks)),
        "num_cpus": pools.score_cpus,
        "num_gpus": pools.score_gpus or None,
        **RETRIES,
    }


def dataset_of_tasks(groups: list[list[Split]]) -> Dataset:
    """A Dataset of one block a task."""
    rows = [{"task": pack_task(splits)} for splits in groups]
    return ray.data.from_items(rows, override_num_blocks=len(rows))
