import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.windows.recurrence import far_recurrence


def by_definition(ids, k):
    rows = range(k, len(ids))
    far = [n for n in rows if any(ids[i] == ids[n] for i in range(n - k + 1))]
    if not rows:
        return 0.0, 0.0, 0.0
    weight = {n: round(math.log2(2 + ids[n]) * 2**16) for n in rows}  # to 16 binary places
    pairs = [
        any(ids[i : i + 2] == ids[n : n + 2] for i in range(n - k + 1))
        for n in range(k, len(ids) - 1)
    ]
    return (
        len(far) / len(rows),
        sum(weight[n] for n in far) / sum(weight.values()),
        sum(pairs) / max(1, len(pairs)),
    )


windows = st.integers(1, 30).flatmap(
    lambda vocabulary: st.lists(st.integers(0, vocabulary), min_size=1, max_size=80)
)


@given(windows, st.integers(1, 90))
def test_recurrence_is_that_of_its_definition(ids, k):
    got = far_recurrence(np.array(ids, np.int32), k)
    assert got == pytest.approx(by_definition(ids, k), rel=1e-12)
    assert all(0 <= share <= 1 for share in got)


@pytest.mark.parametrize("length", [255, 256, 257, 258])
def test_the_last_token_of_a_window_is_not_taken_for_the_first(length):
    """The numbers of a window's places have just one byte up to 256, and two from there on."""
    ids = [7, 8, 7, *range(100, 100 + length - 5), 8, 9]
    assert len(ids) == length
    for k in (100, length - 3, length - 2, length - 1, length):
        got = far_recurrence(np.array(ids), k)
        assert got == pytest.approx(by_definition(ids, k), rel=1e-12)
    assert far_recurrence(np.array(ids), 100).recurrence_pairs == 0


def test_rare_tokens_weigh_more():
    window = np.array([5, 9000, 1, 2, 3, 4, 5, 9000])
    rare, common = window.copy(), window.copy()
    rare[6], common[7] = 6, 6  # one of the two does not come back
    assert far_recurrence(rare, 6).recurrence == far_recurrence(common, 6).recurrence == 0.5
    assert far_recurrence(rare, 6).recurrence_rarity > 0.8
    assert far_recurrence(common, 6).recurrence_rarity < 0.5


def test_a_repeated_passage_recurs_wholly_and_new_tokens_never():
    passage = np.arange(100, dtype=np.int32)
    assert far_recurrence(np.tile(passage, 4), 100) == (1.0, 1.0, 1.0)
    assert far_recurrence(np.arange(400), 100) == (0.0, 0.0, 0.0)
    assert far_recurrence(passage, 100) == (0.0, 0.0, 0.0)


def test_pairs_alone_tell_a_text_from_its_tokens_in_another_order():
    rng = np.random.default_rng(0)
    words = np.arange(300).reshape(100, 3)
    text = np.concatenate([rng.permutation(words).ravel() for _ in range(4)])
    ordered, shuffled = far_recurrence(text, 300), far_recurrence(rng.permutation(text), 300)
    assert abs(ordered.recurrence - shuffled.recurrence) < 0.2
    assert ordered.recurrence_pairs > 0.5 and shuffled.recurrence_pairs < 0.1


def test_a_distance_below_one_is_refused():
    with pytest.raises(ValueError, match="min_distance 0"):
        far_recurrence(np.arange(9), 0)
