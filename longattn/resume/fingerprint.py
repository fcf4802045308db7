"""Whose scores an output folder holds: `run.json` names all that decides a score.

`samples.json` says which share of its windows each category was cut to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from longattn.config import Config, Sample
from longattn.errors import ConfigError, FolderError
from longattn.scoring.settings import ScoreParts
from longattn.settings.overrides import read_yaml
from longattn.storage.files import list_files, read_json, remove
from longattn.storage.output_folder import FORMAT, OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.text import without_secrets


@dataclass(frozen=True)
class RunRecord:
    """`run.json`: the parts that decide a score, and the settings of the run that made the folder."""

    parts: ScoreParts
    config: Config | None
    """Secrets in its URLs are masked; None for a folder without settings."""

    @property
    def fingerprint(self) -> str:
        return self.parts.fingerprint

    @property
    def model(self) -> str:
        """The checkpoint that scored the windows."""
        return self.config.scorer.model if self.config else "builtin"

    def to_dict(self) -> dict[str, Any]:
        settings = self.config.to_yaml() if self.config else None
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "parts": self.parts.to_dict(),
            "config": settings,
        }


def read_run_record(output: str) -> RunRecord | None:
    """What `run.json` says; None where no run has written yet.

    Raises FolderError for a folder that another version of longattn laid out.
    """
    url = OutputFolder(output).record("run")
    stored = read_record(url)
    if stored is None:
        return None
    if stored.get("format", 1) != FORMAT:
        raise FolderError(
            f"{without_secrets(output)} has the layout {stored.get('format', 1)} of another version "
            f"of longattn, this one reads and writes {FORMAT}; choose another output"
        )
    try:
        config = _config_of(stored["config"] or "null")
        parts = ScoreParts.from_dict(stored["parts"])
    except (KeyError, TypeError, AttributeError, IndexError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise FolderError(
            f"{without_secrets(url)}: damaged: {type(error).__name__}: {why}"
        ) from None
    return RunRecord(parts, config)


@lru_cache(8)  # a command asks several times
def _config_of(text: str) -> Config | None:
    """The settings in YAML that a run wrote; None where they are none of today's version."""
    settings = read_yaml(text)
    try:
        return Config.parse(settings) if settings else None
    except ConfigError:  # of a version that had other settings: what decides scores is in the parts
        return None


def own_folder(
    output: str, parts: ScoreParts, config: Config | None, *, empty: bool = False
) -> str:
    """Make the folder this run's, or check that it already is; returns the fingerprint.

    Args:
        empty: whether it holds no window, so that whatever made it has nothing to lose.

    Raises FolderError naming both values where the folder holds scores of other settings.
    """
    record = read_run_record(output)
    if record is None or (empty and record.parts != parts):
        write_record(OutputFolder(output).record("run"), RunRecord(parts, config).to_dict())
    else:
        _require_same(output, record.parts, parts)
    return parts.fingerprint


def require_settings_of(output: str, parts_of: Callable[[str], ScoreParts]) -> None:
    """Refuse other settings than those whose scores a folder holds, if it holds any.

    Args:
        parts_of: what decides a score, by the dtype of the products.

    Raises FolderError as `own_folder`.
    """
    record = read_run_record(output)
    if record is not None and OutputFolder(output).labelled_files():
        _require_same(output, record.parts, parts_of(record.parts.dtype))


def _require_same(output: str, there: ScoreParts, here: ScoreParts) -> None:
    if there != here:
        raise FolderError(
            f"{without_secrets(output)} holds scores of other settings ({differences(there, here)}); "
            "choose another output, the settings of the folder, or remove the folder"
        )


def differences(there: ScoreParts, here: ScoreParts) -> str:
    """In what the settings of a folder and of a run differ, for people; empty where they do not."""
    old, new = there.to_dict(), here.to_dict()
    other = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    return ", ".join(f"{k}: there {old.get(k)!r}, here {new.get(k)!r}" for k in other)


def require_windows_of(config: Config) -> None:
    """Refuse settings of windows that are not those whose scores its output holds, which only a run can make.

    Raises ConfigError in one line.
    """
    record = read_run_record(config.output)
    if record is None or not OutputFolder(config.output).labelled_files():
        return  # of no windows at all, select says so itself
    for name, there, here in (
        ("window.tokens", record.parts.window, config.window.tokens),
        ("scorer.min_distance", record.parts.min_distance, config.min_distance),
    ):
        if there != here:
            raise ConfigError(
                f"{name} {here}: {without_secrets(config.output)} holds scores of {name} {there}; "
                "select ranks those; allowed: that, or another output"
            )


def grown_samples(output: str, samples: Mapping[str, Sample | None]) -> set[str]:
    """Categories of which this run takes a larger share than earlier ones: to be read again.

    With the same seed the windows of a smaller share are all in a larger one. Raises FolderError on
    any other change, which would mix two samples.
    """
    stored = _read_samples(output)
    grown = set()
    for category, sample in samples.items():
        old, new = stored.get(category, _share(sample)), _share(sample)
        if old == new:
            continue
        if new["fraction"] < old["fraction"] or (
            new["fraction"] < 1 and new["seed"] != old["seed"]
        ):
            raise FolderError(
                f"{without_secrets(output)} holds category {category!r} with sample {old}, here {new}: only "
                "a larger fraction of the same seed may follow; choose another output"
            )
        grown.add(category)
    return grown


def _read_samples(output: str) -> dict[str, Any]:
    """`samples.json`; raises FolderError where it is not what a run writes."""
    url = OutputFolder(output).record("samples")
    stored = read_record(url) or {}
    for category, share in stored.items():
        try:
            Sample.check(share, category)
        except ConfigError as error:
            raise FolderError(f"{without_secrets(url)}: damaged: {error}") from None
    return stored


def note_samples(output: str, samples: Mapping[str, Sample | None], grown: set[str]) -> None:
    """Record which samples the folder holds; void the markers of `grown` categories first.

    Raises FolderError where `samples.json` is damaged.
    """
    folder = OutputFolder(output)
    stored = _read_samples(output)
    now = {**stored, **{category: _share(sample) for category, sample in samples.items()}}
    if now == stored:
        return
    for file in list_files(folder.markers, ".json") if grown else ():
        if any(marker["category"] in grown for marker in read_json(file)):
            remove(file)
    write_record(folder.record("samples"), now)


def _share(sample: Sample | None) -> dict[str, Any]:
    """Of all windows, the seed plays no part."""
    if sample is None or sample.fraction == 1:
        return {"fraction": 1.0, "seed": 0}
    return sample.model_dump()
