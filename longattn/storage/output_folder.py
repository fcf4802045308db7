"""What a run writes, and where: the only module that knows what lies where below an output.

labelled/<category>/*.parquet    every window with its scores
selected/<category>/*.parquet    the kept windows, with their LDS
selected/<name>/<category>/*.parquet  the same of a selection with a name
scores/<name>/<category>/*.parquet  a score table: a file for each labelled one, named as it is, its rows
quarantine/*.parquet             records that could not be used, and why
damaged/                         files that were no longer what was written, set aside by a run
megatron/ mds/ npy/ jsonl/       the kept windows as a trainer reads them, where exported
README.md                        what was selected, for people and for Hugging Face `datasets`
report.html, evaluation.html     pages for people
inspections/<data_id>.html       a page a window that was inspected
_longattn/run.json               whose scores the folder holds, and the settings
_longattn/samples.json           which share of its windows each category was cut to
_longattn/scores/<name>.json      what decides the numbers of a score table, and the bounds of its windows
_longattn/columns.json           types of the user's columns that the windows carry
_longattn/splits/*.json          markers: what each split gave, once it was read to its end
_longattn/hold.json              the run that is at work here
_longattn/shards/*.json          the runs of shares that are
_longattn/shards.json            into how many shares the work has been parted
_longattn/rates.json             samples of the last run's progress, for the report
_longattn/summary.json           the totals of the last run
_longattn/selection.json         the last selection: its settings, files and figures
_longattn/selections/<name>.json the same of each selection with a name
_longattn/heads.json             the heads that `select.heads: auto` chose
_longattn/check.json             what the ranking column told on a few windows, for the report
_longattn/export-<format>.json   of which windows, in which order, the parts of an export are
"""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from longattn.errors import ConfigError
from longattn.storage.files import (
    ASIDE,
    filesystem,
    join,
    list_files,
    require_answer,
    storage_errors,
)
from longattn.text import without_secrets

FORMAT = 2
"""Of the folder as a whole; 1 had `category=<category>` folders and dictionary columns."""


