"""What the composition functions are given, as Ray Data and settings; else one line that says what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from longattn.config import Config, Source, is_config_file
from longattn.errors import ConfigError
from longattn.models import model_folder, require_reachable
from longattn.settings.paths import absolute_model
from longattn.text import did_you_mean


def as_dataset(rows: Any, name: str, column: str) -> Dataset:
    """A Ray Dataset of what is one, or of a table of pandas, Arrow, Polars or Hugging Face, or a list.

    Args:
        rows: the table; a list holds rows as mappings, or texts.
        name: of the argument, for a message.
        column: that is needed; the name that texts of a list get.

    Raises:
        ConfigError: one line; no table, or one that is known to lack the column.
    """
    library = type(rows).__module__.partition(".")[0]
    if isinstance(rows, Dataset):
        columns = rows.columns(fetch_if_missing=False)
    elif library == "datasets" and isinstance(rows, dict):
        splits = ", ".join(map(repr, rows))
        raise ConfigError(f"{name}: a DatasetDict; choose one of its splits ({splits})")
    elif library == "datasets" and type(rows).__name__ == "Dataset":  # no look at the hub, as Ray's
        return as_dataset(rows.with_format("arrow")[:], name, column)
    elif library == "datasets":
        rows = ray.data.from_huggingface(rows)
        columns = None
    elif library == "pandas" and hasattr(rows, "columns"):
        columns = list(map(str, rows.columns))
        rows = ray.data.from_pandas(rows)
    elif library == "polars" and hasattr(rows, "to_arrow"):
        return as_dataset(rows.to_arrow(), name, column)
    elif isinstance(rows, pa.Table):
        columns = rows.column_names
        rows = ray.data.from_arrow(rows)
    elif isinstance(rows, list) and rows and all(isinstance(row, (str, Mapping)) for row in rows):
        items = [{column: row} if isinstance(row, str) else dict(row) for row in rows]
        columns = list(items[0])
        rows = ray.data.from_items(items)
    else:
        raise ConfigError(
            f"{name}: a table of Ray Data, pandas, Arrow, Polars or Hugging Face, or a list of rows or "
            f"texts is required, not {type(rows).__name__}"
        )
    if columns is not None and column not in columns:
        raise ConfigError(
            f"{name}: no column {column!r}{did_you_mean(column, columns)}; there are {', '.join(columns)}"
        )
    dataset: Dataset = rows
    return dataset


def as_sources(sources: Any) -> list[Source]:
    """Sources of a list of them or of their mappings, of a single one, or of a config.

    Raises ConfigError, one line.
    """
    if isinstance(sources, Config):
        return list(sources.sources)
    if isinstance(sources, Mapping) and "sources" in sources:
        return list(Config.of(sources).sources)
    if isinstance(sources, (str, Path)):
        if is_config_file(sources):
            return list(Config.of(sources).sources)
        raise ConfigError(
            f"sources: a list of {{category: ..., path: {str(sources)!r}}} is required, or a config"
        )
    if isinstance(sources, (Source, Mapping)):
        sources = [sources]
    return [Source.check(source, f"sources.{i}") for i, source in enumerate(sources)]


def as_model(model: Any) -> str:
    """A model's name as any process finds it; raises ValueError, one line, where it is nowhere."""
    name = str(absolute_model(model))
    require_reachable(name)
    model_folder(name)
    return name
