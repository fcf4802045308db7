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

JOBS = Path(__file__).parents[1] / "ray_jobs"


def program(name, *arguments):
    return subprocess.run(
        [sys.executable, str(JOBS / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "100"},
    )


def test_a_job_reads_its_config_from_an_object_store(finished, s3, tmp_path):
    settings, _ = finished
    shutil.copytree(settings.output, tmp_path / "out")
    here = settings.model_copy(update={"output": str(tmp_path / "out")})
    with s3fs.S3FileSystem().open("bucket/configs/run.yaml", "w") as file:
        file.write(here.to_yaml())
    done = program("select", "s3://bucket/configs/run.yaml", "--set", "select.keep.count=3")
    assert done.returncode == 0, done.stderr
    assert len(pq.read_table(tmp_path / "out/selected")) == 6
    chosen = json.loads((tmp_path / "out/_longattn/selection.json").read_text())
    assert "3" in json.dumps(chosen)
    missing = program("select", "s3://bucket/configs/another.yaml")
    assert missing.returncode == 2
    assert missing.stderr.startswith("longattn: s3://bucket/configs/another.yaml: cannot be read")


@pytest.mark.parametrize("name", ["run", "score", "select"])
def test_help_tells_an_argument_an_option_and_an_example_from_any_folder(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    monkeypatch.setattr(sys, "path", [str(JOBS), *sys.path])
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(JOBS / f"{name}.py"), run_name="__main__")
    assert not ended.value.code
    told = capsys.readouterr().out
    assert all(text in told for text in ("CONFIG", "--set", f"Example: longattn {name}"))
