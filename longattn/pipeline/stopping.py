"""SIGTERM, SIGINT and the watching of a run: finish what is in flight, then say "resume me"."""

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
from typing import Any, NamedTuple

from longattn.errors import Interrupted
from longattn.text import counted

log = logging.getLogger("longattn")

GRACE = 25.0  # seconds; Kubernetes and spot machines grant 30 or more before SIGKILL
AGAIN = 10.0  # seconds, should a library have swallowed the exception that ends the run
LAST = 28.0  # seconds, after which the process ends in any case
POLL = 0.5
STALLED = 120.0  # seconds without a sign of progress, after which a run says what it waits for
BUSY = 2.0  # threads that want to run, for each core, from which on the machine itself is slow


@contextmanager
def every(seconds: float, work: Callable[[], None]) -> Iterator[None]:
    """Calls `work` in a thread every so many seconds while the block runs; it stops when it raises.

    What it raises is logged for who debugs: what it watches is gone, and the block itself says why.
    """
    ended = threading.Event()

    def watch() -> None:
        try:
            while not ended.wait(seconds):
                work()
        except Exception as error:
            log.debug("watching ended: %s", error, exc_info=error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def busy_machine() -> str:
    """` (this machine is busy: ...)` where more waits for its cores than they can do; else empty."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if load < BUSY * cores:
        return ""
    return f" (this machine is busy: a load of {load:.0f} on {counted(cores, 'core')})"


class Sign(NamedTuple):
    """What is seen of a run from outside."""

    mark: Any
    """Equal to that of before where there is no progress."""
    waiting: str = ""
    """What a run without progress waits for, as far as can be seen."""
    doing: str = ""
    """What it computes, where something is known to."""


class Stop:
    """What a signal does to a run: ends it at once, or, while it executes, after what is in flight.

    A second Ctrl-C ends it at once in any case.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.in_flight = False
        self.installed = False
        self.error: Exception = Interrupted(signal.SIGTERM)

    def install(self) -> None:
        """Take the signals, in the main thread."""
        signal.signal(signal.SIGTERM, self._told)
        signal.signal(signal.SIGINT, self._told)
        signal.signal(signal.SIGALRM, self._late)
        self.installed = True

    def end(self, error: Exception) -> None:
        """Raise this in the main thread, at once; of a run in another thread, as after SIGTERM."""
        self.error = error
        self.asked.set()
        if self.installed:
            signal.setitimer(signal.ITIMER_REAL, 1e-3, AGAIN)

    def _told(self, number: int, _: object) -> None:
        again = self.asked.is_set() and number == signal.SIGINT
        if not self.asked.is_set():
            self.error = Interrupted(signal.Signals(number))
        self.asked.set()
        if again or not self.in_flight:
            raise KeyboardInterrupt  # libraries, as Ray while it starts, swallow what is an Exception
        signal.setitimer(signal.ITIMER_REAL, GRACE, AGAIN)

    def _late(self, *_: object) -> None:
        raise self.error

    @contextmanager
    def draining(self, stop: Callable[[], None], sign: Callable[[], Sign]) -> Iterator[None]:
        """Inside the block a signal calls `stop` and grants GRACE seconds.

        Raises Interrupted at the end of the block where a stop was asked for.
        """
        if self.asked.is_set():  # before anything is in flight
            self._late()
        stopped, last, since = False, None, time.monotonic()

        def look() -> None:
            nonlocal stopped, last, since
            if self.asked.is_set() and not stopped:
                stopped = True
                log.warning("told to stop: finishing what is in flight, %.0f s at most", GRACE)
                stop()
            if time.monotonic() - since > STALLED / 2:
                now = sign()
                if now.mark == last and now.doing:
                    log.info("%s", now.doing)
                elif now.mark == last:
                    told = "no progress for a minute or more; waiting for %s%s"
                    log.warning(told, now.waiting, busy_machine())
                last, since = now.mark, time.monotonic()

        self.in_flight = True
        try:
            with every(POLL, look):
                yield
        finally:
            self.in_flight = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.asked.is_set():
            self._late()


@contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """SIGTERM and SIGINT raise Interrupted in the block; the handlers of before are put back after it.

    So do failures that follow: Ray's processes may have been told as well. A process that is still in
    the block LAST seconds after it was to end exits all the same.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    stop.install()
    try:
        with _ended(stop):
            yield stop
    except BaseException as error:
        if not stop.asked.is_set() or error is stop.error:
            raise
        if isinstance(error, Exception):
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
        heard = b""
        while signal.SIGTERM not in heard and not stop.asked.is_set():
            heard = here.recv(64)
            if not heard:
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
