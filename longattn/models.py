"""Where a scoring model's files are: the package's own, a local folder, or the hub's cache."""

import re
from collections.abc import Sequence
from pathlib import Path

from longattn.text import first_line

BUILTIN = Path(__file__).parent / "builtin"
SMALL_FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
)  # fmt: skip


def model_folder(model: str, files: Sequence[str] = SMALL_FILES) -> Path:
    """The folder of a model, the named files of a hub repository fetched into its cache.

    Args:
        model: "builtin", a local folder, or the id owner/name of a repository on the hub.

    Raises:
        ValueError: in one line; no such folder, or not to be had from the hub.
    """
    if model == "builtin":
        return BUILTIN
    if model and Path(model).is_dir():
        return Path(model)
    if not is_hub_id(model):
        raise ValueError(
            f"model {model!r}: no such folder; allowed: 'builtin', a local folder, a hub id "
            "owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        first = first_line(error)
        raise ValueError(
            f"model {model!r}: no such folder, and not to be had from the hub: {first}"
        ) from error


def is_hub_id(model: str) -> bool:
    return (
        model != "builtin"
        and not Path(model).is_dir()
        and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None
    )
