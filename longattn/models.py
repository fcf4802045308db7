"""Where a scoring model's files are: in the package, a local folder, the hub's cache, or on a store.

Of a model on a store, `s3://bucket/folder` or any other fsspec URL, what is needed is fetched into a
local cache (`longattn/storage/remote_model.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from longattn.storage.files import require_answer
from longattn.storage.remote_model import (
    SMALL_FILES,
    fetch_small_files,
    fetch_tensors,
    fetch_whole_model,
    tensor_files,
)
from longattn.text import first_line, without_secrets

__all__ = [
    "BUILTIN",
    "errors_name_url",
    "fetch_tensors",
    "is_hub_id",
    "is_url",
    "model_folder",
    "require_reachable",
    "tensor_files",
    "whole_model",
]
BUILTIN = Path(__file__).parent / "builtin"


def model_folder(model: str, files: Sequence[str] = SMALL_FILES) -> Path:
    """A local folder with the small files of a model.

    Args:
        model: "builtin", a local folder, the id owner/name of a repository on the hub, or the URL of
            a folder on a store.
        files: of a hub repository, what is fetched into its cache.

    Raises:
        ValueError: in one line; no such folder, or not to be had from the hub or the store.
        OSError: the store failed.
    """
    if model == "builtin":
        return BUILTIN
    if is_url(model):
        return fetch_small_files(model)
    if model and Path(model).is_dir():
        return Path(model)
    if not is_hub_id(model):
        raise ValueError(
            f"model {model!r}: no such folder; allowed: 'builtin', a local folder, a hub id "
            "owner/name, a URL such as s3://bucket/folder"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ValueError(
            f"model {model!r}: no such folder, and not to be had from the hub: {first}"
        ) from error


def whole_model(model: str) -> str:
    """What transformers' `from_pretrained` takes for a model of which all layers are run.

    Of one on a store, all of its weights are fetched into the cache first.

    Raises:
        ValueError: in one line; it is nowhere.
        OSError: the store failed.
    """
    if is_hub_id(model):
        return model
    return str(fetch_whole_model(model) if is_url(model) else model_folder(model))


@contextmanager
def errors_name_url(model: str, folder: str | Path) -> Iterator[None]:
    """In the block, refusals of a model on a store name its URL, not the local copy."""
    try:
        yield
    except ValueError as error:
        if not is_url(model):
            raise
        told = str(error).replace(str(folder), without_secrets(model).rstrip("/"))
        raise ValueError(told) from error


def require_reachable(model: str) -> None:
    """Raises OSError, in one line and soon, where the S3 store of a model does not answer."""
    if is_url(model):
        require_answer(model)


def is_url(model: str) -> bool:
    """Whether a model is on a store."""
    return "://" in model


def is_hub_id(model: str) -> bool:
    return (
        model != "builtin"
        and not Path(model).is_dir()
        and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None
    )
