"""Every way a command can end badly, each with the exit status that the shell sees.

0    all of it worked
1    it failed: `RunError`, `HeldError`, and whatever else is raised
2    a setting, source, checkpoint or folder was refused: `ConfigError`, `FolderError`, ValueError
75   it was stopped by SIGTERM and can go on (EX_TEMPFAIL): `Interrupted`
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A bad setting, told in one line: the field, the value given, what is allowed."""


class FolderError(ValueError):
    """An output folder that this run may not write to, told in one line."""


class HeldError(RuntimeError):
    """Another run is at work in the folder, told in one line that names it."""


class RunError(RuntimeError):
    """A run that did not finish, told in one line."""


class Interrupted(RunError):  # noqa: N818
    """The run was told to stop; run again to go on where it stopped."""

    exit_status = 75  # EX_TEMPFAIL
