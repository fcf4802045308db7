import numpy as np
import pyarrow as pa
import pytest

from longattn.pipeline import score_actor
from longattn.pipeline.labelled_sink import token_ids, write_labelled_windows
from longattn.scoring.settings import ScoreSettings
from tests.conftest import config


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([1, 2], "lists of integers are required; given int64"),
        (["ab", "c"], "lists of integers are required; given string"),
        ([[1.0], [1.5]], "lists of integers are required; given list<item: double>"),
        ([[1], None], "given list<item: int64>, 1 of them null"),
        ([[1, None], [2, 3]], "lists of integers are required"),
        ([[1], [1, 2]], "windows of one length are required; given lengths 1, 2"),
    ],
)
def test_what_is_no_window_is_refused_with_what_was_given(given, told):
    with pytest.raises(ValueError, match=rf"^input_ids: .*{told}"):
        token_ids(pa.table({"input_ids": pa.array(given)}))


def test_a_slice_of_several_chunks_is_read_from_where_it_begins():
    table = pa.table({"input_ids": pa.array([[1, 2], [3, 4], [5, 6]], pa.large_list(pa.int32()))})
    part = pa.concat_tables([table, table]).slice(1, 4)
    assert np.array_equal(token_ids(part), [[3, 4], [5, 6], [1, 2], [3, 4]])


def test_windows_without_an_id_are_not_written(tmp_path):
    scored = pa.table({"input_ids": [[1, 2]], "category": ["book"], "ds": [0.5]})
    with pytest.raises(ValueError, match="no column data_id among input_ids, category, ds"):
        write_labelled_windows(str(tmp_path), [scored])
    assert not list(tmp_path.iterdir())


def test_on_a_cpu_each_long_window_counts_as_soon_as_it_is_scored(
    checkpoint, tmp_path, monkeypatch
):
    settings = ScoreSettings.of(config(tmp_path, tmp_path, checkpoint))
    ids = np.random.default_rng(0).integers(0, 8192, (5, 512))
    block = pa.table({"input_ids": list(ids), "category": list("aabbc")})
    reports, scored = [], []
    for tokens, batch in ((2 * 512 + 5, None), (5, None), (5, 3)):
        monkeypatch.setattr(score_actor, "CPU_BATCH_TOKENS", tokens)
        told = []
        stage = score_actor.ScoreStage(settings, "cpu", batch=batch)
        scores = score_actor.ScoreWindows(stage, lambda *of, told=told: told.append(of[0].total()))
        scored.append(scores(block))
        reports.append(told)
    assert reports == [[2, 2, 1], [1, 1, 1, 1, 1], [3, 2]]
    assert scored[0].equals(scored[1]) and scored[0].equals(scored[2])
    mixed = pa.table({"input_ids": [list(ids[0]), list(ids[1][:300])], "category": ["a", "b"]})
    with pytest.raises(ValueError, match="given lengths 300, 512"):
        scores(mixed)
