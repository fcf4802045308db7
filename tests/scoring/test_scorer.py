"""The scorer as a user meets it: golden scores, batches, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longattn.scoring import tables
from longattn.scoring.scorer import AttentionScorer, _offset
from longattn.scoring.statistics import dense_statistics
from tests import checkpoints

GOLDEN = sorted((Path(__file__).parents[1] / "golden").iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoints.save(tmp_path_factory.mktemp("llama"), "llama"))


@pytest.fixture(scope="module")
def scorer(folder: str) -> AttentionScorer:
    return AttentionScorer.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.name)
def test_golden_scores(case: Path, dtype: str) -> None:
    """The golden values carry transformers' float32 softmax, good to 1e-7, in both dtypes."""
    expected = np.load(case / "expected.npz")
    scorer = AttentionScorer.from_pretrained(str(case / "checkpoint"), device="cpu", dtype=dtype)
    scores = scorer.score(expected["input_ids"], int(expected["min_distance"]))
    tolerance = 1e-5 if dtype == "float32" else 5e-7
    np.testing.assert_allclose(scores.ds[0], expected["ds"], rtol=tolerance)
    np.testing.assert_allclose(scores.variance[0], expected["var"], rtol=tolerance)


def test_float64_is_the_definition_to_the_last_digits(folder: str) -> None:
    scorer = AttentionScorer.from_pretrained(folder, device="cpu", dtype=torch.float64)
    ids = torch.randint(scorer.vocab_size, (700,))
    q, k = scorer.tables.rotated(ids, torch.arange(700))
    ds, variance = dense_statistics(q, k, 175, scorer.tables.scaling)
    scores = scorer.score(ids)
    torch.testing.assert_close(scores.ds[0], ds, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(scores.variance[0], variance, rtol=1e-12, atol=0.0)


def test_bits_do_not_depend_on_batch_mates_order_or_threads(scorer: AttentionScorer) -> None:
    ids = np.random.default_rng(0).integers(0, scorer.vocab_size, (4, 1037), dtype=np.int32)
    together = scorer.score(ids)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        backwards = scorer.score(ids[::-1].copy())
    finally:
        torch.set_num_threads(before)
    for row in range(len(ids)):
        alone = scorer.score(ids[row])
        assert alone.ds.shape == (1, scorer.heads)
        for other in (alone.ds[0], backwards.ds[len(ids) - 1 - row]):
            assert torch.equal(other, together.ds[row])
        for other in (alone.variance[0], backwards.variance[len(ids) - 1 - row]):
            assert torch.equal(other, together.variance[row])


def test_takes_what_holds_ints(scorer: AttentionScorer) -> None:
    ids = list(range(64))
    expected = scorer.score(ids).ds
    assert expected.dtype == torch.float64
    for other in (np.array(ids, np.uint16), torch.tensor(ids, dtype=torch.int32), [ids]):
        assert torch.equal(scorer.score(other).ds, expected)
    assert scorer.score(np.empty((0, 64), np.int32)).ds.shape == (0, scorer.heads)


def test_distance_is_a_quarter_of_the_window_by_default(scorer: AttentionScorer) -> None:
    ids = np.arange(101)
    assert torch.equal(scorer.score(ids).ds, scorer.score(ids, 25).ds)
    assert not torch.equal(scorer.score(ids).ds, scorer.score(ids, 26).ds)


def test_several_distances_are_each_as_if_alone(scorer: AttentionScorer) -> None:
    ids = np.random.default_rng(1).integers(0, scorer.vocab_size, (2, 1500))
    distances = [375, 40, 1500, 1200]
    together = scorer.score(ids, distances)
    assert together.ds.shape == together.variance.shape == (2, scorer.heads, 4)
    for column, k in enumerate(distances):
        alone = scorer.score(ids, k)
        torch.testing.assert_close(together.ds[..., column], alone.ds, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(
            together.variance[..., column], alone.variance, rtol=1e-6, atol=0.0
        )


def test_strided_rows_of_all_offsets_make_the_whole(scorer: AttentionScorer) -> None:
    """So the estimate of DS is unbiased over a uniform offset."""
    ids, k, stride = torch.arange(700)[None] % scorer.vocab_size, 100, 7
    whole = scorer._sums(ids.int(), None, [k], [0], 1)
    parts = [scorer._sums(ids.int(), None, [k], [offset], stride) for offset in range(stride)]
    for exact, sampled in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(sum(sampled), exact, rtol=1e-6, atol=0.0)


def test_the_rows_that_a_stride_takes_differ_from_window_to_window() -> None:
    windows = torch.arange(64 * 32).view(64, 32)
    offsets = [_offset(ids_l, 4) for ids_l in windows]
    assert set(offsets) == {0, 1, 2, 3}
    assert offsets == [_offset(ids_l.int(), 4) for ids_l in windows.clone()]
    assert {_offset(ids_l, 1) for ids_l in windows} == {0}


def test_a_stride_estimates_and_depends_on_the_window_alone(scorer: AttentionScorer) -> None:
    ids = np.random.default_rng(2).integers(0, scorer.vocab_size, (3, 2048))
    exact, sampled = scorer.score(ids), scorer.score(ids, query_stride=4)
    assert not torch.equal(sampled.ds, exact.ds)
    torch.testing.assert_close(sampled.ds, exact.ds, rtol=0.02, atol=0.0)
    for row in range(3):
        assert torch.equal(scorer.score(ids[row], query_stride=4).ds[0], sampled.ds[row])
    with pytest.raises(ValueError, match="query_stride 1537: allowed: 1 to 1536"):
        scorer.score(ids, query_stride=1537)


@pytest.mark.parametrize(
    ("ids", "min_distance"),
    [
        ([0, 1, checkpoints.VOCABULARY], None),
        ([0, -1, 2], None),
        ([0.0, 1.0], None),
        ([3], None),
        ([[[1, 2]]], None),
        ([1, 2, 3], 0),
        ([1, 2, 3], 4),
        ([1, 2, 3], []),
        ([1, 2, 3], [1, 4]),
        ([1, 2, 3], 2.0),
        ([1, 2, 3], "2"),
    ],
)
def test_bad_input(scorer: AttentionScorer, ids: list, min_distance: int | None) -> None:
    with pytest.raises(ValueError, match="allowed"):
        scorer.score(ids, min_distance)


@pytest.mark.parametrize(
    "options",
    [
        {"device": "meta"},
        {"device": "gpu"},
        {"dtype": "bfloat16"},
        {"dtype": "int8"},
        {"rope_theta": 0.0},
    ],
    ids=str,
)
def test_bad_options(folder: str, options: dict) -> None:
    with pytest.raises(ValueError, match="allowed"):
        AttentionScorer.from_pretrained(folder, **{"device": "cpu", **options})


@pytest.mark.parametrize("family", ["ministral3", "doge"])
def test_attention_of_another_definition_is_refused(family: str, tmp_path: Path) -> None:
    """ministral3 scales queries by position, Doge masks by value: neither is told by the config."""
    checkpoints.save(tmp_path, family)
    with pytest.raises(ValueError, match="differs from transformers' own attention"):
        AttentionScorer.from_pretrained(str(tmp_path), device="cpu")


def test_comparison_catches_a_wrong_rotation(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rotated = tables.Tables.rotated
    monkeypatch.setattr(
        tables.Tables, "rotated", lambda self, ids, positions: rotated(self, ids, positions + ids)
    )
    with pytest.raises(ValueError, match="differs from transformers' own attention"):
        AttentionScorer.from_pretrained(folder, device="cpu")


def test_distances_may_be_numpy_integers(scorer: AttentionScorer) -> None:
    ids = list(range(100))
    for k, plain in ((np.int64(8), 8), (np.array([8, 9]), [8, 9])):
        assert torch.equal(scorer.score(ids, k).ds, scorer.score(ids, plain).ds)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device 'cuda': torch sees no CUDA device here"):
        AttentionScorer.from_pretrained("builtin", device="cuda")
    with pytest.raises(ValueError, match="device 'tpu': allowed: cpu, cuda"):
        AttentionScorer.from_pretrained("builtin", device="tpu")
