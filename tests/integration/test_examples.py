"""The Python examples of the README and of the pages that need Ray run as they stand."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog.sql import SqlCatalog

import longattn as la
from longattn.samples import SAMPLES
from longattn.windows.ids import document_id
from longattn.windows.tokenizer import load_tokenizer
from tests.test_readme import EXAMPLES


def run(name, folder):
    """Run an example with its output below `folder`: Ray's workers have a folder of their own."""
    exec(compile(EXAMPLES[name].replace("out/", f"{folder}/"), f"README: {name}", "exec"), {})


@pytest.fixture(scope="module")
def mine(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    run("own dataset and filter", folder)
    return folder


def test_a_dataset_and_a_filter_of_ones_own_are_scored_and_selected(mine):
    labelled = pq.read_table(str(mine / "mine" / "labelled"))
    assert len(labelled) and {i % 8 for i in labelled["window_index"].to_pylist()} == {0}
    selected = pq.read_table(str(mine / "mine" / "selected"))
    assert len(selected) == (len(labelled) + 1) // 2


def test_a_rule_of_ones_own_sees_the_labelled_windows(mine):
    run("own rule", mine)
    labelled = pq.read_table(str(mine / "mine" / "labelled")).to_pylist()
    want = sorted(row["ds"] for row in labelled if row["recurrence"] > 0.1)[-100:]
    assert sorted(pq.read_table(str(mine / "far"))["ds"].to_pylist()) == want


def test_further_scores_and_numbers_of_ones_own_stand_beside_the_windows(mine):
    run("further scores", mine)
    labelled = pq.read_table(str(mine / "mine" / "labelled"), columns=["data_id"])
    for name in ("text", "stars"):
        table = pq.read_table(str(mine / "mine" / "scores" / name))
        assert set(table["data_id"].to_pylist()) == set(labelled["data_id"].to_pylist())
    assert table["stars"].to_pylist() == [len(name) for name in table["data_id"].to_pylist()]


def test_windows_of_ones_own_get_the_scores_of_the_scorer_alone(ray_cluster, tmp_path):
    run("scores only", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"scores"}
    got = pq.read_table(str(tmp_path / "scores")).sort_by("name")
    want = la.AttentionScorer.from_pretrained("builtin").score(np.arange(4096).reshape(8, 512))
    assert got["name"].to_pylist() == list(range(8))
    np.testing.assert_allclose(got["ds"], want.ds.mean(1), rtol=1e-6)
    np.testing.assert_allclose(got["variance"], want.variance.mean(1), rtol=1e-6)


def windows_of(texts):
    """Ids of the windows of 16384 tokens that documents give, by data_id."""
    tokenizer = load_tokenizer("builtin")
    found = {}
    for text in texts:
        ids = tokenizer.encode(text.encode()).ids
        for index, (start, stop) in enumerate(la.sliding_windows(len(ids), 16384)):
            found[f"default-{document_id(text.encode())}-{index}"] = ids[start:stop]
    return found


def check_windows(folder, texts):
    got = pq.read_table(str(folder)).to_pylist()
    want = windows_of(texts)
    assert len(got) == len(want) > 4 and "content" not in got[0]
    for row in got:
        assert np.array_equal(row["input_ids"], want[row["data_id"]])


def sample(name):
    with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt") as file:
        return [json.loads(line)["content"] for line in file]


def test_a_hugging_face_dataset_gives_its_windows(ray_cluster, tmp_path, monkeypatch):
    # Ray asks the hub whether it has this dataset as Parquet, and looks for it in the working folder.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    run("hugging face", tmp_path)
    check_windows(tmp_path / "code-windows", sample("python"))


def test_an_iceberg_table_gives_its_windows(ray_cluster, tmp_path):
    catalog = SqlCatalog(
        "corpora", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/tables"
    )
    catalog.create_namespace("raw")
    rows = pa.table({"content": sample("book"), "id": [f"{i}" for i in range(len(sample("book")))]})
    catalog.create_table("raw.books", schema=rows.schema).append(rows)
    run("iceberg", tmp_path)
    check_windows(tmp_path / "book-windows", sample("book"))
