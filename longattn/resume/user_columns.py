"""Types of the user's columns that the windows of a folder carry: `columns.json`. What is decided stays."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from longattn.corpus.columns import arrow_type
from longattn.corpus.first_look import column_types
from longattn.corpus.records import Split
from longattn.corpus.sources import Source
from longattn.errors import FolderError
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.text import without_secrets

log = logging.getLogger("longattn")


def decide_types(
    folder: OutputFolder, splits: Sequence[Split], sources: Sequence[Source] = ()
) -> dict[str, str]:
    """Types of the columns of the folder, those that these splits bring for the first time included."""
    known = known_types(folder)
    types = column_types(splits, known, sources)
    if types != known:
        write_record(folder.record("columns"), types)
    return types


def log_new_columns(folder: OutputFolder, asked: Sequence[str]) -> None:
    """Warn of columns that windows labelled before lack."""
    known = known_types(folder)
    for name in asked:
        if name not in known:
            log.warning(
                "windows labelled before lack the column %r; choose another output to have it in all",
                name,
            )


def known_types(folder: OutputFolder) -> dict[str, str]:
    """What `columns.json` says; raises FolderError where it names no types."""
    url = folder.record("columns")
    known = read_record(url) or {}
    for name, kind in known.items():
        try:
            arrow_type(kind)
        except (ValueError, TypeError):
            raise FolderError(
                f"{without_secrets(url)}: damaged: {kind!r:.80} is no type of {name!r:.80}"
            ) from None
    return known
