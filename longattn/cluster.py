"""A Ray cluster to work on: the one that is connected to, that of RAY_ADDRESS, or one started here."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from longattn.errors import ConfigError

log = logging.getLogger("longattn")


@contextmanager
def connected() -> Iterator[None]:
    """A Ray cluster: the one already connected to, that of RAY_ADDRESS, or one started here.

    SIGTERM does what it did before, though `ray.init` takes it for itself.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        log.info("connecting to Ray at %s", address)
    else:
        log.info("starting Ray here, where none runs yet")
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    try:
        try:
            ray.init(logging_level=logging.WARNING)
        except SystemExit:  # Ray's handler
            if main and callable(before):
                before(signal.SIGTERM, None)
            raise
        except OSError as error:
            raise _without_home(error) from error
        finally:
            if main and callable(before):
                signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _without_home(error: OSError) -> OSError | ConfigError:
    """The error; where Ray cannot keep its token below HOME, what to set."""
    home = str(Path.home())
    if not str(error.filename or "").startswith(f"{home}/.ray"):
        return error
    return ConfigError(
        f"HOME {home}: Ray keeps a token there and cannot write it ({error.strerror}): set HOME to a "
        "folder that can be written, or RAY_AUTH_MODE=disabled"
    )
