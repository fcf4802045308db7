"""Two nodes of a Ray that was started elsewhere, one of which does not see the driver's folder."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import config
from tests.s3 import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


@pytest.fixture(scope="module")
def nodes():
    """A head, and a node in a mount namespace of its own that hides the folder `hidden`."""
    folder, hidden, port = Path(tempfile.mkdtemp(prefix="la-")), tempfile.mkdtemp(), free_port()
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    common = ["--block", "--num-cpus=1", f"--object-store-memory={100 * 2**20}"]
    head = [
        str(RAY),
        "start",
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        "--include-dashboard=false",
        f"--temp-dir={folder}/h",
        *common,
    ]
    node = [
        str(RAY),
        "start",
        f"--address=127.0.0.1:{port}",
        "--node-ip-address=127.0.0.2",
        *common,
    ]
    unseen = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'mount -t tmpfs none {hidden} && exec "$@"',
        "sh",
        *node,
    ]
    started = []
    try:
        for command in (head, unseen):
            # In a folder of its own: what is relative to the driver's is nothing to the workers.
            started.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    cwd=folder,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            ready = (
                "import ray, sys; ray.init(logging_level='ERROR'); "
                f"sys.exit(sum(n['Alive'] for n in ray.nodes()) < {len(started)})"
            )
            driver = {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}
            for _ in range(12):
                done = subprocess.run(
                    [sys.executable, "-c", ready], env=driver, timeout=90, capture_output=True
                )
                if not done.returncode:
                    break
            else:
                raise RuntimeError("the nodes do not come up")
        yield driver, Path(hidden)
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(hidden, ignore_errors=True)


def run(settings, folder, environment):
    (folder / "c.yaml").write_text(settings.to_yaml())
    return subprocess.run(
        [sys.executable, "-m", "longattn", "run", "c.yaml"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_an_output_that_a_node_does_not_see_is_refused_by_the_node_s_name(
    nodes, corpus, checkpoint
):
    environment, hidden = nodes
    result = run(config(corpus, hidden / "out", checkpoint), hidden, environment)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("longattn: ")]
    assert f"output {hidden}/out is on this machine's disk" in line and "node 127.0.0.2" in line


def test_relative_paths_work_on_a_ray_that_was_started_elsewhere(
    nodes, corpus, checkpoint, tmp_path
):
    environment, _ = nodes
    shutil.copytree(corpus, tmp_path / "corpus")
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "c.yaml").write_text(
        "sources: [{category: book, path: corpus/book}]\noutput: out\n"
        "scorer: {model: model}\nwindow: {tokens: 512}\n"
    )
    for scored in ("scored", "nothing to score"):
        result = subprocess.run(
            [sys.executable, "-m", "longattn", "run", "c.yaml"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 0, result.stderr
        assert scored in result.stdout
    assert list((tmp_path / "out/selected/book").glob("*.parquet"))
