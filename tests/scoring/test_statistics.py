"""The blocked CPU backend against the definition in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longattn.scoring import statistics


def _blocked(q: Tensor, k: Tensor, min_distance: int, scaling: float) -> tuple[Tensor, Tensor]:
    sums = statistics.attention_sums(q[:, min_distance:], k, [min_distance], scaling)
    return statistics.statistics_from_sums(*(s[:, 0] for s in sums), q.shape[1])


def _window(length: int, heads: int, kv_heads: int, dim: int, size: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(heads, length, dim, generator=generator, dtype=torch.float64) * size
    return q, torch.randn(kv_heads, length, dim, generator=generator, dtype=torch.float64)


def test_definition_on_a_window_worked_by_hand() -> None:
    """Uniform attention over 4 tokens, k = 2: far entries are 1/3 in row 2, 1/4 twice in row 3."""
    ds, variance = statistics.dense_statistics(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), 2, 1.0)
    far = [1 / 3, 1 / 4, 1 / 4]
    mean = sum(far) / 16
    expected = (sum((x - mean) ** 2 for x in far) + 13 * mean**2) / 15
    assert ds.item() == pytest.approx(sum(far) / 4, rel=1e-14)
    assert variance.item() == pytest.approx(expected, rel=1e-14)


def test_uniform_attention_gives_the_null_value() -> None:
    zeros = torch.zeros(1, 8192, 1)
    ds, _ = _blocked(zeros, zeros, 2048, 1.0)
    assert ds.item() == pytest.approx(0.75 - 0.25 * math.log(4), abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(2, 600),
    st.data(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 8, 17]),
    st.sampled_from([0.0, 1.0, 30.0, 1000.0]),
    st.integers(0, 2**30),
)
def test_blocked_equals_dense(length, data, group, kv_heads, dim, size, seed) -> None:
    """Any length, distance and grouping; size 1000 has logits of thousands and a running maximum."""
    min_distance = data.draw(st.integers(1, length))
    q, k = _window(length, group * kv_heads, kv_heads, dim, size, seed)
    ours = _blocked(q, k, min_distance, dim**-0.5)
    truth = statistics.dense_statistics(q, k, min_distance, dim**-0.5)
    for got, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-30)


@pytest.mark.parametrize(("length", "min_distance"), [(2600, 650), (2300, 100), (1300, 600)])
@pytest.mark.parametrize("size", [1.0, 20.0])
def test_float32_over_several_tiles(length: int, min_distance: int, size: float) -> None:
    q, k = _window(length, 2, 1, 32, size, 7)
    ours = _blocked(q.float(), k.float(), min_distance, 32**-0.5)
    truth = statistics.dense_statistics(q.float(), k.float(), min_distance, 32**-0.5)
    for got, expected in zip(ours, truth, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0.0)


def test_running_maximum_agrees_with_the_bounded_form(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = (t.float() for t in _window(2300, 2, 1, 32, 1.0, 3))
    bounded = statistics.attention_sums(q[:, 750:], k, [750], 0.2)
    monkeypatch.setattr(statistics, "_SAFE_LOG2", -1.0)
    for got, expected in zip(
        statistics.attention_sums(q[:, 750:], k, [750], 0.2), bounded, strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("nats", [20.0, 200.0, 5000.0])
def test_far_mass_far_below_the_near_mass(nats: float) -> None:
    """Every row scores 0 on the first half's tokens and `nats` on its own half's."""
    length = 2048
    half = length // 2
    k = torch.zeros(1, length, 1)
    k[:, half:] = nats
    ds, variance = _blocked(torch.ones(1, length, 1), k, half, 1.0)
    truth, variance_truth = statistics.dense_statistics(torch.ones(1, length, 1), k, half, 1.0)
    torch.testing.assert_close(ds, truth, rtol=1e-5, atol=1e-40)
    torch.testing.assert_close(variance, variance_truth, rtol=1e-5, atol=1e-40)
    assert (variance >= 0).all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_scores_near_the_float32_range(sign: float) -> None:
    k = torch.zeros(1, 1500, 1)
    k[:, ::7] = sign * 1e30
    ds, variance = _blocked(torch.full((1, 1500, 1), 1e6), k, 300, 1.0)
    assert ds.isfinite().all()
    assert variance.isfinite().all()
    assert 0 < ds.item() < 1


def test_distance_of_the_whole_window_has_no_far_pair() -> None:
    q, k = _window(300, 2, 1, 8, 1.0, 0)
    for got in _blocked(q, k, 300, 1.0):
        assert got.tolist() == [0.0, 0.0]


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    q, k = (t.float() for t in _window(2000, 3, 3, 64, 1.0, 5))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(torch.stack(statistics.attention_sums(q[:, 600:], k, [600], 0.125)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
