"""What a notebook calls: names, what they need, configs as path, mapping or Config, one-line refusals."""

import inspect
import pkgutil
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from typer.testing import CliRunner

import longattn as la
from longattn.builtin import CHECKPOINT
from longattn.cli import app
from longattn.config import Config
from tests.conftest import config

COMMANDS = ("evaluate", "export", "inspect", "plan", "report", "verify")


def python(code):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_names_are_listed_and_the_import_alone_loads_nothing_heavy():
    code = """
import sys, longattn as la
heavy = {"ray", "torch", "pyarrow", "pandas", "transformers", "numpy", "pydantic", "fsspec"}
print(*sorted(heavy & set(sys.modules)), "|", *dir(la))
"""
    loaded, _, names = python(code).partition("|")
    assert loaded.split() == []
    assert names.split() == sorted([*la.__all__, "__version__"])
    assert set(COMMANDS) | {"run", "select", "Config", "score_windows"} <= set(names.split())


def test_a_config_is_read_without_ray_torch_and_pyarrow():
    code = """
import sys, longattn as la
la.Config.of({"sources": [{"category": "a", "path": "x"}], "output": "o"})
print(*sorted({"ray", "torch", "pyarrow", "transformers"} & set(sys.modules)))
"""
    assert python(code).split() == []


@pytest.mark.parametrize("name", la.__all__)
def test_every_name_is_there_and_says_what_you_get(name):
    value = getattr(la, name)
    assert not isinstance(value, types.ModuleType)
    first = (inspect.getdoc(value) or "").splitlines()[0]
    assert len(first) > 15 and first.endswith((".", ";"))


def test_no_module_hides_a_function():
    """An import of `longattn.x` puts the module in place of the function x."""
    modules = {module.name for module in pkgutil.iter_modules(la.__path__)}
    assert "config" in modules and not modules & set(la.__all__)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_as_a_function_says_what_it_takes_gives_and_raises(name):
    from longattn import notebook

    text = inspect.getdoc(getattr(notebook, name))
    assert "Args:" in text and "Raises:" in text


@pytest.fixture(scope="module")
def ran(corpus, checkpoint, tmp_path_factory):
    """A run in this process: the path of its config, and the settings."""
    folder = tmp_path_factory.mktemp("notebook")
    settings = config(corpus, folder / "out", checkpoint)
    path = folder / "c.yaml"
    path.write_text(settings.to_yaml())
    la.run(path, executor="local")
    return path, settings


def test_a_config_is_taken_as_path_mapping_or_object(ran):
    path, settings = ran
    mapping = yaml.safe_load(path.read_text())
    want = la.plan(settings, windows_per_second=10, read="1G").to_dict()
    for given in (path, str(path), mapping, settings.output):
        got = la.plan(given, windows_per_second=10, read=2**30, check=False).to_dict()
        assert {n: c["windows"] for n, c in got["categories"].items()} == {
            n: c["windows"] for n, c in want["categories"].items()
        }
    more = la.plan(path, ["select.keep.count=2"], windows_per_second=10, check=False)
    assert {c.kept for c in more.categories.values()} == {2}


def test_what_a_run_wrote_is_shown_by_its_folder_or_its_config(ran):
    path, settings = ran
    for given in (path, settings, settings.output, Path(settings.output)):
        assert la.verify(given) == []
        assert la.report(given, check=given is path) == f"{settings.output}/report.html"
    files = sorted(Path(settings.output, "labelled").rglob("*.parquet"))
    import pyarrow.parquet as pq

    row = pq.read_table(files[0]).to_pylist()[0]
    found = la.inspect(path, row["data_id"])
    assert found.window.ids.tolist() == row["input_ids"]
    with pytest.raises(la.ConfigError, match="output and data_id, or text, is required"):
        la.inspect(path)


def test_a_config_brings_its_own_selection(ran):
    path, settings = ran
    chosen = Config.of(path, ["select.keep.count=3"])
    assert {c.kept for c in la.select(chosen).values()} == {3}
    assert {c.kept for c in la.select(chosen, keep={"count": 2}).values()} == {2}
    by_folder = la.select(settings.output)  # the defaults, which the run's config has too
    assert by_folder == la.select(path) == la.select(settings)
    assert {c.kept for c in by_folder.values()} != {3}


