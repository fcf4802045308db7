"""Choosing a head: found where it is, refused where halves disagree or nothing is gained."""

import re
from collections import Counter

import numpy as np
import pytest

from longattn.selection.auc import auc
from longattn.selection.heads import (
    Half,
    HeadScores,
    choose_head,
    halves_of,
    head_aucs,
    mean_of_heads,
)

HEADS = 12


def _drawn(rng: np.random.Generator, windows: int, shift: np.ndarray, first: int) -> HeadScores:
    """Windows whose DS is higher by `shift` (heads,) deviations, and other noise."""
    ds = rng.normal(size=(windows, HEADS)) + shift
    variance = rng.normal(size=(windows, HEADS))
    return HeadScores(ds, variance, first + np.arange(windows) // 2)


def _half(seed: int, shift: np.ndarray, windows: int = 40) -> Half:
    rng = np.random.default_rng(seed)
    native = _drawn(rng, windows, shift, 0)
    foils = {kind: _drawn(rng, windows, np.zeros(HEADS), 1000) for kind in ("splice 2", "splice 4")}
    return Half(native, foils)


def _good(head: int, size: float = 2.0) -> np.ndarray:
    return size * (np.arange(HEADS) == head)


def test_the_head_that_tells_is_found_and_judged_on_the_other_half() -> None:
    first, second = _half(1, _good(9)), _half(2, _good(9))
    choice = choose_head(first, second, alpha=0.5)
    assert choice.head == 9 and choice.why == "both halves of the documents chose head 9"
    one, two = choice.judgements
    for judgement, other in ((one, second), (two, first)):
        for kind, (value, low, high) in judgement.auc.items():
            assert value == pytest.approx(head_aucs(other, 0.5)[kind][9])
            assert 0.7 < low < value < high <= 1
            assert judgement.mean_auc[kind][0] < value
    assert choice == choose_head(first, second, alpha=0.5)


def test_auc_of_a_head_is_that_of_all_pairs() -> None:
    half = _half(3, _good(4), windows=9)
    native, foil = half.native, half.foils["splice 2"]
    for head in (0, 4):
        ds_mean, ds_std = native.ds[:, head].mean(), native.ds[:, head].std()
        v_mean, v_std = native.variance[:, head].mean(), native.variance[:, head].std()
        lds, other = (
            (x.ds[:, head] - ds_mean) / ds_std - 0.5 * (x.variance[:, head] - v_mean) / v_std
            for x in (native, foil)
        )
        pairs = np.mean([(a > b) + (a == b) / 2 for a in lds for b in other])
        assert head_aucs(half, 0.5)["splice 2"][head] == pytest.approx(pairs)
        groups = native.document, foil.document
        rng = np.random.default_rng(0)
        assert auc(lds, other, *groups, rng, together=False)[0] == pytest.approx(pairs)


def test_halves_that_disagree_take_all_heads() -> None:
    choice = choose_head(_half(1, _good(9)), _half(2, _good(3)), alpha=0.5)
    assert choice.head is None
    assert (
        choice.why
        == "one half of the documents chose head 9, the other head 3: all heads are taken"
    )


def test_a_head_that_gains_nothing_over_the_mean_is_not_taken() -> None:
    """All heads tell alike: their mean has less noise than any one, whichever both halves name."""
    chosen = {
        choose_head(
            _half(seed, np.full(HEADS, 1.0)), _half(seed + 500, np.full(HEADS, 1.0)), alpha=0.0
        ).head
        for seed in range(30)
    }
    assert chosen == {None}


def test_why_a_head_that_both_halves_name_is_not_taken_is_told() -> None:
    """Of one head the mean is the same."""
    same = _half(1, _good(9))
    one = HeadScores(same.native.ds[:, 9:10], same.native.variance[:, 9:10], same.native.document)
    only = Half(
        one,
        {
            k: HeadScores(f.ds[:, 9:10], f.variance[:, 9:10], f.document)
            for k, f in same.foils.items()
        },
    )
    choice = choose_head(only, only, alpha=0.5)
    assert choice.head is None and choice.judgements[0].gain == 0
    assert choice.why == (
        "both halves chose head 0, which is no better on unseen documents than the mean over heads: "
        "all heads are taken"
    )


def test_no_head_is_chosen_from_noise() -> None:
    """Of two heads both halves name the same one half of the time."""
    chosen, agreed, told = set(), 0, Counter()
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(size=(4, 16, 2))
        halves = [
            Half(
                HeadScores(noise[i], np.zeros((16, 2)), np.arange(16)),
                {"splice 4": HeadScores(noise[i + 1], np.zeros((16, 2)), 1000 + np.arange(16))},
            )
            for i in (0, 2)
        ]
        choice = choose_head(*halves, alpha=0.5, names=["layer 2, head 0", "layer 7, head 1"])
        told[re.sub(r"layer \d, head \d|0\.\d\d", "*", choice.why)] += 1
        chosen.add(choice.head)
        agreed += choice.judgements[0].head == choice.judgements[1].head
    assert chosen == {None} and agreed > 15
    assert sum(told.values()) == 60 and told.keys() == {
        "one half of the documents chose *, the other *: all heads are taken",
        "both halves chose *, which is no better on unseen documents than the mean over heads: all "
        "heads are taken",
        "both halves chose *, which may tell unseen documents by chance (AUC from *): all heads are "
        "taken",
    }


def test_ties_count_half_and_a_constant_head_is_chance() -> None:
    flat = HeadScores(np.ones((6, 2)), np.zeros((6, 2)), np.arange(6))
    assert head_aucs(Half(flat, {"f": flat}), 0.5)["f"].tolist() == [0.5, 0.5]


def test_documents_are_halved_whatever_their_order() -> None:
    first, second = halves_of(range(101), seed=3)
    assert (len(first), len(second)) == (51, 50) and first | second == set(range(101))
    assert halves_of([*range(100, -1, -1), 5, 5], seed=3) == (first, second)
    assert halves_of(range(101), seed=4) != (first, second)


def test_mean_of_heads() -> None:
    scores = np.arange(6.0).reshape(2, 3)
    assert mean_of_heads(scores, None).tolist() == [1, 4]
    assert mean_of_heads(scores, [2, 0]).tolist() == [1, 4]
    assert mean_of_heads(scores, [2]).tolist() == [2, 5]
    for heads in ([], [3], [-1]):
        with pytest.raises(ValueError, match=r"heads .*: allowed: 0 to 2, at least one"):
            mean_of_heads(scores, heads)


def test_halves_that_do_not_fit_are_refused() -> None:
    half = _half(1, _good(9))
    with pytest.raises(ValueError, match="the same ones in both halves"):
        choose_head(half, Half(half.native, {}), alpha=0.5)
    with pytest.raises(ValueError, match="one number of heads"):
        choose_head(half, Half(_cut(half.native), half.foils), alpha=0.5)
    with pytest.raises(ValueError, match=r"ds \(2, 3\), variance \(2, 3\), document \(3,\)"):
        HeadScores(np.ones((2, 3)), np.ones((2, 3)), np.arange(3))


def _cut(scores: HeadScores) -> HeadScores:
    return HeadScores(scores.ds[:, :3], scores.variance[:, :3], scores.document)
