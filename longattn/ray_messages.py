"""What Ray writes to the terminal of itself, and what of it is left out."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, Thread


def quieten_ray() -> None:
    """Leave out what Ray logs of itself."""
    # That a cluster started here asks for a token, which Ray itself keeps, is no news.
    authentication = logging.getLogger("ray._private.authentication.authentication_token_setup")
    authentication.addFilter(lambda record: "is enabled" not in record.getMessage())
    if not os.environ.get("LONGATTN_TRACEBACK"):
        import ray.data  # noqa: F401 - its handlers

        # Ray Data logs a failure in 110 lines, which its log file has too.
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)


# Ray Data hands each actor of a pool two objects that it has put into the store itself, its context and
# what it runs; an actor that may be restarted makes Ray's core log an error of that each time it is
# created. The driver holds both for as long as the pool lives, so a restart finds them.
# A Ray that asks for a token refuses a driver once a second before it says so in an exception.
_LEFT_OUT = re.compile(
    rb"core_worker\.cc.* has constructor arguments in the object store and max_restarts > 0"
    rb"|gcs_client\.cc.* Failed to get cluster ID from GCS server"
)
_changing = Lock()
_blocks = 0
"""How many threads are within the filter; the first sets it up, the last takes it away."""
_filter = ExitStack()
_left_out: deque[bytes] = deque(maxlen=1)
"""The last line."""


@contextmanager
def without_noise() -> Iterator[deque[bytes]]:
    """Ray's core writes to the terminal in the block, but for lines that no user can act on.

    Gives the last such line, if there was one.

    Only file descriptor 2 knows them: they come from C++. `sys.stderr` writes past the filter, be it
    the terminal or a notebook's. Blocks may overlap, also those of several threads.
    """
    global _blocks
    with _changing:
        if _blocks == 0:
            _left_out.clear()
            _filter.enter_context(_filtered())
        _blocks += 1
    try:
        yield _left_out
    finally:
        with _changing:
            _blocks -= 1
            if _blocks == 0:
                _filter.close()


@contextmanager
def _filtered() -> Iterator[None]:
    try:
        terminal = os.dup(2)
    except OSError:  # closed
        yield
        return
    before, redirected = sys.stderr, _is_terminal(sys.stderr)
    if redirected:
        before.flush()
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    passing = Thread(target=_pass_on, args=(reading, terminal), daemon=True)
    passing.start()
    with _past_the_filter(terminal) if redirected else ExitStack():
        try:
            yield
        finally:
            os.dup2(terminal, 2)
    passing.join(5)  # a process that Ray started and that outlives it may hold the pipe


@contextmanager
def _past_the_filter(terminal: int) -> Iterator[None]:
    """In the block, `sys.stderr` and the log handlers on it write to another descriptor."""
    before = sys.stderr
    ours = [h for h in logging.getLogger().handlers if getattr(h, "stream", None) is before]
    with os.fdopen(
        os.dup(terminal), "w", 1, encoding=before.encoding, errors=before.errors
    ) as direct:
        sys.stderr = direct
        for handler in ours:
            handler.setStream(direct)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            sys.stderr = before
            for handler in ours:
                handler.setStream(before)  # type: ignore[attr-defined]


def _is_terminal(stream: object) -> bool:
    """Whether a stream writes to descriptor 2, as it does not in a notebook."""
    try:
        return stream.fileno() == 2  # type: ignore[attr-defined, no-any-return]
    except (OSError, ValueError, AttributeError):
        return False


def _pass_on(reading: int, writing: int) -> None:
    with os.fdopen(reading, "rb") as lines, os.fdopen(writing, "wb", 0) as terminal:
        for line in lines:
            if _LEFT_OUT.search(line):
                _left_out.append(line)
            else:
                terminal.write(line)
