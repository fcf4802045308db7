"""Functions in threads, with results in order and no more of them waiting than threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

CORES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


def in_threads(function: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """`function` of each item, in order; the next ones are at work while a result is used."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_ahead(items: Iterator[A]) -> Iterator[A]:
    """The items; a thread makes the next one while one is used."""
    following = in_threads(lambda rest: next(((item,) for item in rest), ()), repeat(items), 1)
    for item in following:
        if not item:
            return
        yield item[0]
