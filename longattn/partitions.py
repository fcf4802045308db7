"""Tables in partitions, and functions over them: on this machine's disk, or on Ray.

Between two steps a partition lies in an Arrow file of a temporary folder, or in Ray's object store,
which spills to disk too. In memory are those at work: one a thread here, one a task on Ray.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa

log = logging.getLogger("longattn")

On = Literal["auto", "local", "ray"]
Handle = Any  # of a partition: of use to the place that gave it; or a small table itself
Job = tuple[Callable[[pa.Table], Any], Handle]  # a function to be called with the partition
FOLDER, HELD = "longattn-select-", "held"  # in the temporary folder, and the locked file in it
ROW_BYTES = 160  # of the narrow columns of a window, as they lie between the steps
THREADS = min(8, os.cpu_count() or 1)


class Place(Protocol):
    """Where partitions lie and functions run. Results come in the order of the jobs."""

    def each(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """What the functions return, which should be small."""

    def update(self, jobs: Iterable[Job]) -> tuple[list[Handle], list[Any]]:
        """Functions that return a table, which takes the partition's place, and a result."""

    def exchange(self, jobs: Iterable[Job], parts: int) -> tuple[list[Handle], list[Any]]:
        """Functions that return `parts` tables and a result. Partition k is all the k-th tables."""


@contextmanager
def placed(on: On, rows: int) -> Iterator[Place]:
    """A place for partitions of about so many rows in all. `auto`: Ray where they outgrow this machine.

    That is more than half of its memory: less stays in the page cache between the steps.
    """
    if on == "auto":
        on = "ray" if rows * ROW_BYTES > memory() / 2 else "local"
    if on == "ray":
        from longattn.cluster import connected  # who selects here needs no Ray

        log.info("selecting from about %d windows on Ray", rows)
        with connected():
            yield _OnRay()
    else:
        _sweep()
        with (
            tempfile.TemporaryDirectory(prefix=FOLDER) as folder,
            Path(folder, HELD).open("w") as held,
        ):
            fcntl.flock(held, fcntl.LOCK_EX)  # falls with this process
            yield _OnDisk(Path(folder))


def _sweep() -> None:
    """Remove what killed processes of this user left in the temporary folder."""
    for held in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/{HELD}"):
        status = held.stat()
        if status.st_uid != os.getuid() or status.st_mtime > time.time() - 60:  # it may be starting
            continue
        with held.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # its process lives
                continue
            shutil.rmtree(held.parent)


def memory() -> int:
    """Bytes that this machine has, or that its control group allows."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return min(physical, int(allowed)) if allowed.isdigit() else physical


class _OnDisk:
    """Partitions in Arrow files, mapped into memory by the threads that work on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, count()

    def each(self, jobs: Iterable[Job]) -> Iterator[Any]:
        yield from self._run(lambda job: job[0](_open(job[1])), jobs)

    def update(self, jobs: Iterable[Job]) -> tuple[list[Handle], list[Any]]:
        def replace(job: Job) -> tuple[Handle, Any]:
            table, result = job[0](_open(job[1]))
            path = self._path()
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
            job[1].unlink()
            return path, result

        done = list(self._run(replace, jobs))
        return [handle for handle, _ in done], [result for _, result in done]

    def exchange(self, jobs: Iterable[Job], parts: int) -> tuple[list[Handle], list[Any]]:
        handles = [self._path() for _ in range(parts)]
        writers: list[pa.ipc.RecordBatchFileWriter] = []
        results = []
        with ExitStack() as closing:
            for tables, result in self.each(jobs):
                if not writers:
                    writers = [
                        closing.enter_context(pa.ipc.new_file(str(path), table.schema))
                        for path, table in zip(handles, tables, strict=True)
                    ]
                for writer, table in zip(writers, tables, strict=True):
                    writer.write_table(table)
                results.append(result)
        return handles, results

    def _path(self) -> Path:
        return self.folder / f"{next(self.names)}.arrow"

    def _run(self, function: Callable[[Job], Any], jobs: Iterable[Job]) -> Iterator[Any]:
        """In threads, not further ahead of who takes the results than there are threads."""
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _open(handle: Handle) -> pa.Table:
    if isinstance(handle, pa.Table):
        return handle
    with pa.memory_map(str(handle)) as source:
        return pa.ipc.open_file(source).read_all()


class _OnRay:
    """Partitions as pieces in Ray's object store; a task gets those of its partition put together.

    Tasks, and pieces that went with a node, are done again: nodes may be spot ones.
    """

    def each(self, jobs: Iterable[Job]) -> Iterator[Any]:
        yield from map(_got, self._run(_apply, jobs, 1))

    def update(self, jobs: Iterable[Job]) -> tuple[list[Handle], list[Any]]:
        done = self._run(_apply, jobs, 2)
        return [[table] for table, _ in done], [_got(result) for _, result in done]

    def exchange(self, jobs: Iterable[Job], parts: int) -> tuple[list[Handle], list[Any]]:
        if not parts:
            return [], [result for _, result in self.each(jobs)]
        done = self._run(_apply_flat, jobs, parts + 1)
        handles = [[refs[part] for refs in done] for part in range(parts)]
        return handles, [_got(refs[-1]) for refs in done]

    def _run(self, function: Callable[..., Any], jobs: Iterable[Job], returns: int) -> list[Any]:
        import ray

        task = ray.remote(num_returns=returns, max_retries=20)(function)
        return [
            task.remote(job, *([pieces] if isinstance(pieces, pa.Table) else pieces))
            for job, pieces in jobs
        ]


def _apply(function: Callable[[pa.Table], Any], *pieces: pa.Table) -> Any:
    return function(pa.concat_tables(pieces))


def _apply_flat(function: Callable[[pa.Table], Any], *pieces: pa.Table) -> tuple[Any, ...]:
    tables, result = _apply(function, *pieces)
    return (*tables, result)


def _got(result: Any) -> Any:
    import ray

    try:
        return ray.get(result)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as it would be raised here
