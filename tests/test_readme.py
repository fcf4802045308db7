"""The README and the pages of the rooms: their Python examples run as they stand, their maps are true."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyiceberg.catalog.sql import SqlCatalog

import longattn as la
from longattn.cli import app
from longattn.samples import SAMPLES
from longattn.storage.tables import SELECTED
from longattn.windows.ids import document_id
from longattn.windows.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + (ROOT / "longattn/pipeline/README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: ([^>]+) -->\n```python\n(.*?)```", PAGES, re.DOTALL))


def run(name, folder):
    """Run an example with its output below `folder`: Ray's workers have a folder of their own."""
    exec(compile(EXAMPLES[name].replace("out/", f"{folder}/"), f"README: {name}", "exec"), {})


def test_all_examples_are_tested():
    assert set(EXAMPLES) == {
        "own dataset and filter",
        "own rule",
        "scorer alone",
        "scores only",
        "hugging face",
        "iceberg",
        "further scores",
    }


def test_the_row_of_a_selected_file_has_the_columns_that_there_are(finished):
    (block,) = re.findall(r"A row of `selected/.*?```text\n(.*?)```", README, re.DOTALL)
    cells = [cell for line in block.splitlines() for cell in re.split(r"  +", line.strip())]
    assert sorted(cells[::2]) == sorted(SELECTED.names)
    assert pq.read_table(f"{finished[0].output}/selected").column_names == SELECTED.names


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


def test_the_scorer_alone_needs_no_ray():
    code = EXAMPLES["scorer alone"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 4
    check = "\nimport sys\nassert scores.ds.shape[0] == 1 and 'ray' not in sys.modules, 'ray'"
    subprocess.run([sys.executable, "-c", code + check], check=True)


def test_the_source_map_names_every_room_and_file_that_there_is():
    rows = README.partition("room of `longattn/`")[2].partition("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+(?:\.py|/))`", rows))
    package = ROOT / "longattn"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    rooms = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == files | rooms
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", README):
        assert (package / path).exists() or (ROOT / path).exists(), path


def test_the_config_of_the_readme_is_one():
    values = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1])
    made = la.Config.parse(values)
    assert made.window.tokens == 32768 and made.scores[0].columns == (
        "compression_ratio",
        "repetition",
    )


def test_the_readme_names_every_command_and_is_short():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"`longattn ([a-z]+)", README))
    assert named == commands and len(README.splitlines()) <= 210


def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("[lct]*/**/*.md")]
    for page in pages:
        for target in re.findall(
            r"\]\(([^)#:\s]+)(?:#[^)]*)?\)|srcset=\"([^\"]+)\"", page.read_text()
        ):
            place = page.parent / (target[0] or target[1])
            assert place.exists(), f"{page.relative_to(ROOT)} links to {place}"


def test_the_table_of_the_readme_is_the_one_that_a_run_prints():
    shown = re.search(r"```text\n(category .*?)```", README, re.DOTALL)[1].splitlines()
    columns = re.search(
        r'"read": "documents".*?threshold', (ROOT / "longattn/terminal.py").read_text(), re.DOTALL
    )[0]
    for name in shown[0].replace("LDS from", "").split()[1:]:
        assert f'"{name}":' in columns
    assert all(len(line) <= 80 for line in shown)
