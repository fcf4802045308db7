"""The scripts of ray_jobs/ as programs: a config from an object store, --set, --help."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

from tests.broken import quiet_log

JOBS = Path(__file__).parents[1] / "ray_jobs"


@pytest.fixture
def job(monkeypatch, capsys):
    """Runs a script in this process: its exit status, and what it printed."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        monkeypatch.setattr(sys, "path", [str(JOBS), *sys.path])
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "100")
        with quiet_log(), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(JOBS / f"{name}.py"), run_name="__main__")
        return ended.value.code, capsys.readouterr()

    return call


def test_a_job_reads_its_config_from_an_object_store(finished, s3, tmp_path, job):
    settings, _ = finished
    shutil.copytree(settings.output, tmp_path / "out")
    here = settings.model_copy(update={"output": str(tmp_path / "out")})
    with s3fs.S3FileSystem().open("bucket/configs/run.yaml", "w") as file:
        file.write(here.to_yaml())
    command = [sys.executable, str(JOBS / "select.py"), "s3://bucket/configs/run.yaml"]
    command += ["--set", "select.keep.count=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(pq.read_table(tmp_path / "out/selected")) == 6
    chosen = json.loads((tmp_path / "out/_longattn/selection.json").read_text())
    assert "3" in json.dumps(chosen)
    status, said = job("select", "s3://bucket/configs/another.yaml")
    assert status == 2
    assert said.err.startswith(
        "longattn: s3://bucket/configs/another.yaml: there is no such file to be read as a config"
    )


@pytest.mark.parametrize("name", ["run", "score", "select"])
def test_help_tells_an_argument_an_option_and_an_example_from_any_folder(
    name, tmp_path, monkeypatch, job
):
    monkeypatch.chdir(tmp_path)
    status, told = job(name, "--help")
    assert not status
    assert all(text in told.out for text in ("CONFIG", "--set", f"Example: longattn {name}"))


@pytest.mark.parametrize("name", ["run", "score", "select"])
def test_a_python_without_the_packages_is_named_in_one_line(name):
    bare = [sys.executable, "-S", str(JOBS / f"{name}.py"), "config.yaml"]  # no site-packages
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, env=environment)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(
        f"longattn: the Python of this job, {sys.executable}, has no module typer: name one that has"
    )
