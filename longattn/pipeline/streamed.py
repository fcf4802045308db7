"""The stages of a run that goes on, on Ray: one execution whose first stage yields tasks as they come.

Ray Data merges what a stage yields until it has a block of `target_max_block_size`, and cuts what is
larger between rows: a task would wait for others to come. So here that size is a byte, which lets
everything go at once, and a table between two stages is one row, which nothing can cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset
from ray.data.block import Block, BlockAccessor
from ray.data.context import DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longattn.corpus.records import pack_task
from longattn.pipeline.feed import Feed
from longattn.pipeline.score_actor import ScoreWindows
from longattn.pipeline.steps import LabelledSink
from longattn.pipeline.window_actor import SplitWindows
from longattn.resume.claims import Caller

POLL = 0.2  # seconds between two questions for new tasks
AT_ONCE = 1000  # tasks that one answer holds


class TaskQueue:
    """All tasks of an execution in their order; called through a `Caller`.

    They are kept: should the stage that yields them be started again, it yields the same.
    """

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.closed = False

    def put(self, task: str) -> None:
        self.tasks.append(task)

    def close(self) -> None:
        self.closed = True

    def after(self, number: int) -> tuple[list[str], bool]:
        """Some tasks after so many, and whether there are and will be no more than these."""
        some = self.tasks[number : number + AT_ONCE]
        return some, self.closed and number + len(some) == len(self.tasks)


@contextmanager
def filled(feed: Feed | None, queue: Caller | None) -> Iterator[None]:
    """Passes the tasks of a feed, where there is one, on to a queue while the block runs."""
    if feed is None or queue is None:
        yield
        return

    def fill() -> None:
        for task in feed:
            queue.ask("put", pack_task(task))
        queue.ask("close")

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        feed.close()
        thread.join()


def dataset_of_queue(queue: Caller) -> Dataset:
    """A Dataset whose rows are the tasks of a queue, as they come, until it is closed."""
    yields: Any = _tasks  # what else it takes, Ray Data's types do not say
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.data.from_items([{"queue": 0}], override_num_blocks=1).map_batches(
        yields, fn_args=(queue,), batch_size=1, num_cpus=0, scheduling_strategy=here
    )


def _tasks(_: Any, queue: Caller) -> Iterator[pa.Table]:
    number, last = 0, False
    while not last:
        tasks, last = queue.ask("after", number)()
        number += len(tasks)
        if tasks:
            yield pa.table({"task": tasks})
        elif not last:
            time.sleep(POLL)


def streaming(context: DataContext, idle: float) -> None:
    """Set what an execution that goes on needs; it may stand still for as long as `idle`."""
    context.target_max_block_size = 1
    context.execution_no_progress_timeout_s += idle
    context.issue_detectors_config.detectors = []  # which take the stage that yields tasks for stuck


def packed(table: pa.Table) -> pa.Table:
    """A table as one row of bytes, copied once."""
    size = pa.MockOutputStream()
    _write(table, size)
    data = pa.allocate_buffer(size.size())
    _write(table, pa.FixedSizeBufferWriter(data))
    ends = pa.array([0, data.size], pa.int64()).buffers()[1]
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])
    return pa.table({"table": column})


def _write(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def unpacked(block: pa.Table) -> pa.Table:
    """The table that is packed in a row, in place; an empty block as it is."""
    if not len(block):
        return block
    tables = []
    for rows in block["table"].chunks:  # a row by itself would be a copy
        _, ends, data = rows.buffers()
        bounds = np.frombuffer(ends, np.int64)[rows.offset :][: len(rows) + 1].tolist()
        parts = [data.slice(start, stop - start) for start, stop in pairwise(bounds)]
        tables += [pa.ipc.open_stream(part).read_all() for part in parts]
    return pa.concat_tables(tables)


class StreamedSplits(SplitWindows):
    """`SplitWindows` whose tables are packed."""

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        yield from map(packed, super().__call__(batch))


class StreamedScores(ScoreWindows):
    """`ScoreWindows` of tables that are packed."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return packed(super().__call__(unpacked(block))) if len(block) else block


class StreamedSink(LabelledSink):
    """The sink of tables that are packed."""

    def table(self, block: Block) -> pa.Table:
        return unpacked(BlockAccessor.for_block(block).to_arrow())
