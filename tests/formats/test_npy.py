"""Token files without a header, and the bounds of documents beside."""

import numpy as np
import pytest

from tests.formats.made import drawn, exported, read_npy, write_selected


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, "<u2"), (65_537, "<u4"), (128_256, "<u4")]
)
def test_ids_lie_one_after_another_with_bounds_beside(tmp_path, vocab_size, dtype):
    rows = drawn(5, 8, vocab_size)
    rows[0][0] = vocab_size - 1
    write_selected(tmp_path, "a", rows)
    paths = exported(tmp_path, "npy", vocab_size, part_bytes=3 * 8 * np.dtype(dtype).itemsize)
    assert paths == [f"{tmp_path}/npy/a-00000.npy", f"{tmp_path}/npy/a-00001.npy"]
    number = 0
    for path in paths:
        ids, bounds = read_npy(path, dtype)
        for i, (start, stop, data_id, category, sequence) in enumerate(bounds):
            assert ids[start:stop].tolist() == rows[number]
            assert (data_id, category, sequence) == (f"a-{number:03d}", "a", str(i))
            number += 1
    assert number == 5 and not list((tmp_path / "npy").glob("*.mask"))