def test_what_is_selected_is_exported_by_its_folder(ran):
    _, settings = ran
    prefixes = la.export(settings.output)
    assert prefixes == la.export(settings)
    assert all(Path(f"{prefix}{end}").exists() for prefix in prefixes for end in (".bin", ".idx"))


def test_what_is_selected_and_exported_of_a_run_without_an_end_is_said_to_be_a_part(
    ran, tmp_path, caplog
):
    part = tmp_path / "part"
    shutil.copytree(ran[1].output, part)
    (part / "_longattn/summary.json").unlink()  # as before the end of the first run
    missing = (
        f"{part}: its run has not come to its end, so windows and whole categories may be missing"
    )
    la.select(str(part))
    la.export(str(part))
    command = CliRunner().invoke(app, ["select", str(part)])
    assert command.exit_code == 0
    assert [missing in line for line in caplog.messages if "its run" in line] == [True] * 3
    assert missing in (part / "report.html").read_text()
    caplog.clear()
    la.select(ran[1].output)
    assert "its run" not in caplog.text
    assert "its run" not in Path(ran[1].output, "report.html").read_text()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: la.run(7), "a path, a mapping or a Config is required, not int"),
        (lambda: la.run("/nowhere.yaml"), "/nowhere.yaml: there is no such file to be read as a config"),
        (lambda: la.run({"source": [], "output": "o"}), "source: no such setting; did you mean sources?"),
        (lambda: la.plan({"sources": [{"category": "a", "path": "/nowhere/*"}], "output": "/o"}),
         "'/nowhere/*' matches nothing"),
        (lambda: la.plan({"sources": [{"category": "a", "path": "x"}], "output": "o"}, read="lots"),
         "read lots: a whole number is required"),
        (lambda: la.report("/nowhere"), "/nowhere: no run has written here"),
        (lambda: la.verify("/nowhere"), "/nowhere"),
        (lambda: la.evaluate("/nowhere"), "/nowhere: there is no such config, and no such output folder"),
        (lambda: la.inspect(text="/nowhere.txt"), "/nowhere.txt: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_in_one_line(call, told):
    with pytest.raises(ValueError) as caught:
        call()
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def scorer():
    return la.AttentionScorer.from_pretrained("builtin", device="cpu")


def test_a_text_is_scored_as_the_window_of_its_tokens(scorer):
    text = "The far end of a document, naïvely, depends on its beginning. " * 20
    other = "def f(x):\n    return x + 1\n" * 12
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))  # another reader
    bos = yaml.safe_load((CHECKPOINT / "config.json").read_text())["bos_token_id"]
    want = []
    for one in (text, other):
        ids = tokenizer.encode(one, add_special_tokens=False).ids
        with_bos = tokenizer.encode(one).ids != ids
        want.append(scorer.score([bos, *ids[:-1]] if with_bos else ids))
    got = scorer.score_text([text, other])
    assert got.ds.shape == (2, scorer.heads)
    for row in (0, 1):
        assert torch.equal(got.ds[row], want[row].ds[0])
        assert torch.equal(got.variance[row], want[row].variance[0])
    assert torch.equal(scorer.score_text(text).ds, got.ds[:1])
    several = scorer.score_text(text, min_distance=[16, 32])
    assert several.ds.shape == (1, scorer.heads, 2)


@pytest.mark.parametrize("text", [7, [], ["a", 3], b"bytes", None])
def test_what_is_no_text_is_refused_in_one_line(scorer, text):
    with pytest.raises(ValueError, match="text: one or more of str are required"):
        scorer.score_text(text)


def test_a_scorer_of_tables_alone_says_that_it_has_no_tokenizer(scorer):
    with pytest.raises(ValueError, match="has no tokenizer"):
        la.AttentionScorer(scorer.tables).score_text("text")


def test_python_m_longattn_is_the_command():
    command = [sys.executable, "-m", "longattn", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith(f"longattn {la.__version__} (")
    assert np.all([name in result.stdout for name in ("ray", "torch")])
