"""Whatever is wrong with a score table is found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longattn.errors import FolderError
from longattn.reports.verify_tables import score_table_findings
from longattn.resume.score_tables import read_table_record
from longattn.storage.digests import sealed
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import file_metadata, write_table


@pytest.fixture
def output(scored, tmp_path):
    shutil.copytree(scored[0].output, tmp_path / "out")
    return tmp_path / "out"


def found(output, scores=0):
    return list(score_table_findings(OutputFolder(str(output)), scores))


def table(output, name="gap"):
    return sorted(output.glob(f"scores/{name}/book/*.parquet"))[0]


def rewrite(path, change, metadata=None):
    """Write a table anew, with a digest that fits its rows."""
    with pq.ParquetFile(path) as parquet:
        told, rows = file_metadata(parquet), parquet.read()
    write_table(str(path), change(rows.replace_schema_metadata()), {**told, **(metadata or {})})


def test_tables_as_they_were_written_hold(output):
    assert found(output, scores=2) == []


def test_a_record_with_another_value_is_told_by_its_path_once(output):
    record = Path(OutputFolder(str(output)).score_record("gap"))
    record.write_text(record.read_text().replace('"short": 64', '"short": 65'))
    with pytest.raises(FolderError) as told:
        read_table_record(str(output), "gap")
    assert str(told.value) == f"{record}: damaged: it is not what its checksum was taken of"


def test_a_lost_table_one_too_many_and_one_without_a_record_are_found(output):
    path = table(output)
    path.rename(path.with_name("0" * 32 + ".parquet"))
    shutil.copytree(output / "scores/deep", output / "scores/stranger")
    told = found(output)
    assert any("scores/gap: 1 labelled files without a table" in line for line in told)
    assert any("a table whose labelled file is not there" in line for line in told)
    assert any("scores/stranger: tables of a score without a record" in line for line in told)


def shifted(rows):
    values = np.roll(rows["data_id"].to_pylist(), 1).tolist()
    return rows.set_column(0, "data_id", pa.array(values))


def other(name, value):
    def change(rows):
        values = [value if v is not None else v for v in rows[name].to_pylist()]
        place = rows.column_names.index(name)
        return rows.set_column(place, rows.schema.field(name), pa.array(values, pa.float64()))

    return change


def half_of_the_heads(rows):
    place, field = rows.column_names.index("deep_heads"), rows.schema.field("deep_heads")
    lists = [of[:1] for of in rows["deep_heads"].to_pylist()]
    return rows.set_column(place, field, pa.array(lists, field.type))


@pytest.mark.parametrize(
    ("name", "change", "metadata", "finding"),
    [
        ("gap", shifted, {}, "its ids are not those of the labelled file"),
        ("gap", lambda rows: rows.slice(1), {}, "its ids are not those of the labelled file"),
        ("gap", other("gap", float("nan")), {}, "gap must be finite"),
        ("gap", lambda rows: rows, {"fingerprint": "f" * 32}, "fingerprint ffff"),
        ("gap", lambda rows: rows, {"scored": 0}, "windows scored, its footer tells of 0"),
        ("gap", lambda rows: rows.drop_columns(["gap"]), {}, "not those of the score"),
        ("text", other("repetition", 0.25), {}, "repetition is not that of its windows' ids"),
        ("deep", other("deep", 0.25), {}, "deep_heads: deep and deep_layers are not its means"),
        ("deep", half_of_the_heads, {}, "deep_heads: its lists are not of the shape and layers"),
    ],
)
def test_a_changed_table_is_found(output, name, change, metadata, finding):
    rewrite(table(output, name), change, metadata)
    assert any(finding in line for line in found(output))


def test_a_window_that_the_limits_leave_out_is_found(output):
    path = table(output)
    rows = pq.read_table(path)
    assert rows["gap"].null_count

    def filled(rows):
        columns = {n: rows[n].fill_null(0.5) for n in ("gap", "gap_weighted")}
        return pa.table({"data_id": rows["data_id"], **columns}, schema=rows.schema)

    rewrite(path, filled, {"scored": len(rows)})
    assert any("windows scored that the limits leave out" in line for line in found(output))


def test_damage_to_bytes_digest_and_record_is_found(output):
    path = table(output, "deep")
    with pq.ParquetFile(path) as parquet:
        footer = parquet.metadata.metadata[b"longattn"]
        rows = parquet.read()
    changed = rows.set_column(1, "deep", pa.array([0.5] * len(rows)))
    pq.write_table(changed.replace_schema_metadata({b"longattn": footer}), path)
    assert any("its rows are not those its footer tells of" in line for line in found(output))
    path.write_bytes(path.read_bytes()[:-9])
    assert any("cannot be checked" in line for line in found(output))
    record = output / "_longattn/scores/deep.json"
    values = json.loads(record.read_text())
    values["parts"]["dtype"] = "float16"
    record.write_text(json.dumps(sealed(values)))
    assert any("its fingerprint is not that of its parts" in line for line in found(output))
    other = sorted(output.glob("scores/deep/code/*.parquet"))[0]
    pq.write_table(pq.read_table(other).slice(1), other)
    for text in (record.read_text()[:-40], "[]"):
        record.write_text(text)
        told = found(output)  # a damaged record hides no damage of its tables
        assert {line.partition(": ")[0] for line in told} == {str(record), str(path), str(other)}


def test_numbers_that_are_others_now_are_found(output):
    for path in output.glob("scores/deep/*/*.parquet"):
        rewrite(path, other("deep", 0.1))
    assert any("deep was 0.1 and is now" in line for line in found(output, scores=3))


def test_a_head_that_is_another_now_is_found(output):
    def changed(rows):
        place, field = rows.column_names.index("deep_heads"), rows.schema.field("deep_heads")
        lists = [of[::-1] for of in rows["deep_heads"].to_pylist()]
        return rows.set_column(place, field, pa.array(lists, field.type))

    for path in output.glob("scores/deep/*/*.parquet"):
        rewrite(path, changed)
    told = found(output, scores=2)
    assert told and all("deep_heads is now" in line for line in told)
