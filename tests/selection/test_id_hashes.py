import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.selection import id_hashes
from longattn.selection.id_hashes import IdHashes

run = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 9).map(lambda n: n << 60), max_size=20)


@given(st.lists(run, max_size=5), st.sampled_from([1, 3, 1000]))
def test_hashes_that_come_twice_are_found_whatever_the_runs(tmp_path_factory, runs, counted):
    held = id_hashes.COUNTED
    hashes = IdHashes(tmp_path_factory.mktemp("hashes"))
    try:
        id_hashes.COUNTED = counted
        for values in runs:
            hashes.append(np.array(values, np.uint64))
        found = [int(each) for some in hashes.repeated() for each in some]
    finally:
        id_hashes.COUNTED = held
        hashes.close()
    values, times = np.unique(
        np.array([each for some in runs for each in some], np.uint64), return_counts=True
    )
    assert found == values[times > 1].tolist()


def test_a_file_that_was_cut_short_is_told_and_goes(tmp_path):
    hashes = IdHashes(tmp_path)
    hashes.append(np.arange(9, dtype=np.uint64))
    (file,) = tmp_path.iterdir()
    os.truncate(file, 64)
    with pytest.raises(OSError, match="the temporary file of id hashes has been cut short"):
        list(hashes.repeated())
    hashes.close()
    assert list(tmp_path.iterdir()) == []
