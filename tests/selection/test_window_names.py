import errno
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.selection import window_names
from longattn.selection.id_hashes import IdHashes
from longattn.selection.window_names import SCHEMA, WindowNames


def windows(first, stop):
    numbers = range(first, stop)
    columns = [[f"é{i}" for i in numbers], [f"d{i // 3}" for i in numbers], numbers, numbers]
    return pa.table([pa.array(c, t) for c, t in zip(columns, SCHEMA.types, strict=True)], SCHEMA)


@given(st.lists(st.integers(0, 20), max_size=6), st.data())
def test_windows_are_found_by_position_whatever_the_blocks(tmp_path_factory, lengths, data):
    ends = np.cumsum([0, *lengths]).tolist()
    folder = tmp_path_factory.mktemp("names")
    names = WindowNames(folder)
    for first, stop in pairwise(ends):
        names.append(windows(first, stop))
    assert len(names) == ends[-1]
    asked = data.draw(st.sets(st.integers(0, ends[-1] - 1))) if ends[-1] else set()
    wanted = windows(0, ends[-1]).take(pa.array(sorted(asked), pa.int64()))
    assert names.at(np.array(sorted(asked), np.int64)).equals(wanted)
    blocks = [*names.blocks()]
    assert [first for first, _ in blocks] == sorted({*ends[:-1]} - {ends[-1]})
    assert pa.concat_tables([SCHEMA.empty_table(), *(b for _, b in blocks)]).equals(
        windows(0, ends[-1])
    )
    names.close()
    assert not list(folder.iterdir())


def test_many_windows_lie_in_several_blocks_of_which_one_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(window_names, "BLOCK", 4)
    names = WindowNames(tmp_path)
    names.append(windows(0, 10))
    names.append(windows(10, 11))
    assert [(first, len(block)) for first, block in names.blocks()] == [
        (0, 4),
        (4, 4),
        (8, 2),
        (10, 1),
    ]
    asked = [0, 3, 4, 9, 10]
    assert names.at(np.array(asked)).equals(windows(0, 11).take(asked))
    names.close()


@pytest.mark.parametrize("name", ["names.arrow", "id_hashes"])
def test_a_full_disk_is_told_with_the_file(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"{tmp_path}/{name}: ") as refused:
        if name == "id_hashes":
            IdHashes(tmp_path).append(np.arange(9, dtype=np.uint64))
        WindowNames(tmp_path).append(windows(0, 1000))
    assert "No space left" in str(refused.value) or refused.value.errno == errno.ENOSPC
