"""A user's own numbers as a score table: matched by id, told what does not match."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.errors import ConfigError
from longattn.reports.verify import verify
from longattn.selection import join, score_table


@pytest.fixture
def output(scored, tmp_path):
    shutil.copytree(scored[0].output, tmp_path / "out")
    return tmp_path / "out"


def ids_of(output):
    """Of all labelled windows, file by file."""
    return [
        pq.read_table(path, columns=["data_id"])["data_id"].to_pylist()
        for path in sorted(output.glob("labelled/*/*.parquet"))
    ]


def given(output, tmp_path, **columns):
    """A file with numbers of all windows, in an order of its own; returns id -> number as well."""
    ids = [data_id for some in ids_of(output) for data_id in some]
    ids = np.random.default_rng(0).permutation(ids).tolist()
    made = {name: [make(data_id) for data_id in ids] for name, make in columns.items()}
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"data_id": ids, **made}), path)
    return str(path)


def number(data_id):
    return int(data_id[-6:].replace("-", ""), 16) / 7


def test_each_window_gets_its_number_whatever_the_order_of_the_file(output, tmp_path, monkeypatch):
    monkeypatch.setattr(score_table, "INSERTED", 7)
    file = given(output, tmp_path, stars=number, other=lambda _: 3, note=lambda _: "text")
    told = la.join(str(output), file, name="mine")
    assert told.columns == ("mine_stars", "mine_other") and told.left_out == ("note",)
    paths = sorted(output.glob("labelled/*/*.parquet"))
    for path, ids in zip(paths, ids_of(output), strict=True):
        table = pq.read_table(output / "scores/mine" / path.parent.name / path.name)
        assert table["data_id"].to_pylist() == ids
        assert table["mine_stars"].to_pylist() == list(map(number, ids))
        assert table["mine_other"].to_pylist() == [3.0] * len(ids)
    assert (told.windows, told.missing, told.unknown, told.tables) == (told.rows, 0, 0, len(paths))
    assert list(verify(str(output))) == []


def test_what_does_not_match_is_told_and_null(output, tmp_path, caplog):
    flat = [data_id for some in ids_of(output) for data_id in some]
    file = tmp_path / "some.parquet"
    values = [1.5, float("nan"), *range(len(flat) - 4)]
    pq.write_table(pa.table({"data_id": [*flat[:-3], "book-x-0"], "v": values}), file)
    with caplog.at_level(logging.WARNING, "longattn"):
        told = la.join(str(output), str(file), name="mine")
    assert (told.unknown, told.missing, told.columns) == (1, 3, ("mine",))
    assert f"1 of {len(flat) - 2} ids are not labelled here, as book-x-0" in caplog.text
    assert f"3 of {len(flat)} labelled windows get null, as" in caplog.text
    tables = [pq.read_table(p) for p in sorted(output.glob("scores/mine/*/*.parquet"))]
    column = pa.concat_tables(tables)["mine"]
    assert column.null_count == 4 and column[0].as_py() == 1.5 and column[1].as_py() is None
    assert list(verify(str(output))) == []


def test_the_same_file_again_writes_what_is_missing_and_another_one_is_refused(output, tmp_path):
    file = given(output, tmp_path, v=number)
    la.join(str(output), file, name="mine")
    before = {p: p.read_bytes() for p in sorted(output.glob("scores/mine/*/*.parquet"))}
    next(iter(before)).unlink()
    assert la.join(str(output), file, name="mine").tables == 1
    assert {p: p.read_bytes() for p in sorted(output.glob("scores/mine/*/*.parquet"))} == before
    other = given(output, tmp_path, v=lambda _: 0.5)
    with pytest.raises(ValueError, match=r"holds a score 'mine' of other settings .*another name"):
        la.join(str(output), other, name="mine")
    assert la.join(str(output), other, name="mine2").tables == len(before)


def test_joined_numbers_are_replaced_where_that_is_asked_for(output, tmp_path, monkeypatch):
    file, name = given(output, tmp_path, v=number), ["--name", "mine"]
    la.join(str(output), file, name="mine")
    other = given(output, tmp_path, v=lambda data_id: number(data_id) + 1)
    refused = CliRunner().invoke(app, ["join", str(output), other, *name])
    assert refused.exit_code == 2 and "another name, or replace it: --replace" in refused.output

    def killed(url):
        if url.endswith(min(path.name for path in output.glob("scores/mine/*/*.parquet"))):
            raise KeyboardInterrupt
        Path(url).unlink()

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(join, "remove", killed)
        la.join(str(output), other, name="mine", replace=True)
    found = list(verify(str(output)))  # of the old record, and not whole
    assert all("without a table" in finding for finding in found)
    done = CliRunner().invoke(app, ["join", str(output), other, *name, "--replace"])
    assert done.exit_code == 0
    for path, ids in zip(sorted(output.glob("labelled/*/*.parquet")), ids_of(output), strict=True):
        table = pq.read_table(output / "scores/mine" / path.parent.name / path.name)
        assert table["mine"].to_pylist() == [number(data_id) + 1 for data_id in ids]
    assert list(verify(str(output))) == []


def test_a_computed_score_is_not_replaced(output, tmp_path):
    la.score_tables(str(output), [{"name": "text", "kind": "measures"}], executor="local")
    before = {p: p.read_bytes() for p in output.glob("scores/text/*/*.parquet")}
    file = given(output, tmp_path, v=number)
    with pytest.raises(ValueError, match=r"a score 'text' of other settings .*another name$"):
        la.join(str(output), file, name="text", replace=True)
    assert {p: p.read_bytes() for p in output.glob("scores/text/*/*.parquet")} == before


@pytest.mark.parametrize("index", [None, "line"])
def test_the_index_of_a_pandas_frame_is_no_score(output, tmp_path, index):
    ids = [data_id for some in ids_of(output) for data_id in some]
    frame = pa.table({"data_id": ids, "stars": list(map(number, ids))}).to_pandas()
    frame.index = (frame.index * 2).rename(index)
    frame.sort_values("stars").to_parquet(tmp_path / "stars.parquet")
    done = CliRunner().invoke(app, ["join", str(output), str(tmp_path / "stars.parquet")])
    assert done.exit_code == 0 and ": stars of " in done.output
    left_out = index or "__index_level_0__"
    assert f"left out, as no numbers or the index of pandas: {left_out}\n" in done.output
    frame[["data_id"]].sort_values("data_id").to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(ConfigError, match=f"beside data_id and the index of pandas, {left_out}$"):
        la.join(str(output), str(tmp_path / "bare.parquet"))
    frame.set_index("data_id").to_parquet(tmp_path / "by_id.parquet")
    assert la.join(str(output), str(tmp_path / "by_id.parquet")).columns == ("by_id",)


@pytest.mark.parametrize(
    ("there", "told"), [(False, "no such file"), (True, "a folder, not a file")]
)
def test_a_file_that_is_not_there_is_refused_in_one_line(output, tmp_path, there, told):
    file = tmp_path / "gone.parquet"
    if there:
        file.mkdir()
    done = CliRunner().invoke(app, ["join", str(output), str(file)])
    assert done.exit_code == 2 and done.output.count("\n") == 1
    assert f"{file}: {told}; one with data_id and columns of numbers is wanted" in done.output


def test_a_file_is_read_a_part_at_a_time_and_is_the_same_however_large_they_are(
    output, tmp_path, monkeypatch
):
    file = given(output, tmp_path, a=number, b=lambda data_id: int(number(data_id)))
    monkeypatch.setattr(join, "READ_ROWS", 7)
    first = la.join(str(output), file, name="mine")
    monkeypatch.setattr(join, "READ_ROWS", 1000)
    again = la.join(str(output), file, name="mine")
    assert (again.tables, again.rows, again.columns) == (0, first.rows, ("mine_a", "mine_b"))


def test_a_file_of_another_kind_says_what_is_wanted(output, tmp_path):
    (tmp_path / "mine.csv").write_text("data_id,v\na,1\n")
    with pytest.raises(ConfigError, match=r"mine\.csv: not a Parquet file; one with data_id and "):
        la.join(str(output), str(tmp_path / "mine.csv"), name="mine")


@pytest.mark.parametrize(
    ("table", "name", "told"),
    [
        ({"id": ["a"], "v": [1.0]}, "mine", "no column data_id; there are id, v"),
        ({"data_id": ["a"], "v": ["x"]}, "mine", "no column of numbers beside data_id"),
        ({"data_id": ["a", "b", "a"], "v": [1, 2, 3]}, "mine", "there more than once: a"),
        ({"data_id": ["a", None], "v": [1, 2]}, "mine", "rows without a data_id"),
        ({"data_id": ["a"], "v": [float("inf")]}, "mine", "mine has numbers that are infinite"),
        ({"data_id": ["a"], "v": [1.0]}, "mine", "none of its 1 ids is labelled here, as a"),
        ({"data_id": ["a"], "v": [1.0]}, "ds", "--name ds: labelled windows have a column"),
        ({"data_id": ["a"], "v": [1.0]}, "A b", "--name A b: a score names a column"),
        ({"data_id": ["a"], "v": [1.0]}, "gap_weighted", "'gap' has a column 'gap_weighted' already"),
        ({"data_id": ["a"], "a b": [1.0], "c": [1.0]}, "m", "column 'a b' would be 'm_a b'"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused_in_one_line(scored, tmp_path, table, name, told):
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table(table), file)
    done = CliRunner().invoke(app, ["join", scored[0].output, str(file), "--name", name])
    assert done.exit_code == 2 and told in done.output and done.output.count("\n") <= 2
    assert not Path(scored[0].output, "scores", name).exists() or name == "gap_weighted"


def test_the_command_says_what_became_of_the_rows(output, tmp_path):
    file = given(output, tmp_path, stars=number)
    done = CliRunner().invoke(app, ["join", str(output), file, "--name", "stars"])
    assert done.exit_code == 0
    windows = sum(map(len, ids_of(output)))
    assert (
        f"score stars: stars of {windows} of {windows} windows; 0 of {windows} ids" in done.output
    )


def test_the_name_of_the_file_is_that_of_the_score(output, tmp_path):
    file = Path(given(output, tmp_path, v=number)).rename(tmp_path / "stars.parquet")
    done = CliRunner().invoke(app, ["join", str(output), str(file)])
    assert done.exit_code == 0 and "score stars (named as the file): stars of " in done.output
    assert (output / "scores/stars").is_dir()
    for name, why in (("My-Stars 2.parquet", "a score names a column"), ("ds.pq", "of this name")):
        other = file.rename(tmp_path / name)
        done = CliRunner().invoke(app, ["join", str(output), str(other)])
        assert done.exit_code == 2 and f"{other}: its name is no name of a score" in done.output
        assert why in done.output and done.output.endswith("give --name\n")
        other.rename(file)
    assert "default: FILE without" in CliRunner().invoke(app, ["join", "--help"]).output
