"""How every command takes its arguments, logs, and ends: one line and an exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from longattn.errors import ConfigError, Interrupted, RunError, exit_status
from longattn.text import lines_without_secrets, without_secrets

log = logging.getLogger("longattn")

LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "duckdb", "_duckdb")
"""Whose errors are none of Python's own: clients of stores, and the database."""

ConfigPath = Annotated[
    str, typer.Argument(metavar="CONFIG", help="YAML file, local or s3://, or the OUTPUT of a run")
]
OutputPath = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="folder of a run, local or s3://, or its CONFIG")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="override a field, as in select.alpha=1"),
]


_STOPPED = Interrupted(signal.SIGINT, resumable=False)


class Executor(StrEnum):
    """Where a run works."""

    RAY = "ray"
    LOCAL = "local"


CheckOption = Annotated[
    bool,
    typer.Option("--check", help="read every labelled file first; score again what is damaged"),
]
NoCheckOption = Annotated[
    bool,
    typer.Option(
        "--no-check", help="do not measure whether what ranks tells documents from splices"
    ),
]
ExecutorOption = Annotated[
    Executor, typer.Option(help="ray: on a cluster, or one started here; local: in this process")
]
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="I/N", help="share I of N of the splits; other runs take the others"),
]

FollowOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="go on: list the sources every TIME (60s, 5m; a bare number is seconds), score files as they "
        "come, until Ctrl-C or SIGTERM: what is in flight is finished, a second Ctrl-C ends it at once",
    ),
]
IdleOption = Annotated[
    str,
    typer.Option(
        metavar="TIME", help="with --follow: without files for so long (10m, 600s), give nodes back"
    ),
]


def _log_file(path: str | None) -> str | None:
    if path is not None:
        _log_to_stderr()
        try:
            _log_to_file(path)
        except OSError as error:
            _fail(ConfigError(f"--log-file {path}: {error.strerror}"), 2)
    return path


LogFile = Annotated[
    str | None,
    typer.Option(
        "--log-file",
        metavar="FILE",
        help="log there too, with the stack of a failure",
        callback=_log_file,
    ),
]


def guarded(work: Callable[[], None]) -> None:
    """Run a command; turn what it raises into one line and an exit status."""
    _log_to_stderr()
    # Who watches is told each step at once; a log holds what is refused in one line.
    log.setLevel(logging.DEBUG if sys.stderr.isatty() else logging.INFO)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _ctrl_c():
            work()
    except (ValueError, RuntimeError, OSError) as error:
        _fail(error, exit_status(error))
    except MemoryError as error:  # of Python or of Arrow
        _fail(RunError(f"out of memory: {error}".removesuffix(": ")), 1)
    except ImportError as error:  # where memory is short: a library that cannot be mapped
        _fail(error, 1)
    except Exception as error:
        _log_stack(error)
        if type(error).__module__.partition(".")[0] not in LIBRARIES:
            raise
        _fail(error, 1)


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the block with Interrupted, whatever a library makes of it; a second one the process.

    A run has a handler of its own while it works: `pipeline/stopping.py`.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    asked = threading.Event()

    def interrupt(*_: object) -> None:
        if asked.is_set():
            os.write(2, f"longattn: {_STOPPED}\n".encode())
            os._exit(_STOPPED.exit_status)
        asked.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException as error:
        if asked.is_set() and not isinstance(error, Interrupted):
            raise _STOPPED from error
        raise
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


def _log_to_stderr() -> None:
    """Log lines: above a live display in a terminal, else plain."""
    if sys.stderr.isatty():
        handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False, log_time_format="%X"
        )
        logging.basicConfig(format="%(message)s", handlers=[handler])
    else:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


def _fail(error: BaseException, status: int) -> None:
    _log_stack(error)
    lines = error.lines if isinstance(error, ConfigError) else [" ".join(str(error).split())]
    for line in lines:
        print(f"longattn: {without_secrets(line)}", file=sys.stderr)
    if os.environ.get("LONGATTN_TRACEBACK"):
        raise error
    if isinstance(error, Interrupted):  # Ray's threads may not survive Python's own end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return lines_without_secrets(super().format(record))


def _log_to_file(path: str) -> None:
    """Append every log line to a file from now on. Raises OSError where it cannot be opened."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def _log_stack(error: BaseException) -> None:
    """Write an error with its stack into the log file, if there is one; nothing on stderr."""
    failure = (type(error), error, error.__traceback__)
    record = logging.LogRecord("longattn", logging.ERROR, "", 0, "failed", None, failure)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
