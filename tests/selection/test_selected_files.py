import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import longattn as la
from longattn.selection import selected_files
from longattn.selection.selected_files import cut_parts
from longattn.storage.tables import file_metadata, open_parquet, write_table
from tests.labelled import labelled_table, write_labelled


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50)), max_size=8), st.integers(1, 200))
def test_files_are_cut_where_bytes_pass_a_multiple_of_the_size(labelled, file_bytes):
    kept, row_bytes = np.array(labelled or [(0, 1)]).T
    parts = cut_parts(kept, row_bytes, file_bytes)
    passed = np.cumsum(np.repeat(row_bytes, kept)) // file_bytes
    ends = [*(np.flatnonzero(np.diff(passed)) + 1).tolist(), *([kept.sum()] if kept.sum() else [])]
    assert np.cumsum(parts).tolist() == ends


def test_files_hold_the_kept_rows_in_order_and_new_ones_are_there_before_old_ones_go(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    ids = [f"book-{i:03d}" for i in range(90)]
    for start in range(0, 90, 30):
        table = labelled_table("book", ids[start : start + 30], rng.random(30), rng.random(30))
        write_labelled(tmp_path, "book", table)
    labelled = sorted((tmp_path / "labelled/book").iterdir())
    order = [name for file in labelled for name in pq.read_table(file)["data_id"].to_pylist()]
    la.select(str(tmp_path), keep={"fraction": 0.7}, file_bytes=1500)
    first = {file: pq.read_table(file) for file in tmp_path.glob("selected/**/*.parquet")}
    names = [name for table in first.values() for name in table["data_id"].to_pylist()]
    assert len(first) > 5 and len(names) == 63
    for table in first.values():
        places = [order.index(name) for name in table["data_id"].to_pylist()]
        assert places == sorted(places)

    def refuse(url):
        assert len(list(tmp_path.glob("selected/**/*.parquet"))) > len(first)
        raise OSError(f"{url}: not now")

    monkeypatch.setattr(selected_files, "remove", refuse)
    with pytest.raises(OSError, match="not now"):
        la.select(str(tmp_path), keep={"fraction": 0.5}, file_bytes=1500)
    assert all(file.exists() for file in first)


def rewritten(url, change):
    """The selected file with other rows, columns or footer, as somebody may have left it."""
    with open_parquet(url) as parquet:
        table, told = parquet.read().replace_schema_metadata(), file_metadata(parquet)
    told = {key: told[key] for key in told.keys() - {"rows", "digest"}}
    write_table(url, *change(table, told))


CHANGES = [
    (lambda table, told: (table.drop_columns(["source"]), told), "other columns"),
    (
        lambda table, told: (table, {**told, "fingerprint": "x"}),
        "its footer tells of another selection",
    ),
    (lambda table, told: (table, {}), "its footer tells of another selection"),
    (lambda table, told: (table.slice(1), told), "other windows"),
    (lambda table, told: (table.take([1, 0, 2, 3, 4]), told), "other windows"),
    (lambda table, told: (pa.concat_tables([table, table]), told), "other windows"),
    (lambda table, told: (table.slice(0, 4), told), "rows that are not those its footer tells of"),
]


def test_a_selected_file_that_is_not_what_it_should_be_is_written_anew(tmp_path, caplog):
    ids = [f"b-{i}" for i in range(10)]
    write_labelled(tmp_path, "book", labelled_table("book", ids, range(10), [1.0] * 10))
    la.select(str(tmp_path))
    (url,) = map(str, tmp_path.glob("selected/**/*.parquet"))
    right = pq.read_table(url)
    for change, why in CHANGES:
        caplog.clear()
        rewritten(url, change)
        la.select(str(tmp_path))
        assert caplog.messages == [f"{url}: {why}; it is written anew"]
        assert pq.read_table(url).equals(right)
    with open(url, "r+b") as file:  # noqa: PTH123 - a bit of the texts, which nothing else compares
        place = pq.read_metadata(url).row_group(0).column(1).data_page_offset + 40
        file.seek(place)
        bit = bytes([file.read(1)[0] ^ 1])
        file.seek(place)
        file.write(bit)
    caplog.clear()
    la.select(str(tmp_path))
    assert "; it is written anew" in caplog.text and pq.read_table(url).equals(right)


def test_files_of_other_programs_among_the_selected_stay(tmp_path, caplog):
    write_labelled(tmp_path, "book", labelled_table("book", ["a", "b"], [0.1, 0.3], [0.2, 0.1]))
    la.select(str(tmp_path))
    folder = tmp_path / "selected" / "book"
    pq.write_table(pa.table({"n": [1]}), folder / "mine.parquet")
    (folder / "notes.parquet").write_bytes(b"no Parquet")
    (folder / f"{'0' * 32}.parquet").write_bytes(b"ours, and broken")
    (ours,) = {*folder.iterdir()} - {
        folder / n for n in ("mine.parquet", "notes.parquet", f"{'0' * 32}.parquet")
    }
    la.select(str(tmp_path), keep={"count": 2})
    assert not ours.exists() and not (folder / f"{'0' * 32}.parquet").exists()
    assert sorted(caplog.messages) == [
        f"{folder / name} was not written by longattn: left alone"
        for name in ("mine.parquet", "notes.parquet")
    ]
