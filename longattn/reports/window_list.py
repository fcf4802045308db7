"""A few windows of an output by name, for who does not know which to inspect."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console

from longattn.config import Select
from longattn.reports.report_windows import labelled_by_category, read_windows, selected_ids
from longattn.reports.verdict import last_selection
from longattn.resume.origin import require_origin
from longattn.selection.columns import columns_of
from longattn.selection.selection_record import SelectionRecord
from longattn.storage.files import parallel
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import own_files
from longattn.terminal import table
from longattn.text import digits

MOST_ROWS = 20_000  # windows looked at of each category; of more, whole files are taken


class ListedWindow(NamedTuple):
    """One window, and why it is listed."""

    category: str
    rank: str
    """`best`, `median` or `worst` of its category."""
    data_id: str
    value: float
    """What ranks it."""
    kept: bool


def listed_windows(output: str) -> tuple[str, list[ListedWindow]]:
    """What ranks, and of each category the best, the median and the worst window.

    By the last selection; where nothing was selected, by LDS. Raises ValueError where nothing is labelled.
    """
    require_origin(output)
    folder = OutputFolder(output)
    name = last_selection(folder)
    selection = SelectionRecord.read(folder, name)
    files = labelled_by_category(output)
    every = [url for urls in files.values() for url in urls]
    if selection is None:
        select = Select()
        columns = columns_of(folder, select, every, None)
    else:
        select, columns = selection.select, selection.columns(folder, every)
    ids = parallel(
        selected_ids, own_files(folder.selected_files(name)) if selection is not None else []
    )
    kept = pa.chunked_array([chunk for column in ids for chunk in column.chunks], pa.string())
    found = []
    for category, urls in sorted(files.items()):
        windows = read_windows(urls, MOST_ROWS, kept, select, columns)
        order = np.argsort(-windows.ranked, kind="stable")
        order = order[np.isfinite(windows.ranked[order])]
        if not len(order):
            continue
        places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
        for rank, place in {place: rank for rank, place in reversed(places.items())}.items():
            i = int(order[rank])
            data_id = windows.table["data_id"][i].as_py()
            value, of_kept = float(windows.ranked[i]), bool(windows.kept[i])
            found.append(ListedWindow(category, place, data_id, value, of_kept))
    found.sort(key=lambda window: (window.category, -window.value))
    return "LDS" if select.rank_by == "lds" else select.rank_by, found


def print_windows(ranked_by: str, windows: list[ListedWindow], console: Console) -> None:
    """The list as a table."""
    rows = table("DATA_ID", "of its category", ranked_by, "kept")
    for window in windows:
        kept = "yes" if window.kept else "no"
        rows.add_row(window.data_id, window.rank, digits(window.value), kept)
    console.print(rows)
