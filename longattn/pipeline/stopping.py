"""SIGTERM, as spot machines and schedulers send it: finish what is in flight, then say "resume me"."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from longattn.errors import Interrupted

log = logging.getLogger("longattn")

GRACE = 25.0  # seconds; Kubernetes and spot machines grant 30 or more before SIGKILL
AGAIN = 10.0  # seconds, should a library have swallowed the exception that ends the run
LAST = 28.0  # seconds, after which the process ends in any case
POLL = 0.5
STALLED = 120.0  # seconds without a sign of progress, after which a run says what it waits for


class Stop:
    """What SIGTERM does to a run: ends it at once, or, while it executes, after what is in flight."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.draining = False
        self.installed = False
        self.error: Exception = Interrupted("stopped by SIGTERM; run again to go on")

    def install(self) -> None:
        """Take the signals, in the main thread."""
        signal.signal(signal.SIGTERM, self._term)
        signal.signal(signal.SIGALRM, self._late)
        self.installed = True

    def end(self, error: Exception) -> None:
        """Raise this in the main thread, at once; of a run in another thread, as after SIGTERM."""
        self.error = error
        self.asked.set()
        if self.installed:
            signal.setitimer(signal.ITIMER_REAL, 1e-3, AGAIN)

    def _term(self, *_: object) -> None:
        self.asked.set()
        if not self.draining:
            self._late()
        signal.setitimer(signal.ITIMER_REAL, GRACE, AGAIN)

    def _late(self, *_: object) -> None:
        raise self.error

    @contextmanager
    def drained(
        self, stop: Callable[[], None], sign: Callable[[], tuple[Any, str]]
    ) -> Iterator[None]:
        """Inside the block SIGTERM calls `stop` and grants GRACE seconds.

        `sign` gives something that changes while there is progress, and what is waited for.
        Raises Interrupted at the end of the block where a stop was asked for.
        """
        ended = threading.Event()

        def watch() -> None:
            told, last, since = False, None, time.monotonic()
            while not ended.wait(POLL):
                if self.asked.is_set() and not told:
                    told = True
                    log.warning("told to stop: finishing what is in flight, %.0f s at most", GRACE)
                    stop()
                if time.monotonic() - since > STALLED / 2:
                    try:
                        now, waiting = sign()
                    except ray.exceptions.RayError:  # the run fails of it, and tells
                        return
                    if now == last:
                        log.warning("no progress for a minute or more; waiting for %s", waiting)
                    last, since = now, time.monotonic()

        thread = threading.Thread(target=watch, daemon=True)
        self.draining = True
        thread.start()
        try:
            yield
        finally:
            self.draining = False
            ended.set()
            signal.setitimer(signal.ITIMER_REAL, 0)
            thread.join()
        if self.asked.is_set():
            self._late()


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """SIGTERM raises Interrupted in the block; the handlers of before are put back after it.

    So do failures that follow: Ray's processes may have been told as well. A process that is still in
    the block LAST seconds after it was to end exits all the same.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGALRM)}
    stop.install()
    try:
        with _ended(stop):
            yield stop
    except Exception as error:
        if not stop.asked.is_set() or error is stop.error:
            raise
        log.warning("while it stopped: %s", str(error).strip().partition("\n")[0])
        raise stop.error from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in before.items():
            signal.signal(name, handler or signal.SIG_DFL)


@contextmanager
def _ended(stop: Stop) -> Iterator[None]:
    """The last resort: Ray may wait in C++ for a process of its own that was told as well.

    No handler in Python runs meanwhile, so another thread hears of the signals.
    """
    ended = threading.Event()
    here, there = socket.socketpair()

    def watch() -> None:
        told = b""
        while signal.SIGTERM not in told and not stop.asked.is_set():
            told = here.recv(64)
            if not told:
                return
        if not ended.wait(LAST):
            print(f"longattn: {stop.error}", file=sys.stderr, flush=True)
            os._exit(getattr(stop.error, "exit_status", 1))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    there.setblocking(False)
    before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        there.close()
        thread.join()
        here.close()


def describe_wait(at: list[str], cpus: float, gpus: float) -> str:
    """What a run without progress waits for, as far as can be seen.

    Args:
        at: documents that are being tokenized.
        cpus, gpus: what one actor of each pool needs.
    """
    there = ray.cluster_resources()
    if there.get("GPU", 0) < gpus:
        return f"a node with {gpus:g} GPU; the cluster has {there.get('GPU', 0):g}"
    free = ray.available_resources()
    if free.get("CPU", 0) < cpus and free.get("CPU", 0) == 0:
        return "free CPUs: other work on the cluster may have all of them"
    if at:
        return f"the tokenizer, at documents {', '.join(at[:3])}"
    return "its scorers, or the storage; `ray status` and the Ray dashboard tell more"
