"""`ray job submit` to a head that asks for a token: what the job did, and its exit status."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import config
from tests.s3 import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"


@dataclass
class Head:
    port: int
    dashboard: str
    environment: dict[str, str]

    def submit(self, script: str, *arguments: str, **environment: str):
        """Submit a script of ray_jobs/ from the project's root."""
        command = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", ROOT]
        return subprocess.run(
            [*map(str, command), "--", "python", f"ray_jobs/{script}.py", *arguments],
            env={**self.environment, **environment}, cwd=ROOT, capture_output=True, text=True,
            timeout=240,
        )  # fmt: skip


@pytest.fixture(scope="module")
def head():
    """A head of two CPUs, in a process group of its own, that lets in who has its token."""
    folder = Path(tempfile.mkdtemp(prefix="la-"))
    (folder / "token").write_text("token-of-this-test-" + os.urandom(16).hex())
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the job's `python`
    }
    port, dashboard = free_port(), free_port()
    process = subprocess.Popen(
        [
            str(RAY), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0", f"--port={port}",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={folder}", f"--object-store-memory={300 * 2**20}",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    head = Head(port, f"http://127.0.0.1:{dashboard}", environment)
    try:
        ready = [str(RAY), "job", "list", "--address", head.dashboard]
        for _ in range(30):
            if not subprocess.run(ready, env=environment, capture_output=True).returncode:
                break
        else:
            raise RuntimeError("the head does not answer")
        yield head
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_runs_whole_and_its_failure_is_the_submissions(head, corpus, checkpoint, tmp_path):
    settings = config(corpus, tmp_path / "out", checkpoint)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    done = head.submit("run", str(tmp_path / "config.yaml"), "--set", "select.keep.count=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"written: {tmp_path}/out/labelled", done.stdout)
    assert len(pq.read_table(tmp_path / "out/selected")) == 8
    refused = head.submit("run", str(tmp_path / "config.yaml"), "--set", "scorer.min_distance=7")
    assert refused.returncode != 0
    assert "min_distance: there 128, here 7" in refused.stdout


def test_without_the_token_no_job_is_taken(head, tmp_path):
    (tmp_path / "token").write_text("another-token-of-the-same-kind")
    refused = head.submit("run", "--help", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert refused.returncode != 0
    assert re.search("401|403|token", refused.stdout + refused.stderr, re.IGNORECASE)
