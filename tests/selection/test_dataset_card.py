"""The card beside the selected files, read by Hugging Face `datasets`, and what becomes of it."""

import os
import re
import shutil
import subprocess
import sys

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

import longattn as la
from longattn.config import Select
from longattn.reports.verify import verify
from longattn.selection import dataset_card
from longattn.storage.files import read_bytes
from tests.labelled import labelled_table, write_labelled


@pytest.fixture
def output(finished, tmp_path):
    shutil.copytree(finished[0].output, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def head(output):
    return yaml.safe_load((output / "README.md").read_text().split("---\n")[1])


def without_seal(path):
    return path.read_text().rpartition("<!--")[0]


def test_datasets_loads_all_categories_or_one_with_their_types(output):
    everything = datasets.load_dataset(str(output), split="train")
    tables = {c: pq.read_table(output / "selected" / c) for c in ("book", "code")}
    assert len(everything) == sum(map(len, tables.values())) > 20
    for category, table in tables.items():
        one = datasets.load_dataset(str(output), category, split="train")
        assert one["data_id"] == table["data_id"].to_pylist()
        assert one["input_ids"] == table["input_ids"].to_pylist()
        assert one.features == datasets.Features.from_arrow_schema(table.schema.remove_metadata())
    streamed = datasets.load_dataset(str(output), "code", split="train", streaming=True)
    assert streamed.features == one.features  # known before a file is opened
    assert [row["data_id"] for row in streamed] == tables["code"]["data_id"].to_pylist()


def test_datasets_loads_it_offline_from_the_environment_alone(output, tmp_path):
    code = "import datasets, sys; print(len(datasets.load_dataset(sys.argv[1], split='train')))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(output)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
    )
    assert int(result.stdout) == len(pq.read_table(output / "selected")), result.stderr


def test_the_card_tells_how_it_was_selected_and_follows_the_selection(output):
    before = (output / "README.md").read_text()
    assert "0.5 of the windows of each category" in before
    assert "[report.html](report.html)" in before and (output / "report.html").exists()
    assert "A window has 512 tokens" in before and "license" not in head(output)
    chosen = la.select(str(output), keep={"count": 3}, alpha=2)
    text = (output / "README.md").read_text()
    assert "3 windows of each category" in text and "`alpha: 2`" in text
    for category, of in chosen.items():
        assert f"| {category} | {of.windows} | 3 | 1,536 |" in text
    assert list(verify(str(output))) == []
    la.select(str(output))
    assert without_seal(output / "README.md") == before.rpartition("<!--")[0]


def test_what_its_owner_states_stays(output):
    path = output / "README.md"
    stated = "license: odc-by\nlanguage: [en, de]\npretty_name: 'Mine: long'\n"
    path.write_text(path.read_text().replace("---\n", f"---\n{stated}", 1))
    assert list(verify(str(output))) == []
    la.select(str(output), keep={"count": 2})
    found = head(output)
    assert (found["license"], found["language"], found["pretty_name"]) == (
        "odc-by",
        ["en", "de"],
        "Mine: long",
    )
    assert list(verify(str(output))) == []
    assert len(datasets.load_dataset(str(output), split="train")) == 4


def test_another_hand_s_page_is_left_alone(output, caplog):
    (output / "README.md").write_text("# mine\n")
    la.select(str(output), keep={"count": 2})
    assert (output / "README.md").read_text() == "# mine\n"
    assert "README.md was not written by longattn: left alone" in caplog.text
    assert list(verify(str(output))) == []


def test_verify_tells_of_a_changed_card_and_select_writes_it_anew(output):
    path = output / "README.md"
    la.select(str(output))  # the seal is of selection.json, which names the files of this copy
    right = path.read_text()
    path.write_text(right.replace("selected/book", "selected/bock"))
    (finding,) = verify(str(output))
    assert "README.md: damaged: it is not what its checksum was taken of" in finding
    la.select(str(output))
    assert path.read_text() == right and list(verify(str(output))) == []
    path.unlink()
    assert list(verify(str(output))) == []


def test_categories_with_other_columns_load_together(tmp_path):
    import pyarrow as pa

    for category, column in (("all", "stars"), ("b", "url")):
        table = labelled_table(
            category, [f"{category}{i}" for i in range(4)], [0.1, 0.2, 0.3, 0.4], [1.0] * 4
        )
        values = pa.array([1, 2, 3, 4]) if column == "stars" else pa.array(["x"] * 4)
        write_labelled(tmp_path, category, table.append_column(column, values))
    la.select(str(tmp_path), keep={"fraction": 1})
    rows = datasets.load_dataset(str(tmp_path), split="train")
    assert sorted(
        zip(rows["data_id"], map(str, rows["stars"]), map(str, rows["url"]), strict=True)
    ) == [
        *((f"all{i}", str(i + 1), "None") for i in range(4)),
        *((f"b{i}", "None", "x") for i in range(4)),
    ]
    assert len(datasets.load_dataset(str(tmp_path), "all", split="train")) == 4
    assert "report.html" not in (tmp_path / "README.md").read_text()


def test_a_selection_on_an_object_store_has_its_card(s3):
    table = labelled_table("a", ["a0", "a1"], [0.1, 0.2], [1.0, 1.0])
    write_labelled("s3://bucket/card", "a", table)
    la.select("s3://bucket/card")
    text = read_bytes("s3://bucket/card/README.md").decode()
    files = yaml.safe_load(text.split("---\n")[1])["configs"][0]["data_files"]
    assert files == ["selected/a/*.parquet"]


def test_the_card_says_the_settings_as_people_do(output):
    heads = {"score": "deep", "layer": 7, "head": [1, 3]}
    settings = {
        "per_document": 20,
        "where": [{"column": "recurrence", "max": 0.99}, {"column": "lds", "quantiles": [0, 0.9]}],
        "categories": {"book": {"keep": {"tokens": "1.5B"}, "where": []}, "code": {}},
    }
    la.select(output, **settings)
    page = (output / "README.md").read_text().split("---\n", 2)[2]
    assert "`where: recurrence at most 0.99 and lds quantiles 0 to 0.9`" in page
    assert "`per_document: at most 20`" in page
    assert "`book: keep 1.5 B tokens, where nothing is bounded`" in page
    told = list(dataset_card._settings(Select(heads=heads)))
    assert "heads: heads 1, 3 of layer 7 of deep" in told and len(told) == 5
    la.select(output)
    plain = (output / "README.md").read_text().split("---\n", 2)[2]
    assert (
        "`alpha: 0.5`, `standardize: zscore`, `heads: all`, `rank_by: lds`, `overlap: allow`."
        in plain
    )
    for text in (page, plain):
        assert not re.search(
            r"None|True|False|\[\]|\{\}|[\[{(]'", text.replace("streaming=True", "")
        )
