"""Columns of every head of every layer against transformers' own eager probabilities, in float64."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from longattn.scoring.further_scores import FurtherScorer, TableParts, table_schema
from longattn.scoring.statistics import probability_statistics
from longattn.settings.scores import Score
from tests.scoring.test_layers import DISTANCE, FAMILIES, TOKENS, _ids, _saved


def scorer(folder: str, layers: list[int], batch: int = 8) -> FurtherScorer:
    values = {"name": "deep", "kind": "attention", "model": folder, "layers": layers}
    score = Score.check({**values, "batch": batch}, "score")
    settings = {"layers": layers, "min_distance": DISTANCE}
    return FurtherScorer(score, TableParts("attention", TOKENS, settings, dtype="float64"), "cpu")


def windows(count: int) -> pa.Table:
    ids = [_ids(seed=seed).astype(np.int32) for seed in range(count)]
    return pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32()))})


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_every_head_is_that_of_transformers(tmp_path: Path, family: str) -> None:
    folder, layers = _saved(tmp_path, family), list(FAMILIES[family][1][-2:])
    made, given = scorer(folder, layers), windows(3)
    columns = made.columns(given)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float64
    )
    for i, ids in enumerate(given["input_ids"].to_pylist()):
        with torch.inference_mode():
            p = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        of_layers = [probability_statistics(p[layer][0], DISTANCE) for layer in layers]
        for name, of in zip(("deep", "deep_variance"), zip(*of_layers, strict=True), strict=True):
            heads = torch.cat([torch.as_tensor(each) for each in of]).numpy()
            np.testing.assert_allclose(columns[f"{name}_heads"][i], heads, rtol=1e-6)
            np.testing.assert_allclose(columns[name][i], heads.mean(), rtol=1e-6)
    schema = table_schema(made.score.columns, made)
    about = schema.field("deep_heads").metadata
    heads = len(columns["deep_heads"][0]) // 2
    assert about == {b"shape": f"[2, {heads}]".encode(), b"layers": str(layers).encode()}
    assert schema.field("deep_layers").metadata is None


def test_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    folder, given = _saved(tmp_path, "qwen2"), windows(5)
    together = scorer(folder, [1, 2]).columns(given)
    for batch in (1, 2):
        assert scorer(folder, [1, 2], batch).columns(given) == together
