"""Centred keys, the choice of a dtype, and what loading compares, on models with huge key biases."""

import json
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from longattn.scoring import precision, tables
from longattn.scoring.checkpoint import Checkpoint, open_checkpoint
from longattn.scoring.scorer import AttentionScorer
from longattn.scoring.statistics import dense_statistics
from tests import checkpoints

CPU = torch.device("cpu")
WINDOWS, LENGTH, K = 24, 160, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tmp_path_factory.mktemp("qwen2"), "qwen2", key_bias=300.0)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "MEASURED_TOKENS", 512)


def uncentred(monkeypatch: pytest.MonkeyPatch) -> None:
    centre = tables.centre
    for module in (tables, precision):
        monkeypatch.setattr(module, "centre", lambda *of: torch.zeros_like(centre(*of)))


@pytest.mark.parametrize("family", ["qwen2", "glm", "cohere"])
def test_keys_are_less_by_one_vector_a_head_and_nearly_without_mean(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the family's rotation; so softmax, and every score, is as it was."""
    checkpoints.save(tmp_path, family, key_bias=0.0 if family == "cohere" else 300.0)
    opened = open_checkpoint(str(tmp_path))
    ids_l, positions_l = torch.randint(checkpoints.VOCABULARY, (LENGTH,)), torch.arange(LENGTH)
    built = tables.build_tables(opened, CPU, torch.float64)
    q, k = built.rotated(ids_l, positions_l)
    truth = dense_statistics(q, k, K, built.scaling)
    uncentred(monkeypatch)
    plain = tables.build_tables(opened, CPU, torch.float64)
    q_plain, k_plain = plain.rotated(ids_l, positions_l)
    taken_gld = k_plain - k
    torch.testing.assert_close(taken_gld, taken_gld[:, :1].expand_as(taken_gld))
    torch.testing.assert_close(q, q_plain, rtol=0.0, atol=0.0)
    for got, expected in zip(truth, dense_statistics(q, k_plain, K, built.scaling), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0.0)
    if family != "cohere":
        assert k.mean(1).abs().max() < 0.02 * k_plain.mean(1).abs().max()


def test_the_shift_depends_on_positions_alone(checkpoint: Checkpoint) -> None:
    built = tables.build_tables(checkpoint, CPU, torch.float32)
    cos, sin = built.cos_sin(torch.arange(LENGTH))
    centre = built.centre_gd[None, :, None].expand(1, -1, LENGTH, -1)
    turned = built.rotate(centre, centre, cos[None], sin[None])[1][0]
    torch.testing.assert_close(built.shift_gd(cos, sin), turned.mean(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_key_biases_on_a_cpu(folder: Path, dtype: str) -> None:
    ids_nl = checkpoints.windows_of_few_tokens(WINDOWS, LENGTH)
    scores = AttentionScorer.from_pretrained(str(folder), device="cpu", dtype=dtype).score(
        ids_nl, K
    )
    got = scores.ds.mean(1), scores.variance.mean(1)
    truth = checkpoints.true_scores(folder, ids_nl, K)
    for ours, expected in zip(got, truth, strict=True):
        tolerance = 1e-5 if dtype == "float32" else 1e-6  # the truth's softmax is in float32
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=0.0)
    lds = [(d - d.mean()) / d.std() - 0.5 * (v - v.mean()) / v.std() for d, v in (got, truth)]
    assert torch.equal(*(x.argsort() for x in lds))


def test_centring_is_what_makes_float16_accurate(
    checkpoint: Checkpoint, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = precision.choose_dtype(checkpoint)
    assert chosen.dtype == "float16" and chosen.within(0.5) and chosen.tokens == 512
    uncentred(monkeypatch)
    monkeypatch.setattr(precision, "GPU_DTYPES", ("float16",))
    monkeypatch.setattr(precision, "DS_BOUND", 1.0)
    assert precision.choose_dtype(checkpoint).ds > 5 * chosen.ds


def test_the_next_dtype_is_tried_and_a_model_that_reaches_no_bound_refused(
    checkpoint: Checkpoint, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    float16 = precision.choose_dtype(checkpoint)
    monkeypatch.setattr(precision, "DS_BOUND", float16.ds)
    assert precision.choose_dtype(checkpoint).dtype == "float32"
    monkeypatch.setattr(precision, "DS_BOUND", 1e-12)
    with pytest.raises(
        ValueError, match=r"refused on a GPU: .*float16: DS off by .*bfloat16: .*float32: "
    ) as error:
        precision.choose_dtype(checkpoint)
    assert "\n" not in str(error.value)


def test_a_scorer_is_measured_against_plain_float32(folder: Path, short: None) -> None:
    """On this device, with every row; one whose tables are off is told by how much."""
    opened = open_checkpoint(str(folder))
    scorer = AttentionScorer.from_pretrained(str(folder), device="cpu")
    errors = precision.measure(scorer, opened)
    assert errors.dtype == "float32" and errors.ds < 1e-5 and errors.variance < 1e-5
    scorer.tables.q_vhd.mul_(1.1)
    errors = precision.measure(scorer, opened)
    assert not errors.within()
    with pytest.raises(ValueError, match=f"DS off by {errors.ds:.1e}".replace("+", r"\+")):
        precision.require_accurate(errors, opened)


def test_loading_compares_frequent_tokens(folder: Path) -> None:
    opened = open_checkpoint(str(folder))
    scorer = AttentionScorer.from_pretrained(str(folder), device="cpu")
    generator = torch.Generator().manual_seed(0)
    random = set(torch.randint(scorer.vocab_size, (128,), generator=generator).tolist())
    real = precision.real_windows(opened, scorer.vocab_size, 8192)[0, :128].tolist()
    scorer.tables.k_vgd[[i for i in real if i not in random]] += 0.5
    with pytest.raises(ValueError, match="differs from transformers' own attention"):
        precision.compare_with_transformers(scorer, opened)


def test_real_windows_are_text_of_the_samples(folder: Path) -> None:
    opened = open_checkpoint(str(folder))  # has no tokenizer: drawn, few ids frequent
    drawn = precision.real_windows(opened, 320, 1000)
    assert drawn.shape == (3, 1000) and 0 <= drawn.min() <= drawn.max() < 320
    assert drawn.flatten().bincount(minlength=320).argmax() == 0
    builtin = open_checkpoint("builtin")
    ids_nl = precision.real_windows(builtin, 8192, 2000)
    tokenizer = Tokenizer.from_file(str(builtin.tokenizer_file))
    texts = [tokenizer.decode(ids_l.tolist()) for ids_l in ids_nl]
    assert ["#include" in text for text in texts] == [False, True, False]
    assert "import" in texts[2]


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rows = checkpoints.VOCABULARY
    tokenizer = Tokenizer(models.BPE({f"t{i}": i for i in range(rows)}, []))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    open_checkpoint(str(tmp_path))
    tokenizer.add_tokens(["one more"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=rf"'one more' has id {rows}; allowed: below {rows}"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match="not a tokenizer of the tokenizers library"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("head", [0, 1])
def test_a_difference_that_is_no_number_is_refused(head: int) -> None:
    truth = (torch.tensor([0.2, 0.3]), torch.tensor([1e-6, 2e-6]))
    precision._require_close(truth, truth, (1e-6, 1e-3), "it")
    for which in (0, 1):
        ours = [values.clone() for values in truth]
        ours[which][head] = math.nan
        with pytest.raises(ValueError, match=r"it is refused: its .* by nan"):
            precision._require_close(tuple(ours), truth, (1e-6, 1e-3), "it")


@pytest.mark.parametrize(
    ("dtype", "head", "off", "refused"),
    [
        ("float16", 0.007, 0.06, False),  # what Qwen2.5-Coder-1.5B's heads lose to rounding
        ("float16", 0.007, 0.3, True),
        ("float16", 0.05, 0.06, True),
        ("float32", 0.007, 0.002, True),
    ],
)
def test_a_head_that_hardly_attends_is_not_held_to_the_digits_that_a_dtype_has_not(
    dtype, head, off, refused
):
    truth = (torch.tensor([1.0, 0.6]), torch.tensor([2.0, 2.0 * head]))
    ours = (truth[0], truth[1] * torch.tensor([1.0, 1 + off]))
    allowed = precision._DTYPE_TOLERANCE[dtype]
    with pytest.raises(ValueError, match="its variance differs") if refused else nullcontext():
        precision._require_close(ours, truth, allowed, "it")
