"""A folder that no window was ever labelled in: the next run of whatever settings takes it over.

A run of which nothing came leaves a ledger: the settings, the samples, a marker for each split. Other
settings are refused by those to keep two kinds of scores apart, and here there are none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from longattn.config import Sample
from longattn.errors import FolderError
from longattn.resume.fingerprint import differences, grown_samples, read_run_record
from longattn.resume.shards import Shard, shards_held
from longattn.scoring.settings import ScoreParts
from longattn.storage.files import join, list_files, parallel, remove
from longattn.storage.output_folder import OutputFolder
from longattn.text import without_secrets

log = logging.getLogger("longattn")

Samples = Mapping[str, Sample | None]


def is_empty(output: str) -> bool:
    """Whether no window is labelled or selected in a folder, and none has a further score."""
    places = ("labelled", "selected", "scores")
    return not any(list_files(join(output, place), ".parquet") for place in places)


def is_alone(output: str, shard: Shard | None) -> bool:
    """Whether no other share has begun to write, so that what is not there stays away."""
    return shards_held(output) in ([], [shard])


def take_over_empty(
    output: str, parts: Callable[[str], ScoreParts], dtype: str | None, samples: Samples
) -> bool:
    """Remove the ledger of an empty folder that was made with other settings; says so in a line.

    Args:
        output: a folder of which this run, and none of another share, has the hold.
        parts: what decides the scores of this run, in a dtype.
        dtype: that of the settings; None where each run chooses.
        samples: of its categories.

    Returns whether it did.

    Raises FolderError for a folder that another version of longattn laid out.
    """
    record = read_run_record(output)
    if record is None or not is_empty(output):
        return False
    changes = differences(record.parts, parts(dtype or record.parts.dtype))
    try:
        grown_samples(output, samples)
    except FolderError:
        changes = changes or "another sample"
    if not changes:
        return False
    log.warning(
        "%s has no window of the settings it was made with (%s): this run takes it over",
        without_secrets(output),
        changes,
    )
    folder = OutputFolder(output)
    ledger = list_files(join(output, "_longattn"), ".json")
    of_holds = (folder.record("hold"), f"{folder.shards}/")
    last = folder.record("run")  # killed before it, the next run does this again
    gone = [url for url in ledger if not url.startswith(of_holds) and url != last]
    parallel(remove, [*gone, *list_files(folder.quarantine, ".parquet")])
    remove(last)
    return True
