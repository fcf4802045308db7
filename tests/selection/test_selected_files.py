import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import longattn as la
from longattn import selected
from longattn.selection.selected_files import cut_parts
from tests.labelled import labelled_table, write_labelled


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 50)), max_size=8), st.integers(1, 200))
def test_files_are_cut_where_bytes_pass_a_multiple_of_the_size(labelled, file_bytes):
    kept, row_bytes = np.array(labelled or [(0, 1)]).T
    parts = cut_parts(kept, row_bytes, file_bytes)
    rows = [(file, i) for part in parts for file, a, b in part for i in range(a, b)]
    assert rows == [(file, i) for file, number in enumerate(kept) for i in range(number)]
    passed = np.cumsum([row_bytes[file] for file, _ in rows]) // file_bytes
    ends = np.cumsum([sum(b - a for _, a, b in part) for part in parts])
    assert ends[:-1].tolist() == (np.flatnonzero(np.diff(passed)) + 1).tolist()


def test_the_files_do_not_depend_on_how_they_are_grouped(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    ids = [f"book-{i:03d}" for i in range(90)]
    for start in range(0, 90, 30):
        table = labelled_table("book", ids[start : start + 30], rng.random(30), rng.random(30))
        write_labelled(tmp_path, "book", table)
    found = []
    for groups in (1, 2, 5, 256):
        monkeypatch.setattr(selected, "GROUPS", groups)
        monkeypatch.setattr(selected, "AT_WORK", groups)
        la.select(str(tmp_path), keep={"fraction": 0.7}, file_bytes=1500)
        files = sorted(tmp_path.glob("selected/**/*.parquet"))
        found.append({file.name: file.read_bytes() for file in files})
        for file in files:
            file.unlink()
    assert len(found[0]) > 5 and all(other == found[0] for other in found)
