import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.reports.verify import verify
from longattn.storage.digests import sealed
from longattn.storage.tables import LABELLED, file_metadata, write_table


@pytest.fixture
def output(finished, tmp_path):
    """A copy of a finished run, to break."""
    settings, _ = finished
    shutil.copytree(settings.output, tmp_path / "out")
    return tmp_path / "out"


def first(output, folder="labelled"):
    return sorted(output.glob(f"{folder}/**/*.parquet"))[0]


def change(path, column, value):
    """Write a file again with another value in its first row."""
    with pq.ParquetFile(path) as parquet:
        metadata, table = file_metadata(parquet), parquet.read()
    rows = table.to_pylist()
    rows[0][column] = value(rows[0][column])
    write_table(str(path), pa.Table.from_pylist(rows, table.schema.remove_metadata()), metadata)


def test_a_finished_run_holds(output):
    assert list(verify(str(output))) == []


@pytest.mark.parametrize(
    ("column", "value", "finding"),
    [
        ("data_id", lambda v: v[:-1] + "9", "not the id of its category, document and window"),
        ("content", lambda v: v[:-1], "content is not what its ids decode to"),
        ("token_stop", lambda v: v + 1, "512 ids for tokens 0 to 513"),
        ("ds", lambda v: v + 1e-9, "another LDS"),
        ("variance", lambda _: float("nan"), "variance nan"),
    ],
)
def test_a_changed_value_is_found(output, column, value, finding):
    if column == "variance":
        (output / "_longattn/selection.json").unlink()
    change(first(output), column, value)
    assert any(finding in line for line in verify(str(output)))


def test_a_folder_in_place_of_the_record_of_the_run_is_a_finding(output):
    record = output / "_longattn/run.json"
    record.unlink()
    record.mkdir()
    (finding,) = verify(str(output))
    assert str(record) in finding and "directory" in finding


def test_a_lost_file_a_copied_one_and_a_broken_one_are_found(output):
    path = first(output)
    shutil.copy(path, path.with_name("copy.parquet"))
    assert any("there more than once" in line for line in verify(str(output)))
    path.with_name("copy.parquet").write_bytes(path.read_bytes()[:-9])
    assert any("copy.parquet: cannot be checked" in line for line in verify(str(output)))
    path.with_name("copy.parquet").unlink()
    path.unlink()
    told = list(verify(str(output)))
    assert any("its marker tells of" in line for line in told)
    assert any("the summary tells of" in line for line in told)


def test_a_selection_that_is_not_what_the_scores_select_is_found(output):
    chosen = output / "_longattn/selection.json"
    values = json.loads(chosen.read_text())
    values["select"]["keep"] = {"fraction": 0.25}
    chosen.write_text(json.dumps(sealed(values)))
    assert any("should not be selected" in line for line in verify(str(output)))
    first(output, "selected").unlink()
    assert any("though selection.json lists it" in line for line in verify(str(output)))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run has written here"):
        list(verify(str(tmp_path)))


def test_columns_of_other_files_are_told(output):
    table = pq.ParquetFile(first(output)).read().select(LABELLED.names[:3])
    write_table(str(Path(first(output)).with_name("x.parquet")), table, {})
    assert any("x.parquet: columns" in line for line in verify(str(output)))


def test_other_rules_of_selection_hold_as_well(output):
    rules = {"rank_by": "recurrence_pairs", "overlap": "prefer_distinct", "keep": {"count": 5}}
    la.select(str(output), **rules)
    assert list(verify(str(output))) == []
    first(output, "selected").unlink()
    assert any("should be selected and are not" in line for line in verify(str(output)))
