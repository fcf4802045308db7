"""What a selection reads: how heads are called, which columns a file must have, and what is no number."""

import numpy as np
import pyarrow as pa
import pytest

import longattn as la
from longattn.config import Select
from longattn.selection.columns import Columns, score_tables
from longattn.selection.table_heads import TableHeads
from longattn.settings.selection import HeadsOfScore
from longattn.storage.files import write_bytes
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import LABELLED
from tests.labelled import labelled_table, write_labelled
from tests.selection.test_select_windows import selected

DEEP = HeadsOfScore.check({"score": "deep", "layer": [3, 7], "head": "auto"}, "heads")
FIXED = HeadsOfScore.check({"score": "deep", "layer": 7, "head": [0, 2]}, "heads")


def test_heads_are_told_by_category():
    chosen = {"book": ((7, 1),), "code": None, "web": ((3, 0), (7, 2))}
    deep = Columns(heads=TableHeads(DEEP, (3, 7), 3, chosen))
    assert [deep.told_heads(of) for of in ("book", "code", "web", "new")] == [
        "head 1 of layer 7 of deep",
        "all heads of layers 3, 7 of deep",
        "head 0 of layer 3, head 2 of layer 7 of deep",
        "all heads of layers 3, 7 of deep",
    ]
    assert [deep.heads_of(of) for of in ("book", "code", "web")] == [
        (4,),
        (0, 1, 2, 3, 4, 5),
        (0, 5),
    ]
    fixed = Columns(heads=TableHeads(FIXED, (2, 3, 7), 3))
    assert (fixed.told_heads("x"), fixed.heads_of("x")) == ("heads 0, 2 of layer 7 of deep", (6, 8))
    assert fixed.lds_of_table and not Columns(heads=(1,)).lds_of_table
    assert Columns(heads=(3, 9)).told_heads("x") == "heads 3, 9"
    auto = Columns(heads={"book": (3,), "code": None})
    assert [auto.told_heads(of) for of in ("book", "code", "x")] == ["head 3", "", ""]
    assert Columns().told_heads("x") == ""


def test_a_choice_of_a_layer_that_the_score_has_not_is_refused():
    with pytest.raises(ValueError, match=r"select.heads: deep has no layers of \[\(5, 0\)\]"):
        TableHeads(DEEP, (3, 7), 3, {"book": ((5, 0),)})


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def rows(n=8):
    return labelled_table("book", [f"book-{i}" for i in range(n)], np.arange(n) / n, np.ones(n))


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ([[0.1]] * 7 + [None], "select.heads: some windows have no ds_heads: "),
        ([[0.1]] * 7 + [[None]], "select.heads: some windows have no ds_heads: "),
        ([[0.1, 0.2]] * 7 + [[0.1]], "select.heads: windows have different numbers of heads: "),
        (
            [[0.1, 0.2]] * 6 + [[0.1], [1, 2, 3]],
            "select.heads: windows have different numbers of heads: ",
        ),
        ([[]] * 8, r"select.heads: heads \[0\]: allowed: 0 to -1, at least one: "),
    ],
)
def test_scores_by_head_are_the_same_heads_for_every_window(tmp_path, heads, said):
    table = with_column(rows(), "ds_heads", pa.array(heads, LABELLED.field("ds_heads").type))
    url = write_labelled(tmp_path, "book", table)
    with pytest.raises(ValueError, match=f"^{said}{url}$"):
        la.select(str(tmp_path), heads=[0])
    assert la.select(str(tmp_path))["book"].kept == 4  # by the stored means


def test_any_number_ranks_and_what_no_double_holds_is_refused(tmp_path):
    table = rows()
    columns = {
        "stars": pa.array([3, 1, 2, 8, 7, 6, 5, 4], pa.int8()),
        "liked": pa.array([True, False] * 4),
        "half": pa.array([0.5 * i for i in range(8)], pa.float16()),
        "huge": pa.array([2**53 + 1] * 8),
        "word": pa.array(["x"] * 8),
    }
    for name, values in columns.items():
        table = table.append_column(name, values)
    write_labelled(tmp_path, "book", table)
    for name, best in (
        ("stars", [3, 4]),
        ("liked", [0, 2]),
        ("half", [6, 7]),
        ("window_index", [0, 1]),
    ):
        la.select(str(tmp_path), rank_by=name, keep={"count": 2})
        assert selected(tmp_path)["data_id"].to_pylist() == [f"book-{i}" for i in best]
    with pytest.raises(ValueError, match="the column huge fits no double: "):
        la.select(str(tmp_path), rank_by="huge")
    with pytest.raises(ValueError, match="the column word is string, not numbers"):
        la.select(str(tmp_path), where=[{"column": "word", "min": 0}])
    la.select(str(tmp_path), where=[{"column": "liked", "min": 1}], keep={"fraction": 1})
    assert len(selected(tmp_path)) == 4


def test_folders_of_score_tables_are_found_on_any_store(tmp_path):
    for base in (str(tmp_path), "memory://tables"):
        assert score_tables(OutputFolder(base)) == []
        for place in ("scores/b/x/1.parquet", "scores/a/x/1.parquet", "scores/notes.txt"):
            write_bytes(f"{base}/{place}", b"")
        assert score_tables(OutputFolder(base)) == ["a", "b"]


def test_files_of_other_programs_among_the_labelled_are_left_alone(tmp_path, caplog):
    import pyarrow.parquet as pq

    pq.write_table(rows(3), tmp_path / "other.parquet")
    (tmp_path / "labelled" / "book").mkdir(parents=True)
    other = tmp_path / "labelled" / "book" / "0.parquet"
    pq.write_table(rows(3), other)
    with pytest.raises(ValueError, match="no labelled windows of longattn to select from"):
        la.select(str(tmp_path))
    caplog.clear()
    write_labelled(tmp_path, "book", rows())
    assert la.select(str(tmp_path), Select(keep={"count": 3}))["book"].windows == 8
    assert caplog.messages == [f"{other} was not written by longattn: left alone"]
    assert selected(tmp_path)["data_id"].to_pylist() == [f"book-{i}" for i in (5, 6, 7)]