@dataclass(frozen=True)
class OutputFolder:
    """The places of one output folder, local or on any fsspec file system."""

    url: str

    @property
    def labelled(self) -> str:
        return join(self.url, "labelled")

    @property
    def selected(self) -> str:
        return join(self.url, "selected")

    def score_table(self, name: str) -> str:
        """The folder of a further score: its files lie and are named as the labelled ones."""
        return join(self.url, "scores", name)

    def score_files(self, name: str) -> dict[str, int]:
        """Files of a further score by URL, sorted, with their sizes in bytes."""
        return list_files(self.score_table(name), ".parquet")

    def score_file(self, name: str, labelled: str) -> str:
        """Where a labelled file's rows have their values of a further score."""
        return join(self.score_table(name), *labelled.rsplit("/", 2)[1:])

    def score_record(self, name: str) -> str:
        return self.record(f"scores/{name}")

    def score_names(self) -> list[str]:
        """Further scores that the folder has a record of."""
        records = list_files(join(self.url, "_longattn", "scores"), ".json")
        return [url.rpartition("/")[2].removesuffix(".json") for url in records]

    @property
    def quarantine(self) -> str:
        return join(self.url, "quarantine")

    @property
    def damaged(self) -> str:
        return join(self.url, "damaged")

    def export(self, format: str, selection: str | None = None) -> str:
        """The files of an export; those of a selection with a name lie in a folder of their own."""
        return join(self.url, *([f"{format}-{selection}"] if selection else [format]))

    @property
    def card(self) -> str:
        return join(self.url, "README.md")

    @property
    def markers(self) -> str:
        return join(self.url, "_longattn", "splits")

    @property
    def shards(self) -> str:
        return join(self.url, "_longattn", "shards")

    @property
    def report(self) -> str:
        return join(self.url, "report.html")

    def evaluation(self, suffix: str) -> str:
        return join(self.url, f"evaluation.{suffix}")

    def inspection(self, data_id: str) -> str:
        return join(self.url, "inspections", f"{data_id}.html")

    def record(self, name: str) -> str:
        """A record by its name, as the list above has them."""
        return join(self.url, "_longattn", f"{name}.json")

    def labelled_files(self, category: str | None = None) -> dict[str, int]:
        """Labelled files by URL, sorted, with their sizes in bytes; of one category or of all."""
        return list_files(join(self.labelled, *([category] if category else [])), ".parquet")

    def selection(self, name: str | None) -> str:
        """The folder of a selection; of the one without a name, `selected` itself."""
        return join(self.selected, name) if name else self.selected

    def selection_record(self, name: str | None) -> str:
        return self.record(f"selections/{name}" if name else "selection")

    def selections(self) -> list[str | None]:
        """Names of the selections that were made here, None first if it is one of them."""
        fs, path = filesystem(self.selection_record(None))
        named = list_files(self.record("selections").removesuffix(".json"), ".json")
        names = [url.rpartition("/")[2].removesuffix(".json") for url in named]
        return [*([None] if fs.exists(path) else []), *names]

    def selected_files(self, name: str | None = None) -> dict[str, int]:
        """Files of a selection by URL, sorted, with their sizes in bytes."""
        if name:
            return list_files(self.selection(name), ".parquet")
        return self.all_selected_files().get(None, {})

    def all_selected_files(self) -> dict[str | None, dict[str, int]]:
        """Files of all selections by name, as `selected_files` gives them."""
        found: dict[str | None, dict[str, int]] = {}
        for url, size in list_files(self.selected, ".parquet").items():
            found.setdefault(selection_of(url), {})[url] = size
        return found

    def shown(self) -> list[str]:
        """What of the folder a person may want to look at, as far as it is there."""
        fs, path = filesystem(self.url)
        places = ("labelled", "selected", "quarantine", "_longattn/summary.json", "report.html")
        return [join(self.url, place) for place in places if fs.exists(join(path, place))]


def category_of(url: str) -> str:
    """The category of a labelled or selected file: the name of its folder."""
    return url.rpartition("/")[0].rpartition("/")[2]


def selection_of(url: str) -> str | None:
    """The name of the selection that a selected file is of; None of the one without a name."""
    folders = url.rpartition("/selected/")[2].split("/")[:-1]
    return folders[0] if len(folders) > 1 else None


def require_folder(output: str) -> None:
    """Refuse a local output that is no folder, or in which none can be made; nothing stays there.

    Raises ConfigError in one line.
    """
    if "://" in output:
        return
    place = Path(output)
    try:
        place = next(path for path in (place, *place.parents) if os.path.lexists(path))
        if not place.is_dir():
            what = "a file" if place.exists() else "a link to nothing"
            raise ConfigError(
                f"output {output}: {place} is {what}; allowed: a folder, which a run makes"
            )
        Path(tempfile.mkdtemp(prefix=ASIDE, dir=place)).rmdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # no matter of the place
            return
        raise ConfigError(
            f"output {output}: {place} cannot be written to ({error.strerror}); allowed: a folder that can"
        ) from None


def require_writable(output: str) -> None:
    """Refuse an output that takes no file: of a store, by writing a small one and removing it.

    Raises ConfigError, or OSError where a store does not answer; one line.
    """
    require_folder(output)
    if "://" not in output:
        return
    require_answer(output)
    url = join(output, "_longattn", f"writable-{uuid.uuid4().hex}")
    fs, path = filesystem(url)
    try:
        with storage_errors(url):
            fs.pipe_file(path, b"")
            fs.rm_file(path)
    except (
        FileNotFoundError,
        PermissionError,
    ) as error:  # of a bucket that there is not, or not for us
        why = without_secrets(str(error)).removeprefix(f"{without_secrets(url)}: ")
        raise ConfigError(
            f"output {without_secrets(output)} cannot be written to ({why}); allowed: a folder that can"
        ) from None
