"""Whose scores an output folder holds: `_longattn/run.json` names all that decides a score.

`_longattn/samples.json` says which share of its windows each category was cut to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from longattn.config import Config, Sample
from longattn.errors import FolderError
from longattn.storage.files import join, list_files, read_json, remove, write_json
from longattn.storage.output_folder import FOLDER


def fingerprint_of(parts: dict[str, Any]) -> str:
    """Hex of all that decides a score: weights, tokenizer, window, min_distance, rope, BOS, ..."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_run_record(output: str) -> dict[str, Any] | None:
    """What `run.json` says; None where no run has written yet."""
    there: dict[str, Any] | None = read_json(join(output, FOLDER, "run.json"))
    return there


def require_run_record(output: str) -> dict[str, Any]:
    """What `run.json` says; raises LedgerError where there is none."""
    there = read_run_record(output)
    if there is None:
        raise FolderError(f"{output}: no run has written here")
    return there


def own_folder(output: str, parts: dict[str, Any], config: Config | None) -> str:
    """Make the folder this run's, or check that it already is; returns the fingerprint.

    Raises LedgerError naming both values where the folder holds scores of other settings.
    """
    mine = fingerprint_of(parts)
    url = join(output, FOLDER, "run.json")
    there = read_json(url)
    if there is None:
        settings = config.to_yaml() if config else None
        write_json(url, {"fingerprint": mine, "parts": parts, "config": settings})
        return mine
    if there["fingerprint"] == mine:
        return mine
    old = there["parts"]
    other = [k for k in sorted({*old, *parts}) if old.get(k) != parts.get(k)]
    changes = ", ".join(f"{k}: there {old.get(k)!r}, here {parts.get(k)!r}" for k in other)
    raise FolderError(
        f"{output} holds scores of other settings ({changes}); "
        "choose another output, or the settings of the folder"
    )


def grown_samples(output: str, samples: Mapping[str, Sample | None]) -> set[str]:
    """Categories of which this run takes a larger share than earlier ones: to be read again.

    With the same seed the windows of a smaller share are all in a larger one. Raises LedgerError on
    any other change, which would mix two samples.
    """
    there = read_json(join(output, FOLDER, "samples.json")) or {}
    grown = set()
    for category, sample in samples.items():
        old, new = there.get(category, _share(sample)), _share(sample)
        if old == new:
            continue
        if new["fraction"] < old["fraction"] or (
            new["fraction"] < 1 and new["seed"] != old["seed"]
        ):
            raise FolderError(
                f"{output} holds category {category!r} with sample {old}, here {new}: only a larger "
                "fraction of the same seed may follow; choose another output"
            )
        grown.add(category)
    return grown


def note_samples(output: str, samples: Mapping[str, Sample | None], grown: set[str]) -> None:
    """Tell later runs which samples the folder holds; void the markers of `grown` categories first."""
    url = join(output, FOLDER, "samples.json")
    there = read_json(url) or {}
    now = {**there, **{category: _share(sample) for category, sample in samples.items()}}
    if now == there:
        return
    for file in list_files(join(output, FOLDER, "splits"), ".json") if grown else ():
        if any(marker_of["category"] in grown for marker_of in read_json(file)):
            remove(file)
    write_json(url, now)


def _share(sample: Sample | None) -> dict[str, Any]:
    """Of all windows, the seed plays no part."""
    if sample is None or sample.fraction == 1:
        return {"fraction": 1.0, "seed": 0}
    return sample.model_dump()
