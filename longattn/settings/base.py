"""What all sections of settings are: typed, frozen, refused in one line."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from longattn.settings.refusals import checked


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def check(cls, value: Any, where: str) -> Self:
        """The settings themselves, or a mapping of their fields; raises ConfigError, one line."""
        return checked(cls, value, where)


def check_category(value: Any) -> str:
    """Raises ValueError for a name that is no folder of its own below the output."""
    return _folder("a category", value)


def check_selection_name(value: Any) -> Any:
    """Raises ValueError for a name of a selection that is no folder; None is taken."""
    return None if value is None else _folder("a selection", value)


def _folder(what: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError(
            f"{what} names a folder: 1 to 64 of A-Z a-z 0-9 _ . -, not starting with . - or _"
        )
    return value
