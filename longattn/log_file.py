"""A log file beside the lines on stderr: the same lines, and the stack of what failed."""

from __future__ import annotations

import logging

from longattn.text import without_secrets


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def log_to_file(path: str) -> None:
    """Append every log line to a file from now on. Raises OSError where it cannot be opened."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def log_stack(error: BaseException) -> None:
    """Write an error with its stack into the log file, if there is one; nothing on stderr."""
    told = logging.LogRecord(
        "longattn", logging.ERROR, "", 0, "failed", None, (type(error), error, error.__traceback__)
    )
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(told)
