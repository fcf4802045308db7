"""Files that are no longer what was written: set aside, so that what they held is made anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from longattn.storage.files import join, move
from longattn.storage.output_folder import OutputFolder
from longattn.text import without_secrets

log = logging.getLogger("longattn")
SHOWN = 10  # files that are named in the log; of more, how many


def set_aside(output: str, damaged: Mapping[str, str]) -> None:
    """Move damaged labelled files, score tables and markers to `damaged/`, and say so.

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
        what = "its splits are read" if url.endswith(".json") else "its windows are scored"
        log.warning("%s: %s; set aside in damaged/, %s again", without_secrets(url), why, what)
    if len(damaged) > SHOWN:
        log.warning("%d more damaged files were set aside", len(damaged) - SHOWN)
