"""Composition: functions from Dataset to Dataset, of which `run` is made and users make their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from longattn.config import SCORER_BATCH, Sample, Source, Workers
from longattn.corpus.reading import read_split
from longattn.corpus.records import Record, Split, pack_task, unpack_task
from longattn.corpus.sources import check_sources, group_splits, list_splits
from longattn.pipeline.labelled_sink import LabelledSink, no_report
from longattn.pipeline.pools import Pools, actor_pool, plan_pools
from longattn.pipeline.score_actor import ScoreAgain, ScoreWindows
from longattn.pipeline.window_actor import DocumentWindows
from longattn.scoring.settings import ScoreSettings
from longattn.storage.files import join, list_files
from longattn.storage.tables import LABELLED, open_parquet

MAX_BLOCK = 32 * 2**20
WRITERS = 128  # files being written at once; an upload of a second keeps up with 300 GPUs
# Ray Data starts an actor again for ever, and a task. Ray 2.60 has no other way to bound that, and
# says at each use that this one will go in 2.64.
warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")  # of WRITERS
RETRIES: dict[str, Any] = {"max_restarts": 100, "max_task_retries": 20}


def read_documents(sources: Iterable[Source | dict[str, Any]]) -> Dataset:
    """Documents of the sources as rows `content`, `category`, `source`; bad records are left out.

    Raises ValueError at once for a path that matches nothing or a column that is not there.
    """
    checked = [s if isinstance(s, Source) else Source.model_validate(s) for s in sources]
    splits = list_splits(checked)
    check_sources(splits)
    return dataset_of_tasks(group_splits(splits)).map_batches(
        _read_task, batch_size=1, batch_format="numpy", num_cpus=0.25
    )


def _read_task(batch: dict[str, Any]) -> Iterator[pa.Table]:
    for split in unpack_task(batch["task"][0]):
        for record in read_split(split):
            if isinstance(record, Record):
                row = {"content": record.text, "category": split.category, "source": split.source}
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
    workers: tuple[int, int | None] = (1, None),
) -> Dataset:
    """Documents -> windows, with the tokenizer of the scoring checkpoint.

    Reads `text_column` and, where they are there, `category` and `source`; gives storage.WINDOWS.
    `min_distance` is that of the far recurrence; a quarter of the window by default. `workers`:
    the smallest and the largest pool of actors; None: as large as the cluster.
    """
    if min_distance is None:
        min_distance = max(1, window // 4)
    return documents.map_batches(
        DocumentWindows,
        fn_constructor_kwargs={
            "model": model, "window": window, "min_distance": min_distance,
            "text_column": text_column, "sample": sample, "block_bytes": MAX_BLOCK // 2,
        },
        batch_size=16,
        batch_format="pyarrow",
        compute=actor_pool(workers),
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
    batch: int | None = None,
    workers: tuple[int, int | None] = (1, None),
    gpus_per_scorer: float | None = None,
) -> Dataset:
    """Windows (a column `input_ids`, all of one length) -> the same rows with their scores.

    Adds `ds`, `variance` (mean over heads) and `ds_heads`, `variance_heads`.
    """
    pools = plan_pools(Workers(score=workers, gpus_per_scorer=gpus_per_scorer), dtype)
    settings = ScoreSettings(model, min_distance, rope_theta, add_bos, dtype)
    return with_scores(windows, settings, batch, pools, no_report)


def write_labelled(scored: Dataset, path: str) -> None:
    """Write scored windows below `<path>/labelled/category=.../`; each file appears whole."""
    write_with(scored, LabelledSink(path))


def write_with(scored: Dataset, sink: LabelledSink) -> None:
    """Execute, and give what is scored to the sink.

    A task of it takes no CPU, so that nothing keeps it from writing; but Ray starts a process for
    each that waits, 2 s of a core, so where CPUs score, which takes far longer than to write, it is
    few of them.
    """
    cluster = ray.cluster_resources()
    writers = WRITERS if cluster.get("GPU") else max(2, int(cluster.get("CPU", 1)) // 16)
    arguments = {"num_cpus": 0, "max_retries": RETRIES["max_task_retries"]}
    scored.write_datasink(sink, ray_remote_args=arguments, concurrency=writers)


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


def with_scores(
    windows: Dataset,
    settings: ScoreSettings,
    batch: int | None,
    pools: Pools,
    report: Callable[..., None],
    tasks: int = 1,
) -> Dataset:
    """The scoring stage, with actors as `pools` says; `report` as `Monitor.score_report` gives.

    `tasks` is how many the stage before has: no more actors start at first.
    """
    return windows.map_batches(
        ScoreWindows,
        fn_constructor_args=(settings, pools.device, pools.threads, report),
        batch_size=batch or SCORER_BATCH[pools.device],
        batch_format="pyarrow",
        **scoring_pool(pools, tasks),
    )


def score_again_with(
    wanted: Mapping[str, list[int]], settings: ScoreSettings, batch: int | None, pools: Pools
) -> int:
    """Give rows of labelled files their exact scores; returns how many."""
    rows = [{"url": url, "rows": of_file} for url, of_file in wanted.items()]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ScoreAgain,
        fn_constructor_args=(
            batch or SCORER_BATCH[pools.device],
            settings,
            pools.device,
            pools.threads,
            no_report,
        ),
        batch_size=1,
        batch_format="pyarrow",
        **scoring_pool(pools, len(rows)),
    )
    return sum(row["scored"] for row in done.iter_rows())


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
