"""Local paths, made absolute once: a worker of Ray runs in another folder than the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from pydantic import BeforeValidator, Field

COPIES_OF_RAY = ("runtime_resources", "working_dir_files")
"""Folders below which Ray copies the working directory of a job, and removes it after."""


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


def lasting(path: str) -> str:
    """The path as it is. Raises ValueError for one in Ray's copy of a job's working directory."""
    if "://" not in path and "/".join(("", *COPIES_OF_RAY, "")) in f"{Path(path).resolve()}/":
        raise ValueError(
            f"{path} lies in Ray's copy of the job's working directory, which Ray removes; allowed: an "
            "absolute path that all nodes see, or a URL as s3://bucket/folder"
        )
    return path
