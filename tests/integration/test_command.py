"""The command in a process of its own with a Ray that it starts; and what only Ray can show of a run."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.reports.verify import verify
from tests.conftest import config
from tests.labelled import data_files
from tests.test_cli import here, write
from tests.test_readers import COLUMNS, assert_read


@pytest.fixture(scope="module")
def ray_folder():
    """Where a Ray started by the command would put its session; short, for Unix sockets."""
    folder = tempfile.mkdtemp(prefix="la-")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def longattn(ray_folder):
    """Runs the command in a process of its own."""

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "longattn.cli", *arguments],
            env={**os.environ, "RAY_TMPDIR": ray_folder, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=200,
        )

    return call


def sessions(ray_folder) -> set[Path]:
    """One folder for each time Ray was started."""
    return set(Path(ray_folder).glob("**/session_2*"))


@pytest.fixture(scope="module")
def ran(longattn, corpus, checkpoint, tmp_path_factory):
    """A run by the command: its config, its output folder, what it printed."""
    folder = tmp_path_factory.mktemp("ran")
    path = write(folder, config(corpus, folder / "out", checkpoint))
    return path, folder / "out", longattn("run", path)


def test_a_run_succeeds_and_says_what_it_wrote(ran, ray_folder):
    _, output, result = ran
    assert result.returncode == 0, result.stderr
    assert len(sessions(ray_folder)) == 1
    summary = json.loads((output / "_longattn/summary.json").read_text())
    for name, told in summary["categories"].items():
        (row,) = [line.split() for line in result.stdout.splitlines() if line.startswith(name)]
        keys = ("documents", "too_short", "bad", "windows", "kept")
        assert row[1:6] == [str(told.get(key, 0)) for key in keys]
    folder, *written = re.search(r"written: (.*\n.*)", result.stdout)[1].split()
    assert Path(folder) == output and "selected" in written
    assert all((output / path).exists() for path in written) and len(written) == 4
    assert "Traceback" not in result.stderr
    said = [line.split(" ", 1)[1] for line in result.stderr.splitlines() if line[2:3] == ":"]
    assert said[0] == "starting a Ray for this run; RAY_ADDRESS=HOST:PORT takes another"


def test_a_good_run_on_ray_prints_no_error_line(ran):
    """Of Ray's core neither, whose lines look like `[2026-01-02 03:04:05,678 E 12 12] core.cc:9: ...`."""
    result = ran[2]
    assert result.returncode == 0
    lines = (result.stdout + result.stderr).splitlines()
    assert [line for line in lines if re.match(r"(\(.*\) )?\[.* [EF] \d+ ", line)] == []
    assert len(lines) < 60


def test_a_command_refuses_before_ray_starts(longattn, corpus, checkpoint, tmp_path, ray_folder):
    before = sessions(ray_folder)
    path = write(tmp_path, config(corpus, tmp_path / "out", checkpoint))
    result = longattn("run", path, "--set", "scorer.model=/nowhere")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
    assert sessions(ray_folder) == before


def test_too_many_bad_records_on_ray_fail_with_one_line(corpus, checkpoint, tmp_path, ray_cluster):
    (tmp_path / "bad.jsonl").write_text('{"content": "x"}\nbad\n' * 1000)
    sources = [{"category": "a", "path": str(tmp_path / "bad.jsonl")}]
    settings = config(corpus, tmp_path / "out", checkpoint, sources=sources)
    result = here("run", write(tmp_path, settings))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("longattn: ")]
    assert re.search(r"records are bad \(not_json \d+\), over max_bad_fraction 0.01", line)
    assert "Traceback" not in result.stderr and not result.stdout


def test_ray_goes_on_where_one_process_stopped(finished, tmp_path, corpus, checkpoint, ray_cluster):
    settings = config(corpus, tmp_path / "out", checkpoint)
    shutil.copytree(finished[0].output, settings.output)
    lost, *_ = sorted((tmp_path / "out" / "labelled").rglob("*.parquet"))
    rows = pq.read_metadata(lost).num_rows
    lost.unlink()
    assert la.run(settings).score.windows == rows
    assert data_files(settings.output) == data_files(finished[0].output)
    assert la.run(settings, executor="local").score.windows == 0
    assert list(verify(settings.output)) == []


def ray_data(folder, _):
    import ray

    return ray.data.read_parquet(folder, columns=COLUMNS).take_all()


def test_ray_data_reads_the_selected_set(ray_cluster, finished, tmp_path):
    assert_read(ray_data, finished, tmp_path)
