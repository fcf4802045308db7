"""DS and variance of deeper layers against transformers' own eager probabilities, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from longattn.scoring.layers import LayerScorer
from longattn.scoring.statistics import probability_statistics
from tests.checkpoints import VOCABULARY, save

FAMILIES = {
    "llama": ({"num_hidden_layers": 4}, (0, 1, 2, 3)),
    "qwen2": ({"num_hidden_layers": 3}, (0, 1, 2)),
    "gemma2": ({"num_hidden_layers": 4, "sliding_window": 8, "head_dim": 16}, (1, 3)),
    "gemma3_text": ({"num_hidden_layers": 6, "sliding_window": 8, "head_dim": 16}, (5,)),
    "qwen3": ({"num_hidden_layers": 2, "head_dim": 32}, (0, 1)),
}
TOKENS, DISTANCE = 48, 12


def _saved(folder: Path, family: str) -> str:
    """Every layer's weights as large as the first's, so that no attention is uniform."""
    model = AutoModelForCausalLM.from_pretrained(save(folder, family, **FAMILIES[family][0]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2 if parameter.ndim > 1 else 0.5)
    model.save_pretrained(folder)
    return str(folder)


def _ids(length: int = TOKENS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, VOCABULARY, length)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_that_of_transformers(tmp_path: Path, family: str) -> None:
    folder, layers, ids = _saved(tmp_path, family), FAMILIES[family][1], _ids()
    scorer = LayerScorer.from_pretrained(folder, tokens=TOKENS, dtype="float64")
    scores = scorer.score([ids], DISTANCE)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64
    )
    with torch.inference_mode():
        p = model(input_ids=torch.from_numpy(ids[None]), output_attentions=True).attentions
    assert scores.layers == layers
    for i, layer in enumerate(layers):
        ds, variance = probability_statistics(p[layer][0], DISTANCE)
        np.testing.assert_allclose(scores.ds[0, i], ds, rtol=1e-5)
        np.testing.assert_allclose(scores.variance[0, i], variance, rtol=1e-5)
    assert scores.ds.std() > 1e-3  # of heads and layers that differ


def test_some_layers_are_those_of_all_and_a_mean_is_a_mean(tmp_path: Path) -> None:
    folder = _saved(tmp_path, "llama")
    windows = [_ids(seed=seed) for seed in range(3)]
    everything = LayerScorer.from_pretrained(folder, tokens=TOKENS).score(windows, DISTANCE)
    some = LayerScorer.from_pretrained(folder, tokens=TOKENS, layers=[2, 0]).score(
        windows, DISTANCE
    )
    assert some.layers == (0, 2)
    np.testing.assert_array_equal(some.ds, everything.ds[:, [0, 2]])
    np.testing.assert_array_equal(some.variance, everything.variance[:, [0, 2]])
    ds, variance = some.means()
    ds_layers, variance_layers = some.layer_means()
    np.testing.assert_allclose(ds, some.ds.reshape(3, -1).mean(1))
    np.testing.assert_allclose(variance, variance_layers.mean(1))
    assert ds_layers.shape == (3, 2)


def test_nothing_after_the_last_layer_is_run(tmp_path: Path) -> None:
    scorer = LayerScorer.from_pretrained(_saved(tmp_path, "llama"), tokens=TOKENS, layers=[1])
    run: list[int] = []
    layers = scorer.model.model.base_model.layers
    for i, layer in enumerate(layers):
        layer.mlp.register_forward_hook(lambda *_, i=i: run.append(i))
    scorer.score([_ids()], DISTANCE)
    assert run == [0]


def test_same_bits_in_any_batch(tmp_path: Path) -> None:
    scorer = LayerScorer.from_pretrained(_saved(tmp_path, "qwen2"), tokens=TOKENS)
    windows = [_ids(length, seed) for seed, length in enumerate([48, 30, 48])]
    together = scorer.score(windows, DISTANCE)
    for i, ids in enumerate(windows):
        alone = scorer.score([ids], DISTANCE)
        np.testing.assert_array_equal(together.ds[i], alone.ds[0])
        np.testing.assert_array_equal(together.variance[i], alone.variance[0])


def test_no_windows_no_scores(tmp_path: Path) -> None:
    scorer = LayerScorer.from_pretrained(_saved(tmp_path, "qwen2"), tokens=TOKENS)
    assert len(scorer.score([], DISTANCE).ds) == 0


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [
        ("llama", [4], r"layers \[4\] .* full attention, 0 to 3$"),
        ("gemma2", [0, 1], r"layers \[0, 1\] .* full attention, 1, 3$"),
        ("llama", [], r"layers \[\] .* full attention, 0 to 3$"),
    ],
)
def test_a_layer_that_looks_nowhere_far_is_refused(
    tmp_path: Path, family: str, layers: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LayerScorer.from_pretrained(_saved(tmp_path, family), tokens=TOKENS, layers=layers)


def test_a_model_of_sliding_layers_alone_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "mistral", sliding_window=8)
    with pytest.raises(ValueError, match=r"layers all .* of which it has none"):
        LayerScorer.from_pretrained(str(tmp_path), tokens=TOKENS)


@pytest.mark.parametrize("distance", [0, 49])
def test_a_distance_outside_the_window_is_refused(tmp_path: Path, distance: int) -> None:
    scorer = LayerScorer.from_pretrained(_saved(tmp_path, "qwen2"), tokens=TOKENS)
    with pytest.raises(ValueError, match=f"min_distance {distance}: allowed: 1 to .* 48"):
        scorer.score([_ids()], distance)
