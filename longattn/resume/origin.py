"""What scored the windows of a folder: a run says so in `run.json`, else the footers of labelled files.

The functions of `longattn.pipeline.steps` write labelled files without a run. What a run knows besides
(its sources, how many documents it read, what was too short or bad) is known of no such folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longattn.config import Config, ConfigLike, is_config_file, output_of
from longattn.errors import FolderError
from longattn.resume.fingerprint import read_run_record
from longattn.scoring.settings import ScoreParts
from longattn.storage.files import exists
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import file_metadata, open_parquet, own_files
from longattn.text import without_secrets

NO_RUN = "not written by a run: its sources, and what of them was left out, are not known"
NO_SCORER = "which model and settings scored it is not known either"


@dataclass(frozen=True)
class Origin:
    """What is known of the scores of a folder."""

    fingerprint: str | None
    parts: ScoreParts | None
    """What decides a score; None where only windows without it were written."""
    model: str | None
    """The checkpoint that scored the windows; None where that is not known."""
    config: Config | None
    """Of the run; None where there was none, or without settings."""
    is_run: bool

    @property
    def unknown(self) -> str:
        """What is not known, in a line; empty for a run."""
        if self.is_run:
            return ""
        return f"{NO_RUN}; {NO_SCORER}" if self.parts is None else NO_RUN


def scored_by(model: str, parts: ScoreParts) -> str:
    """What scored some windows, as the footer of a labelled file that no run writes has it."""
    return json.dumps({"model": without_secrets(model), "parts": parts.to_dict()}, sort_keys=True)


def read_origin(output: str) -> Origin | None:
    """What scored the windows of a folder; None where neither a run nor `write_labelled` wrote there."""
    record = read_run_record(output)
    if record is not None:
        return Origin(record.fingerprint, record.parts, record.model, record.config, is_run=True)
    found = None
    for url in own_files(OutputFolder(output).labelled_files()):
        found = Origin(None, None, None, None, is_run=False)
        with suppress(ValueError), open_parquet(url) as parquet:  # a broken file says nothing
            return _of_footer(file_metadata(parquet))
    return found


def unfinished(output: str) -> str:
    """That no run of a folder has come to its end yet, in a line; empty where one has, or none is known."""
    folder = OutputFolder(output)
    if read_run_record(output) is None or exists(folder.record("summary")):
        return ""
    return (
        f"{without_secrets(output)}: its run has not come to its end, so windows and whole categories may be "
        "missing; `longattn run` goes on"
    )


def require_origin(output: str) -> Origin:
    """The same; raises FolderError where there is none."""
    origin = read_origin(output)
    if origin is None:
        raise FolderError(
            f"{without_secrets(output)}: no run has written here, and there are no labelled windows"
        )
    return origin


def config_of_output(value: ConfigLike, overrides: Sequence[str] = ()) -> Config:
    """The settings that a config or a run has, else the defaults for a folder of labelled windows.

    What `write_labelled` wrote has no settings; its sources are then the windows themselves.

    Raises ConfigError, one line.
    """
    if isinstance(value, (str, Path)) and not is_config_file(value):
        output = output_of(value)
        origin = read_origin(output)
        if origin is not None and not origin.is_run:
            source = {"category": "labelled", "path": OutputFolder(output).labelled}
            return Config.of({"sources": [source], "output": output}, overrides)
    return Config.of(value, overrides)


def _of_footer(metadata: Mapping[str, Any]) -> Origin:
    fingerprint, told = metadata.get("fingerprint") or None, metadata.get("scored_by")
    try:
        stored = json.loads(told or "null")
        parts, model = ScoreParts.from_dict(stored["parts"]), str(stored["model"])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return Origin(fingerprint, None, None, None, is_run=False)
    if parts.fingerprint != fingerprint:
        return Origin(fingerprint, None, None, None, is_run=False)
    return Origin(fingerprint, parts, model, None, is_run=False)
