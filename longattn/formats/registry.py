"""The formats by name."""

from __future__ import annotations

from longattn.errors import ConfigError
from longattn.formats.jsonl import JSONL
from longattn.formats.mds import MDS
from longattn.formats.megatron import Megatron
from longattn.formats.npy import Npy
from longattn.formats.part import Format

FORMATS: dict[str, Format] = {format.name: format for format in (Megatron(), MDS(), Npy(), JSONL())}


def format_named(name: str) -> Format:
    """Raises ConfigError, one line, for a name that none has."""
    if name not in FORMATS:
        raise ConfigError(f"format {name!r}: {', '.join(FORMATS)} are allowed")
    return FORMATS[name]
