"""Every way a command can end badly, each with the exit status that the shell sees.

1    it failed: `RunError`, `HeldError`, and whatever else is raised
2    a setting, source, checkpoint or folder was refused: `ConfigError`, `FolderError`, ValueError
75   it was stopped by SIGTERM; run it again to go on (EX_TEMPFAIL)
130  it was stopped by Ctrl-C; run it again to go on
"""

from __future__ import annotations

import signal


class ConfigError(ValueError):
    """Bad settings, a line each: the field, the value given, what is allowed."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    @property
    def lines(self) -> tuple[str, ...]:
        """One for each fault."""
        return tuple(" ".join(str(line).split()) for line in self.args)

    def __str__(self) -> str:
        return "\n".join(self.lines)


class FolderError(ValueError):
    """An output folder that this run may not write to, in one line."""


class HeldError(RuntimeError):
    """Another run is at work in the folder; one line names it."""


class RunError(RuntimeError):
    """A run that did not finish, in one line."""


class Interrupted(RunError):  # noqa: N818
    """A command was told to stop; a run that is started again goes on where it stopped."""

    def __init__(self, by: signal.Signals = signal.SIGTERM, *, resumable: bool = True) -> None:
        name = "Ctrl-C" if by == signal.SIGINT else by.name
        super().__init__(f"stopped by {name}" + ("; run again to go on" if resumable else ""))
        self.exit_status = 130 if by == signal.SIGINT else 75


def exit_status(error: BaseException) -> int:
    """The status that a command which raised this ends with."""
    if isinstance(error, Interrupted):
        return error.exit_status
    return 2 if isinstance(error, ValueError) else 1
