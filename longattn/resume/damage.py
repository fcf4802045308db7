"""Files that are no longer what was written: set aside, so that what they held is made anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from longattn.storage.files import join, move
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record
from longattn.text import without_secrets

log = logging.getLogger("longattn")
TOLD = ("summary", "rates")  # records that decide nothing: a run writes them anew
SHOWN = 10  # files that are named in the log; of more, how many


def set_aside(output: str, damaged: Mapping[str, str]) -> None:
    """Move damaged labelled files, score tables, markers and records to `damaged/`, and say so.

    Args:
        damaged: by URL, what is wrong with each.
    """
    folder = OutputFolder(output)
    for url in damaged:
        place, name = url.rpartition("/")[::2]
        below = "splits" if url.startswith(folder.markers) else place.rpartition("/")[2]
        if url.startswith(join(folder.url, "scores/")):
            below = place.removeprefix(f"{folder.url}/")
        with suppress(FileNotFoundError):  # the run of another share has moved it
            move(url, join(folder.damaged, below, name))
    for url, why in list(damaged.items())[:SHOWN]:
        what = "it is written" if url.endswith(".json") else "its windows are scored"
        what = "its splits are read" if url.startswith(folder.markers) else what
        log.warning("%s: %s; set aside in damaged/, %s again", without_secrets(url), why, what)
    if len(damaged) > SHOWN:
        log.warning("%d more damaged files were set aside", len(damaged) - SHOWN)


def damaged_records(output: str) -> dict[str, str]:
    """By URL, what is wrong with each damaged record that decides nothing."""
    found = {}
    for url in map(OutputFolder(output).record, TOLD):
        try:
            read_record(url)
        except ValueError as error:
            found[url] = str(error).removeprefix(f"{without_secrets(url)}: ")
    return found
