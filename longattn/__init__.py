"""longattn: long documents whose far ends depend on each other, found by token-level attention.

Names are loaded on first use, so that the scorer alone needs neither Ray nor pyarrow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longattn.config import Config
    from longattn.errors import ConfigError, RunError
    from longattn.notebook import evaluate, export, inspect, join, plan, report, select, verify
    from longattn.pipeline.follow import follow
    from longattn.pipeline.job import run
    from longattn.pipeline.score_tables import score_tables
    from longattn.pipeline.steps import (
        read_documents,
        read_labelled,
        score_windows,
        window_documents,
        write_labelled,
    )
    from longattn.pipeline.summary import RunSummary
    from longattn.scoring.scorer import AttentionScorer, Scores
    from longattn.selection.lds import long_distance_scores
    from longattn.windows.cutting import sliding_windows

__version__ = "0.1.0"

_ROOMS = {
    "config": ("Config",),
    "errors": ("ConfigError", "RunError"),
    "pipeline.steps": (
        "read_documents",
        "read_labelled",
        "score_windows",
        "window_documents",
        "write_labelled",
    ),
    "pipeline.follow": ("follow",),
    "pipeline.job": ("run",),
    "pipeline.score_tables": ("score_tables",),
    "pipeline.summary": ("RunSummary",),
    "scoring.scorer": ("AttentionScorer", "Scores"),
    "notebook": ("evaluate", "export", "inspect", "join", "plan", "report", "select", "verify"),
    "selection.lds": ("long_distance_scores",),
    "windows.cutting": ("sliding_windows",),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "AttentionScorer",
    "Config",
    "ConfigError",
    "RunError",
    "RunSummary",
    "Scores",
    "evaluate",
    "export",
    "follow",
    "inspect",
    "join",
    "long_distance_scores",
    "plan",
    "read_documents",
    "read_labelled",
    "report",
    "run",
    "score_tables",
    "score_windows",
    "select",
    "sliding_windows",
    "verify",
    "window_documents",
    "write_labelled",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'longattn' has no attribute {name!r}")
    return getattr(import_module(f"longattn.{_ROOM_OF[name]}"), name)
