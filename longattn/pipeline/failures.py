"""The reason of a failure inside a stage, brought to the driver before Ray wraps it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from longattn.errors import RunError
from longattn.text import lines_without_secrets, without_secrets


@dataclass(frozen=True)
class Failure:
    """What went wrong in a stage."""

    stage: str
    """`windows`, `scores` or `writing`."""
    where: str
    """The file or folder that was being worked on; empty where there is none."""
    reason: str
    """The error in one line."""
    stack: str

    def __str__(self) -> str:
        where = f" at {self.where}" if self.where and self.where not in self.reason else ""
        return f"{self.stage}{where}: {self.reason}"


FailureReport = Callable[[Failure], None]


def no_failure_report(_: Failure) -> None: ...


def reason_of(error: BaseException) -> str:
    """An error as one line without secrets; its kind where it says nothing itself."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return without_secrets(f"{kind}: {text}" if text else kind)[:500]


@contextmanager
def failures_reported(
    report: FailureReport, stage: str, where: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Report what fails in the block, with its stack, and raise it on."""
    try:
        yield
    except RunError:  # the run was told to stop, and knows why
        raise
    except Exception as error:
        stack = lines_without_secrets("".join(traceback.format_exception(error)))
        report(Failure(stage, where(), reason_of(error), stack))
        raise
