"""The program `longattn`, also as `python -m longattn`; `cli.py` has its commands.

This module imports nothing of weight, so that Ctrl-C has its one line and its status from the start.
"""

from __future__ import annotations

import gc
import os
import signal
from types import FrameType

_STATUS = 130


def main() -> None:
    """Run the command that the arguments name."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGINT, _end)  # until `guarded` takes it: libraries are being imported
    # Libraries make objects by the million, and no garbage. Looking for it as often as Python does by itself
    # takes 0.6 of the 4.6 s of a core before the first window is scored.
    gc.set_threshold(50_000, 20, 100)
    from longattn.cli import app

    app()


def _end(_: int, __: FrameType | None) -> None:
    """Nothing has begun, and an exception would be lost, or shown, somewhere in an import."""
    os.write(2, b"longattn: stopped by Ctrl-C\n")
    os._exit(_STATUS)


if __name__ == "__main__":
    main()
