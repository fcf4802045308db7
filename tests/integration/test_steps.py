import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import longattn as la
from longattn.cluster import connected
from longattn.pipeline.labelled_sink import write_labelled_windows
from longattn.pipeline.score_actor import ScoreStage, ScoreWindows
from longattn.scoring.settings import ScoreSettings
from tests.conftest import WINDOW
from tests.test_ray_messages import LINE

pytestmark = pytest.mark.usefixtures("ray_cluster")


def labelled(path):
    return pq.read_table(f"{path}/labelled").sort_by("data_id")


def test_composition_with_a_filter_of_ones_own(finished, corpus, tmp_path, checkpoint):
    settings, _ = finished
    texts = la.read_documents([{"category": "book", "path": f"{corpus}/book"}])
    windows = la.window_documents(texts, model=checkpoint, window=WINDOW)
    odd = windows.filter(lambda row: row["window_index"] % 2 == 1)
    scored = la.score_windows(odd, model=checkpoint, workers=(1, 1))
    la.write_labelled(scored, str(tmp_path / "mine"))
    mine = labelled(tmp_path / "mine")
    whole = labelled(settings.output)
    keep = pa.compute.and_(
        pa.compute.equal(whole["category"].cast(pa.string()), "book"),
        pa.compute.equal(pa.compute.bit_wise_and(whole["window_index"], 1), 1),
    )
    assert mine.to_pylist() == whole.filter(keep).to_pylist()
    again = la.read_labelled(str(tmp_path / "mine"), columns=["data_id", "ds"])
    assert sorted(r["data_id"] for r in again.take_all()) == mine["data_id"].to_pylist()
    assert la.select(str(tmp_path / "mine"), keep={"count": 3})["book"].kept == 3
    assert la.report(str(tmp_path / "mine")) == f"{tmp_path}/mine/report.html"
    assert la.verify(str(tmp_path / "mine"), scores=2) == []
    assert la.inspect(str(tmp_path / "mine"), mine["data_id"][0].as_py()).window.model == checkpoint


def test_windows_as_lists_and_fixed_size_lists_get_the_same_scores(finished, tmp_path, checkpoint):
    rows = labelled(finished[0].output).slice(0, 6)
    ids = np.array(rows["input_ids"].to_pylist())
    names = rows.select(["data_id", "category"])

    def windows(of):
        return names.append_column("input_ids", pa.array(ids.tolist(), of))

    fixed = ray.data.from_arrow(windows(pa.list_(pa.int32(), WINDOW)))
    scored = la.score_windows(fixed, model=checkpoint, workers=(1, 1))
    la.write_labelled(scored, str(tmp_path / "fixed size lists"))
    settings = ScoreSettings(checkpoint, None, None, None, None)
    score = ScoreWindows(ScoreStage(settings, "cpu", run=False), lambda *_: None)
    lists = [score(windows(pa.list_(pa.int64())))]
    write_labelled_windows(str(tmp_path / "int64 lists"), lists)
    for kind in ("fixed size lists", "int64 lists"):
        got = labelled(tmp_path / kind)
        for column in ("data_id", "category", "input_ids", "ds", "variance", "ds_heads"):
            assert got[column].to_pylist() == rows[column].to_pylist(), (kind, column)


def test_a_script_connected_to_ray_sees_none_of_its_lines_on_constructor_arguments(capfd):
    with connected():
        os.write(2, LINE + b"another line\n")
    told = capfd.readouterr().err
    assert "another line" in told and "constructor arguments" not in told
