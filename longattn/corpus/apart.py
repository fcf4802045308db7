"""Keeps an output apart from its sources: a run must not read what it has written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Protocol

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from longattn.corpus.sources import _alternatives
from longattn.errors import ConfigError
from longattn.storage.files import filesystem, is_local
from longattn.text import without_secrets

WRITTEN = ("labelled/a/x.parquet", "selected/a/x.parquet", "quarantine/x.parquet")


class _Source(Protocol):
    @property
    def path(self) -> str: ...


def require_apart(sources: Iterable[_Source], output: str) -> None:
    """Refuse an output that a source would read, and a source that lies inside the output.

    Raises ConfigError naming both: the output is the source's folder or lies in it, a pattern of the
    source matches files of the output, or the source is below the output.
    """
    fs, folder = filesystem(output)
    folder = _real(fs, folder.rstrip("/"))
    for source in sources:
        if source.path.startswith("samples:"):
            continue
        source_fs, path = filesystem(source.path)
        if type(source_fs) is not type(fs):
            continue
        if not is_local(fs) and source_fs.storage_options != fs.storage_options:
            continue
        path = _real(source_fs, path.rstrip("/"))
        if _inside(folder, path) or _inside(path, folder) or _matches(path, folder):
            raise ConfigError(
                f"output {without_secrets(output)} lies with the source {without_secrets(source.path)}: "
                "a run would read what it wrote; choose an output outside of it"
            )


def _real(fs: AbstractFileSystem, path: str) -> str:
    """A local path or pattern without symbolic links on the way to it."""
    return os.path.realpath(path) if is_local(fs) else path


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _matches(pattern: str, folder: str) -> bool:
    """Whether a pattern meets files that a run writes below the folder, or a folder above them."""
    if not re.search(r"[*?\[{]", pattern):
        return False
    tests = [
        re.compile(glob_translate(form)).match
        for one in _alternatives(pattern)
        for form in (one, one.rstrip("/") + "/**")
    ]
    return any(test(f"{folder}/{name}") for test in tests for name in WRITTEN)
