"""Heads of deeper layers in the tables of a score: how they lie there, and which of them LDS is of.

A table of a score of kind `attention` holds DS and variance of every head of every layer as a list,
layer by layer; the metadata of these columns say which layers and how many heads.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from longattn.settings.scores import head_columns
from longattn.settings.selection import HeadsOfScore
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import open_parquet
from longattn.text import without_secrets

LayerHead = tuple[int, int]
"""A layer and a head of it."""


@dataclass(frozen=True)
class TableHeads:
    """Heads that LDS is of, in the tables of a score.

    Attributes:
        asked: by the settings.
        layers, heads: of the score, and of each of its layers.
        chosen: by `auto`, by category; None, or a category that is not there: all that are asked for.
    """

    asked: HeadsOfScore
    layers: tuple[int, ...]
    heads: int
    chosen: Mapping[str, tuple[LayerHead, ...] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for of in (self.asked.among(self.layers, self.heads), *self.chosen.values()):
            self._places(of or ())

    @property
    def columns(self) -> tuple[str, str]:
        """Of the table: DS and variance of every head."""
        return head_columns(self.asked.score)

    def places(self, category: str) -> tuple[int, ...]:
        """Of the heads of a category, in the lists of the table."""
        chosen = self.chosen.get(category)
        return self._places(chosen or self.asked.among(self.layers, self.heads))

    def _places(self, heads: Collection[LayerHead]) -> tuple[int, ...]:
        if not {layer for layer, _ in heads} <= {*self.layers}:
            raise ValueError(f"select.heads: {self.asked.score} has no layers of {list(heads)}")
        return tuple(self.layers.index(layer) * self.heads + head for layer, head in heads)

    def told(self, category: str) -> str:
        """`head 3 of layer 7 of deep`, `all heads of deep`."""
        if self.asked.head != "auto":
            return str(self.asked)
        chosen = self.chosen.get(category)
        if not chosen:
            return f"all heads of {self.asked.layers}"
        return ", ".join(f"head {head} of layer {layer}" for layer, head in chosen) + (
            f" of {self.asked.score}"
        )


def table_heads(
    folder: OutputFolder,
    asked: HeadsOfScore,
    chosen: Mapping[str, tuple[LayerHead, ...] | None] | None = None,
) -> TableHeads:
    """How the heads of a score lie in the tables of a folder.

    Raises ValueError where it has no such tables, or the score has no such heads.
    """
    for url in folder.score_files(asked.score):
        with open_parquet(url) as parquet:
            schema = parquet.schema_arrow
        return TableHeads(asked, *_shape(folder, schema, asked), chosen or {})
    raise ValueError(
        f"select.heads: no table of a score {asked.score!r} in {without_secrets(folder.url)}; `scores:` "
        "names those of a config, and `longattn score` computes them"
    )


def require_heads(folder: OutputFolder, asked: HeadsOfScore, coming: Mapping[str, str]) -> None:
    """Refuse heads that no table will have, before anything is computed.

    Args:
        coming: scores that will be computed, by name their kinds.

    Raises:
        ValueError: in one line.
    """
    if asked.head == "auto" and asked.score not in coming:
        raise ValueError(
            f"select.heads: auto runs the model of the score {asked.score!r}, which `scores:` of the "
            f"config does not have; it has {', '.join(coming) or 'none'}"
        )
    if coming.get(asked.score, "attention") != "attention":
        raise ValueError(
            f"select.heads: the score {asked.score!r} is of kind {coming[asked.score]}, which has no "
            "heads; allowed: one of kind attention"
        )
    if asked.score not in coming or folder.score_files(asked.score):
        table_heads(folder, asked)


def _shape(
    folder: OutputFolder, schema: pa.Schema, asked: HeadsOfScore
) -> tuple[tuple[int, ...], int]:
    """Layers, and heads of each, as the metadata of the columns of heads say."""
    column, _ = head_columns(asked.score)
    if column not in schema.names:
        kind = f"{asked.score}_layers" in schema.names
        why = (
            "was computed before scores of heads were kept; under another name in `scores:` they are"
            if kind
            else "has none; allowed: a score of kind attention"
        )
        raise ValueError(
            f"select.heads: heads of deeper layers: {without_secrets(folder.score_table(asked.score))} {why}"
        )
    metadata = schema.field(column).metadata or {}
    layers, (_, heads) = (json.loads(metadata[key]) for key in (b"layers", b"shape"))
    return tuple(layers), heads
