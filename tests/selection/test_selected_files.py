import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import longattn as la
from longattn.selection import selected_files
from longattn.selection.selected_files import cut_parts
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
