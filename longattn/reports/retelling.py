"""After a selection: all that tells of one is written anew, each file whole, and none tells of another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from longattn.reports.report import write_report
from longattn.resume.fingerprint import read_run_record
from longattn.selection.selection_record import CategorySelection
from longattn.storage.digests import json_checksum
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.text import without_secrets

_OF_SELECTION = {field.name for field in fields(CategorySelection)} - {"windows"}


def selection_proof(folder: OutputFolder, name: str | None) -> dict[str, Any]:
    """What a summary says of the selection that it tells of: its checksum, and its name if it has one."""
    proof = {"selection": json_checksum(read_record(folder.selection_record(name)))}
    return {**proof, "selection_name": name} if name else proof


def retell(
    output: str, selection: Mapping[str, CategorySelection], name: str | None = None
) -> list[str]:
    """Write the summary's part on the selection, and the report, after `select`.

    The summary stays as it is where no run has finished; the report is written where a run has
    written, as `run` writes it.

    Raises ValueError where the summary is damaged.

    Returns:
        The URLs of what was written, beside the selected files and their record.
    """
    folder = OutputFolder(output)
    written = []
    summary = read_record(folder.record("summary"))
    if summary is not None:
        categories = summary.get("categories")
        if not isinstance(categories, dict) or not all(
            isinstance(one, dict) for one in categories.values()
        ):
            raise ValueError(f"{without_secrets(folder.record('summary'))}: damaged: no categories")
        for of, category in categories.items():
            for key in _OF_SELECTION & category.keys():
                del category[key]
            if of in selection:
                category.update(selection[of].to_dict())
        summary.pop("selection_name", None)
        summary |= selection_proof(folder, name)
        write_record(folder.record("summary"), summary)
        written.append(folder.record("summary"))
    if read_run_record(output) is not None:
        written.append(write_report(output))
    return written
