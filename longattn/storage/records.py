"""JSON records that prove themselves: objects with a checksum, written whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longattn.storage.digests import sealed, unsealed
from longattn.storage.files import read_json, write_json
from longattn.text import without_secrets


def write_record(url: str, value: Mapping[str, Any]) -> None:
    """Make a JSON object with its checksum appear whole."""
    write_json(url, sealed(value))


def read_record(url: str) -> dict[str, Any] | None:
    """A JSON object without its checksum; None where there is no file.

    Raises ValueError, one line, where it is broken, or not what its checksum was taken of.
    """
    try:
        stored = read_json(url)
    except RecursionError:
        raise ValueError(f"{without_secrets(url)}: damaged: nested too deep") from None
    return None if stored is None else unsealed(stored, without_secrets(url))
