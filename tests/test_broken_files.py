"""Whatever is broken in what a run reads of its own, a command tells it in one line with its status.

Some kinds here; all of them, and 100 at random, in `tests/integration/test_broken_files.py`.
"""

import json
import random
import shutil

import pytest

from longattn.resume import lock
from longattn.scoring.checkpoint import open_checkpoint
from longattn.scoring.settings import ScoreSettings
from longattn.scoring.window_scorer import WindowScorer
from tests.broken import CONTENTS, RECORDS, any_change, complaints, copied
from tests.conftest import config

READERS = {
    "run": "report", "samples": "run", "columns": "run", "hold": "select", "rates": "report",
    "summary": "select", "selection": "report",
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_a_broken_record_is_told_in_a_line(finished, tmp_path, monkeypatch, name):
    monkeypatch.setattr(lock, "EXPIRES", 0.0)
    settings, _ = finished
    number = RECORDS.index(name)
    for content in (CONTENTS[number], CONTENTS[-1 - number % 3]):
        output = copied(settings, tmp_path)
        (output / "_longattn" / f"{name}.json").write_bytes(content)
        complaints(settings, output, (READERS[name],), (name, content[:40]))
    assert not (tmp_path / "x").exists()  # whatever a hold's token is


@pytest.mark.parametrize("seed", range(5))
def test_another_value_is_told_in_a_line(finished, tmp_path, seed):
    output = copied(finished[0], tmp_path)
    what = any_change(output, random.Random(seed))
    complaints(finished[0], output, ("run",), what)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None), ("hidden_size", -1), ("head_dim", 0), ("head_dim", 2**40),
        ("num_attention_heads", 0), ("vocab_size", -1), ("use_cache", 3), ("layer_types", []),
        ("quantization_config", 3), ("hidden_act", "x"), ("model_type", []), ("rope_parameters", 3),
        ("rope_parameters", {"rope_type": [], "rope_theta": "x"}), ("dtype", "x"),
    ],
)  # fmt: skip
def test_an_odd_checkpoint_config_is_refused_in_a_line(checkpoint, tmp_path, field, value):
    shutil.copytree(checkpoint, tmp_path / "odd")
    stored = json.loads((tmp_path / "odd" / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**stored, field: value}))
    settings = ScoreSettings.of(config(tmp_path, tmp_path / "out", str(tmp_path / "odd")))
    with pytest.raises(ValueError, match=f"{tmp_path}/odd|hidden_size|is refused") as caught:
        open_checkpoint(settings.model)
        WindowScorer(settings, "cpu")
    assert len(" ".join(str(caught.value).split())) < 600
