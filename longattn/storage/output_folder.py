"""What a run writes, and where: the only module that knows what lies where below an output.

labelled/<category>/*.parquet    every window with its scores
selected/<category>/*.parquet    the kept windows, with their LDS
quarantine/*.parquet             records that could not be used, and why
damaged/                         files that were no longer what was written, set aside by a run
megatron/ mds/ npy/ jsonl/       the kept windows as a trainer reads them, where exported
README.md                        what was selected, for people and for Hugging Face `datasets`
report.html, evaluation.html     pages for people
inspections/<data_id>.html       a page a window that was inspected
_longattn/run.json               whose scores the folder holds, and the settings
_longattn/samples.json           which share of its windows each category was cut to
_longattn/columns.json           types of the user's columns that the windows carry
_longattn/splits/*.json          markers: what each split gave, once it was read to its end
_longattn/hold.json              the run that is at work here
_longattn/rates.json             samples of the last run's progress, for the report
_longattn/summary.json           the totals of the last run
_longattn/selection.json         the last selection: its settings, files and figures
_longattn/export-<format>.json   of which windows, in which order, the parts of an export are
"""

from __future__ import annotations

from dataclasses import dataclass

from longattn.storage.files import filesystem, join, list_files

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

    @property
    def quarantine(self) -> str:
        return join(self.url, "quarantine")

    @property
    def damaged(self) -> str:
        return join(self.url, "damaged")

    def export(self, format: str) -> str:
        return join(self.url, format)

    @property
    def card(self) -> str:
        return join(self.url, "README.md")

    @property
    def markers(self) -> str:
        return join(self.url, "_longattn", "splits")

    @property
    def report(self) -> str:
        return join(self.url, "report.html")

    def evaluation(self, suffix: str) -> str:
        return join(self.url, f"evaluation.{suffix}")

    def inspection(self, data_id: str) -> str:
        return join(self.url, "inspections", f"{data_id}.html")

    def record(self, name: str) -> str:
        """`run`, `samples`, `columns`, `hold`, `rates`, `summary`, `selection` or `export-<format>`."""
        return join(self.url, "_longattn", f"{name}.json")

    def labelled_files(self, category: str | None = None) -> dict[str, int]:
        """Labelled files by URL, sorted, with their sizes in bytes; of one category or of all."""
        return list_files(join(self.labelled, *([category] if category else [])), ".parquet")

    def selected_files(self) -> dict[str, int]:
        """Selected files by URL, sorted, with their sizes in bytes."""
        return list_files(self.selected, ".parquet")

    def shown(self) -> list[str]:
        """What of the folder a person may want to look at, as far as it is there."""
        fs, path = filesystem(self.url)
        places = ("labelled", "selected", "quarantine", "_longattn/summary.json", "report.html")
        return [join(self.url, place) for place in places if fs.exists(join(path, place))]


def category_of(url: str) -> str:
    """The category of a labelled or selected file: the name of its folder."""
    return url.rpartition("/")[0].rpartition("/")[2]
