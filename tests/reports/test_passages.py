import numpy as np
import pytest

from longattn.reports.passages import PEERS, standing_out, usual_times


def decaying(n=24, first=6):
    """Attention that falls with the distance alone, far from `first` passages on; and uniform's."""
    q, k = np.indices((n, n))
    far = q - k >= first
    uniform_qk = np.where(far, 1 / (q + 1), 0.0)
    return np.where(far, uniform_qk * 3 * 0.9 ** (q - k), 0.0), uniform_qk


def test_what_only_follows_the_distance_does_not_stand_out():
    far_qk, uniform_qk = decaying()
    assert (far_qk[6:, 0] > uniform_qk[6:, 0]).any(), (
        "though it is above uniform near the threshold"
    )
    assert standing_out(far_qk, uniform_qk) == []


def test_a_pair_that_reads_more_than_others_as_far_apart_is_found_and_not_its_neighbours():
    far_qk, uniform_qk = decaying()
    far_qk[20, 4] = 5 * uniform_qk[20, 4]
    far_qk[21, 4] = 4 * uniform_qk[21, 4]
    far_qk[12, 2] = 1.4 * uniform_qk[12, 2]  # below what is asked for
    (place,) = standing_out(far_qk, uniform_qk)
    assert (place.q, place.k, place.times) == (20, 4, pytest.approx(5))
    assert place.usual == pytest.approx(3 * 0.9**16, rel=0.2)


def test_a_passage_that_all_read_fills_no_list_and_the_most_excess_comes_first():
    far_qk, uniform_qk = decaying()
    for q, times in ((10, 4.0), (13, 6.0), (16, 5.0)):
        far_qk[q, 1] = times * uniform_qk[q, 1]
    far_qk[22, 9] = 9 * uniform_qk[22, 9]
    found = [(p.q, p.k) for p in standing_out(far_qk, uniform_qk)]
    assert found.count((22, 9)) == 1 and sum(k == 1 for _, k in found) == 2
    excess = [
        far_qk[q, k]
        - usual_times(far_qk / np.where(uniform_qk, uniform_qk, np.nan))[q, k] * uniform_qk[q, k]
        for q, k in found
    ]
    assert excess == sorted(excess, reverse=True)


def test_the_usual_is_the_median_of_enough_pairs_about_as_far_apart():
    n = 30
    times_qk = np.random.default_rng(0).uniform(0, 2, (n, n))
    q, k = np.indices((n, n))
    times_qk[q - k < 5] = np.nan
    usual_qk = usual_times(times_qk)
    assert np.isnan(usual_qk[q - k < 5]).all()
    for d in (5, 12):  # n - d pairs are enough
        expected = np.median([times_qk[i, i - d] for i in range(d, n)])
        assert n - d >= PEERS and usual_qk[d + 3, 3] == expected
    # The longest distance has one pair: those of the four below are taken, too, 15 in all.
    last = [times_qk[i, i - d] for d in range(n - 5, n) for i in range(d, n)]
    assert usual_qk[n - 1, 0] == np.median(last)
