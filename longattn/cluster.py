"""A Ray cluster to work on: the one that is connected to, that of RAY_ADDRESS, or one started here."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

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
        finally:
            if main and callable(before):
                signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()
