"""Lines of the log that tell how far long work is, so that nobody waits in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

log = logging.getLogger("longattn")

QUIET_SECONDS = 8.0  # without a line of this work

T = TypeVar("T")


def with_progress(items: Sequence[T], what: str) -> Iterator[T]:
    """The items one by one; the log tells every `QUIET_SECONDS` how many of them are done.

    Args:
        what: the items are, as in `windows scored`.
    """
    told = time.monotonic()
    for done, item in enumerate(items):
        if done and time.monotonic() - told >= QUIET_SECONDS:
            log.info("  %d of %d %s", done, len(items), what)
            told = time.monotonic()
        yield item
