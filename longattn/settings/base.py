"""What all settings have in common: keyword-only, unchangeable, an unknown field refused."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from longattn.settings.refusals import checked


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def check(cls, value: Any, where: str) -> Self:
        """The settings themselves, or a mapping of their fields; raises ConfigError, one line."""
        return checked(cls, value, where)
