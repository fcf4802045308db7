"""What a run writes, and where: the only module that knows what lies where below an output."""

from __future__ import annotations

FOLDER = "_longattn"
