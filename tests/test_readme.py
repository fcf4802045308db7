"""The README's Python examples, run as they stand: those under a comment `<!-- example: NAME -->`."""

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: ([^>]+) -->\n```python\n(.*?)```", README, re.DOTALL))


def run(name, folder):
    """Run an example with its output below `folder`: Ray's workers have a folder of their own."""
    exec(compile(EXAMPLES[name].replace("out/", f"{folder}/"), f"README: {name}", "exec"), {})


def test_all_examples_are_tested():
    tested = {"own dataset and filter", "own rule", "scorer alone"}
    assert set(EXAMPLES) == tested


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


def test_the_scorer_alone_needs_no_ray():
    code = EXAMPLES["scorer alone"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 4
    check = "\nimport sys\nassert scores.ds.shape[0] == 1 and 'ray' not in sys.modules, 'ray'"
    subprocess.run([sys.executable, "-c", code + check], check=True)
