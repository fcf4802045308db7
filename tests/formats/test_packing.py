"""Best-fit decreasing, against the definition written down plainly."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.formats.packing import best_fit


def plain(lengths, capacity):
    room, bins = [], {}
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [(room[b], b) for b in range(len(room)) if room[b] >= lengths[i]]
        if not fitting:
            room.append(capacity)
            fitting = [(capacity, len(room) - 1)]
        _, bins[i] = min(fitting)
        room[bins[i]] -= lengths[i]
    return [bins[i] for i in range(len(lengths))]


@given(st.lists(st.integers(1, 20), max_size=60))
def test_each_goes_where_the_definition_puts_it(lengths):
    got = best_fit(lengths, 20)
    assert got.tolist() == plain(lengths, 20)
    assert all(sum(np.array(lengths)[got == b]) <= 20 for b in set(got.tolist()))


def test_windows_are_full_where_documents_are_short():
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 20_000).astype(int).clip(1, 32768)
    bins = best_fit(lengths, 32768)
    assert lengths.sum() / (32768 * (bins.max() + 1)) > 0.997


@pytest.mark.parametrize("lengths", [[0, 3], [21]])
def test_what_no_bin_holds_is_refused(lengths):
    with pytest.raises(ValueError, match="1 to 20 fit"):
        best_fit(lengths, 20)
