"""Which version of a file a store has: its size, and the marks that a listing tells of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from longattn.text import without_secrets

ETAGS, HASHES = ("ETag", "etag"), ("md5Hash", "blob_id", "Content-MD5")
TIMES: tuple[str, ...] = (
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modify",
    "modified",
)
TIMES += ("modificationTime", "created")


def identity(info: Mapping[str, Any]) -> tuple[int, str, tuple[tuple[str, str], ...]]:
    """Size, version and marks of a file, from an fsspec listing.

    Weak ETags are left out: they may differ between two answers for the same bytes. Raises
    ValueError where no size is told.
    """
    size = info.get("size")
    if size is None:
        raise ValueError(
            f"{without_secrets(str(info.get('name')))}: the server does not tell its size"
        )

    def first(keys: Sequence[str]) -> str:
        return next((_mark(info[key]) for key in keys if info.get(key)), "")

    marks = {"etag": first(ETAGS), "hash": first(HASHES), "time": first(TIMES)}
    if marks["etag"].startswith("W/"):
        marks["etag"] = ""
    told = tuple((kind, mark) for kind, mark in marks.items() if mark)
    return size, f"{size}:{told[0][1] if told else ''}", told


def _mark(value: Any) -> str:
    if isinstance(value, datetime):  # memory:// tells it so for one file, as seconds in a listing
        value = value.timestamp()
    return str(value).strip('"')
