"""Tables of other libraries as documents and windows, and what is no table."""

import datasets
import pandas as pd
import pyarrow as pa
import pytest
import ray

import longattn as la
from longattn.pipeline.inputs import as_dataset, as_model, as_sources

TEXTS = ["The first of three documents. " * 40, "def f(x): return x\n" * 60, "Ends. " * 150]
pytestmark = pytest.mark.usefixtures("ray_cluster")


KINDS = {
    "pandas": lambda: pd.DataFrame({"content": TEXTS, "n": range(3)}),
    "hugging face": lambda: datasets.Dataset.from_dict({"content": TEXTS}),
    "hugging face, some rows": lambda: datasets.Dataset.from_dict(
        {"content": ["left out", *TEXTS]}
    ).select([1, 2, 3]),
    "arrow": lambda: pa.table({"content": TEXTS}),
    "rows": lambda: [{"content": text} for text in TEXTS],
    "texts": lambda: TEXTS,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_another_library_gives_the_same_documents(kind):
    batches = as_dataset(KINDS[kind](), "documents", "content").iter_batches(batch_format="pyarrow")
    got = [text for batch in batches for text in batch["content"].to_pylist()]
    assert sorted(got) == sorted(TEXTS)


def test_such_a_table_is_cut_as_a_dataset_is():
    given = (ray.data.from_items([{"content": text} for text in TEXTS]), KINDS["pandas"]())
    want, got = (
        {row["data_id"]: list(row["input_ids"]) for row in windows.take_all()}
        for windows in (la.window_documents(of, window=64, workers=(1, 1)) for of in given)
    )
    assert len(want) > 5 and got == want


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: la.window_documents("text"), "documents: a table of Ray Data, pandas"),
        (lambda: la.window_documents([]), "not list"),
        (lambda: la.window_documents(pd.DataFrame({"text": TEXTS})),
         "documents: no column 'content'; there are text"),
        (lambda: la.window_documents(datasets.DatasetDict({"train": datasets.Dataset.from_dict({})})),
         "documents: a DatasetDict; choose one of its splits ('train')"),
        (lambda: la.window_documents(TEXTS, window="lots"), "window lots: a whole number is required"),
        (lambda: la.window_documents(TEXTS, min_distance=0), "min_distance 0: "),
        (lambda: la.window_documents(TEXTS, sample=0.1), "sample: Sample or a mapping of its fields"),
        (lambda: la.window_documents(TEXTS, model="/nowhere"), "'/nowhere': no such folder"),
        (lambda: la.score_windows(TEXTS, dtype="int8"), "score_windows: dtype: allowed: "),
        (lambda: la.score_windows(pa.table({"x": [1]})), "windows: no column 'input_ids'; there are x"),
        (lambda: la.score_windows(TEXTS, workers=(3, 1)), "score_windows: workers: score: the first"),
        (lambda: la.read_documents("x.jsonl"), "sources: a list of {category: ..., path: 'x.jsonl'}"),
        (lambda: la.read_documents([{"category": "a"}]), "sources.0: path: required, and not given"),
        (lambda: la.read_labelled("/nowhere"), "/nowhere/labelled: no labelled windows there"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_in_one_line_before_any_actor(call, told):
    with pytest.raises(ValueError) as caught:
        call()
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_sources_are_taken_from_a_config_too(tmp_path):
    source = {"category": "a", "path": "/x.jsonl"}
    values = {"sources": [source], "output": "/o"}
    (tmp_path / "c.yaml").write_text(str(values))
    for given in ([source], source, values, la.Config.of(values), tmp_path / "c.yaml"):
        assert [(s.category, s.path) for s in as_sources(given)] == [("a", "/x.jsonl")]


def test_a_models_folder_is_absolute(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert as_model("mine") == str(tmp_path / "mine")
    assert as_model("builtin") == "builtin"
