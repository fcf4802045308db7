"""Loss gaps against the definition, on transformers' own eager logits in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from longattn.scoring.language_model import LanguageModel, require_room
from longattn.scoring.loss_gap import LossGapScorer
from tests.checkpoints import VOCABULARY, save

FAMILIES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 20},
    "gemma2": {"sliding_window": 8, "head_dim": 16, "final_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 8, "head_dim": 16},
    "cohere": {"logit_scale": 0.5},
    "qwen3": {"head_dim": 32},
}


def _ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length)


def _sharp(folder: Path, family: str) -> Path:
    """A checkpoint whose logits differ by nats, so that gaps are large beside rounding."""
    model = AutoModelForCausalLM.from_pretrained(save(folder, family, **FAMILIES[family]))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 if "lm_head" in name else 0.2)
    model.save_pretrained(folder)
    return folder


def _log_probabilities(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Of each id but the first, given those before it."""
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(ids[None]), use_cache=False).logits[0]
    return logits.double().log_softmax(1).numpy()[np.arange(len(ids) - 1), ids[1:]]


def _by_definition(folder: Path, ids: np.ndarray, short: int) -> tuple[float, float]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64
    )
    everything = np.concatenate([[0], _log_probabilities(model, ids)])
    gaps = everything.copy()
    for start in range(0, len(ids) - short, short):  # a chunk's second half is all that counts
        chunk = _log_probabilities(model, ids[start : start + 2 * short])[short - 1 :]
        gaps[start + short :][: len(chunk)] -= chunk
    gaps, p = gaps[short:], np.exp(everything[short:])
    return float(gaps.mean()), float((gaps * p).mean())


@pytest.mark.parametrize(
    ("family", "length"), [*((family, 48) for family in FAMILIES), ("llama", 43), ("gemma2", 25)]
)
def test_every_family_gives_the_gaps_of_the_definition(
    tmp_path: Path, family: str, length: int
) -> None:
    _sharp(tmp_path, family)
    ids = _ids(length)
    scorer = LossGapScorer.from_pretrained(str(tmp_path), tokens=48, short=8, dtype="float64")
    gaps = scorer.score([ids])
    mean, weighted = _by_definition(tmp_path, ids, 8)
    assert abs(mean) > 1e-2
    assert gaps.mean[0] == pytest.approx(mean, rel=1e-5)
    assert gaps.weighted[0] == pytest.approx(weighted, rel=1e-5, abs=1e-9)


def test_same_bits_in_any_batch_and_in_float32(tmp_path: Path) -> None:
    _sharp(tmp_path, "llama")
    scorer = LossGapScorer.from_pretrained(str(tmp_path), tokens=64, short=8)
    windows = [_ids(length, seed) for seed, length in enumerate([64, 64, 50, 16, 64])]
    together = scorer.score(windows)
    alone = [scorer.score([ids]) for ids in windows]
    np.testing.assert_array_equal(together.mean, [gaps.mean[0] for gaps in alone])
    np.testing.assert_array_equal(together.weighted, [gaps.weighted[0] for gaps in alone])
    assert np.isnan(together.mean).tolist() == [False, False, False, True, False]
    mean, _ = _by_definition(tmp_path, windows[2], 8)
    assert together.mean[2] == pytest.approx(mean, rel=1e-4)


def test_chunks_in_several_batches_and_logits_in_several_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "llama")
    scorer = LossGapScorer.from_pretrained(str(tmp_path), tokens=64, short=8, dtype="float64")
    expected = scorer.score([_ids(61)])
    monkeypatch.setattr("longattn.scoring.loss_gap._CHUNK_TOKENS", 32)
    monkeypatch.setattr("longattn.scoring.language_model.LOGIT_ROWS", 5)
    got = scorer.score([_ids(61)])
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(got.weighted, expected.weighted, rtol=1e-9)


def test_gaps_of_tokens_average_to_the_mean(tmp_path: Path) -> None:
    save(tmp_path, "llama")
    scorer = LossGapScorer.from_pretrained(str(tmp_path), tokens=64, short=8, dtype="float64")
    ids = _ids(64)
    gap, p = scorer.token_gaps(ids)
    gaps = scorer.score([ids])
    assert len(gap) == 48 and gaps.mean[0] == pytest.approx(gap.sum() / 56)
    assert gaps.weighted[0] == pytest.approx((gap * p).sum() / 56)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: LossGapScorer.from_pretrained(f, tokens=64, short=32), "short 32: allowed: 1 to 31"),
        (lambda f: LossGapScorer.from_pretrained(f + "/no", tokens=64, short=8), "no such folder"),
        (
            lambda f: LossGapScorer.from_pretrained(f, tokens=64, short=8, dtype="int8"),
            "dtype 'int8' on cpu: allowed: float32, float64",
        ),
        (
            lambda f: LossGapScorer.from_pretrained(f, tokens=64, short=8).score([np.array([400] * 9)]),
            "ids from 400 to 400: allowed: 0 to 319",
        ),
        (
            lambda f: LossGapScorer.from_pretrained(f, tokens=64, short=8).score([np.zeros((2, 9))]),
            "a window of float64",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(tmp_path: Path, call, message: str) -> None:
    save(tmp_path, "llama")
    with pytest.raises(ValueError, match=message) as error:
        call(str(tmp_path))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused_with_both_sizes(tmp_path: Path) -> None:
    model = LanguageModel.from_pretrained(str(save(tmp_path, "llama")), tokens=64)
    config = model.model.config
    require_room("m", config, 64, model.device, torch.float32)
    with pytest.raises(ValueError, match=r"GiB of weights and \d.*GiB for 10+ tokens, .*GiB free"):
        require_room("m", config, 10**12, model.device, torch.float32)


def test_attention_that_no_mask_is_given_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "gpt_oss", num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ValueError, match="attention has s_aux"):
        LanguageModel.from_pretrained(str(tmp_path), tokens=64)


def test_a_model_that_is_not_what_its_eager_attention_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longattn.scoring import linear_attention

    save(tmp_path, "gemma2", head_dim=16, attn_logit_softcapping=0.5)
    capped = linear_attention._capped
    monkeypatch.setattr(
        linear_attention, "_capped", lambda q, k, v, s, c, w: capped(q, k, v, s, 3 * c, w)
    )
    with pytest.raises(ValueError, match="hidden states differ by"):
        LanguageModel.from_pretrained(str(tmp_path), tokens=64)


def test_a_model_is_loaded_without_a_word_and_the_progress_bars_of_others_stay(tmp_path, capfd):
    folder = save(tmp_path, "llama", **FAMILIES["llama"])
    capfd.readouterr()
    LanguageModel.from_pretrained(str(folder), tokens=64, device="cpu")
    assert capfd.readouterr().err == ""
    AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err
