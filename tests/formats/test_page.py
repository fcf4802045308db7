"""The page of the room: its commands and its lines of Python run as they stand, on a small run."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.config import Mix
from longattn.samples import SAMPLES
from tests.formats.made import read_mds

PAGE = (Path(__file__).parents[2] / "longattn/formats/README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def output(tmp_path_factory, checkpoint):
    """The run of the quickstart, in smaller windows and with a smaller scorer."""
    folder = tmp_path_factory.mktemp("page")
    sources = [
        {"category": name, "path": str(SAMPLES / f"{name}.jsonl.gz"), "sample": {"fraction": 0.2}}
        for name in ("book", "c", "python")
    ]
    settings = {
        "sources": sources,
        "output": str(folder / "out" / "quickstart"),
        "window": {"tokens": 2048},
        "scorer": {"model": checkpoint},
    }
    summary = la.run(settings, executor="local")
    return folder, sum(of.selection.kept for of in summary.categories.values())


def test_the_lines_of_python_give_a_hugging_face_dataset(output, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    folder, kept = output
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 3
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code, names)
    rows = list(names["windows"])
    assert len(rows) == kept > 5 and {tuple(row) for row in rows} == {("input_ids",)}
    assert all(row["input_ids"].shape == (2048,) for row in rows)


def test_the_commands_print_what_the_trainers_take(output, monkeypatch):
    folder, kept = output
    monkeypatch.chdir(folder)
    (mix,) = re.findall(r"<!-- file: mix.yaml -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert Mix.of(yaml.safe_load(mix)).packed[0].category == "short"
    Path("mix.yaml").write_text(mix)
    (block,) = re.findall(r"<!-- commands: export -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
    printed = []
    for line in block.splitlines():
        command = line.partition("#")[0].split()
        result = CliRunner().invoke(app, command[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        printed.append(result.stdout.splitlines())
    megatron, mds, npy = printed
    place = folder / "out" / "quickstart"
    assert megatron == [f"{place}/megatron/{name}-00000" for name in ("book", "c", "python")]
    assert mds == [f"{place}/mds"] and len(read_mds(mds[0])) == kept
    assert npy == [f"{place}/npy/{name}-00000.npy" for name in ("book", "python", "short")]
    windows = {path: len(np.memmap(path, "<u2")) / 2048 for path in npy}
    assert all(n.is_integer() for n in windows.values())
