"""The record of a selection: read as it was written, and refused in one line where it is another thing."""

import pytest

from longattn.config import Select
from longattn.selection.selection_record import CategorySelection, SelectionRecord
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record

OF_BOOK = CategorySelection(9, 1, 2, 16, 12, 0.5, 0.1, -0.2, 0.3, 1.5, None, {"ds at least 1": 3})
RECORD = SelectionRecord(
    Select(keep={"count": 2}, alpha=2),
    {"book": (3, 9), "code": None},
    ["a.parquet"],
    {"book": OF_BOOK},
)


@pytest.mark.parametrize("name", [None, "narrow"])
def test_a_record_is_read_as_it_was_written(tmp_path, name):
    folder = OutputFolder(str(tmp_path))
    assert SelectionRecord.read(folder, name) is None
    write_record(folder.selection_record(name), RECORD.to_dict())
    assert SelectionRecord.read(folder, name) == RECORD
    of_all = SelectionRecord(Select(), None)
    write_record(folder.selection_record(name), of_all.to_dict())
    assert SelectionRecord.read(folder, name) == SelectionRecord(Select(), None, [], {})
    assert "heads" not in read_record(folder.selection_record(name))


def test_figures_of_later_versions_are_left_out_and_bounds_only_told_where_there_are(tmp_path):
    folder, told = OutputFolder(str(tmp_path)), RECORD.to_dict()
    told["categories"]["book"]["of another version"] = 1
    write_record(folder.selection_record(None), told)
    assert SelectionRecord.read(folder, None) == RECORD
    assert told["categories"]["book"]["out"] == {"ds at least 1": 3}
    plain = CategorySelection(*list(vars(OF_BOOK).values())[:-1])
    assert "out" not in plain.to_dict() and plain.to_dict()["threshold"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"select": {"alpha": "x"}},
        {"select": 3},
        {"files": ...},
        {"categories": ...},
        {"categories": []},
        {"categories": {"book": {"windows": 1}}},
        {"categories": {"book": 3}},
        {"heads": {"book": 3}},
    ],
)
def test_what_select_does_not_write_is_refused_in_one_line(tmp_path, change):
    folder = OutputFolder(str(tmp_path))
    told = {**RECORD.to_dict(), **change}
    told = {name: of for name, of in told.items() if of is not ...}
    write_record(folder.selection_record(None), told)
    with pytest.raises(
        ValueError, match=r"selection\.json: damaged, or of another version \([^\n]+\); `long"
    ):
        SelectionRecord.read(folder, None)
