"""Local paths, made absolute once: a worker of Ray runs in another folder than the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from pydantic import BeforeValidator, Field


def absolute_path(path: Any) -> Any:
    """A local path or glob from the root, `~` expanded; a URL, `samples:NAME` and no text unchanged."""
    if isinstance(path, Path):
        path = str(path)
    if not isinstance(path, str) or not path or path.startswith("samples:") or "::" in path:
        return path
    local = get_protocol(path) in LocalFileSystem.protocol
    return LocalFileSystem._strip_protocol(path) if local else path


def absolute_model(model: Any) -> Any:
    """A local folder from the root; "builtin", a hub id and a URL unchanged."""
    if isinstance(model, Path):
        return absolute_path(model)
    if not isinstance(model, str) or not model or model == "builtin":
        return model
    if model.startswith(("~", "./", "../", "file://")) or Path(model).is_dir():
        return absolute_path(model)
    return model


LocalOrURL = Annotated[str, BeforeValidator(absolute_path), Field(min_length=1)]
"""A file, folder or glob: absolute, or a URL."""
