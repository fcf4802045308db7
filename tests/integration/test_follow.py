"""`longattn run --follow` as a command, on Ray and an S3 server: killed, started again, stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
import psutil
import pyarrow.parquet as pq
import pytest
import yaml

import longattn as la
from longattn.reports.verify import verify
from tests.conftest import WINDOW
from tests.s3 import moto_server

SECONDS = 120  # that the test waits for something at most


@pytest.fixture(scope="module")
def s3():
    """A server of this module's own: the other tests' store may be of another process."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3):
    client = boto3.client("s3", endpoint_url=s3)

    def put(name, texts):
        body = "".join(json.dumps({"content": text}) + "\n" for text in texts).encode()
        client.put_object(Bucket="bucket", Key=f"followed/{name}", Body=body)

    return put


def labelled(output):
    tables = [pq.read_table(file) for file in Path(output, "labelled").rglob("*.parquet")]
    return sorted(data_id for table in tables for data_id in table["data_id"].to_pylist())


def wait_until(true, process, log):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)


def test_follow_on_ray_scores_each_file_at_once_also_after_its_driver_was_killed(
    s3, bucket, corpus, checkpoint, tmp_path
):
    lines = (corpus / "book" / "0.jsonl").read_text().splitlines()
    texts = [json.loads(line)["content"][:3500] for line in lines[:4]]
    out, log = tmp_path / "out", tmp_path / "log"
    config = {
        "sources": [{"category": "book", "path": "s3://bucket/followed/"}],
        "output": str(out),
        "window": {"tokens": WINDOW},
        "scorer": {"model": checkpoint},
        "workers": {"window": 1, "score": 1},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    folder = tempfile.mkdtemp(prefix="la-")  # short: Ray puts Unix sockets below it
    environment = {**os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    environment["RAY_worker_niceness"] = "0"  # other work on the machine would stop workers else
    environment |= {"RAY_TMPDIR": folder, "PYTHONPATH": str(Path(la.__file__).parents[1])}

    def start():
        command = [sys.executable, "-m", "longattn", "run", str(path), "--follow", "1s"]
        return subprocess.Popen(
            [*command, "--idle", "5m", "--log-file", str(log)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def arrives(name, which, process):
        """A file with windows of its own comes, and some of them are labelled."""
        before = len(labelled(out))
        bucket(name, [texts[which]])
        wait_until(lambda: len(labelled(out)) > before, process, log)

    bucket("0.jsonl", texts[:1])
    process = start()
    try:
        wait_until(lambda: labelled(out), process, log)
        actors = scoring_actors(process)
        arrives("1.jsonl", 1, process)
        assert scoring_actors(process) == actors and len(actors) == 1
        kill_all(process)
        bucket("2.jsonl", [texts[2], texts[0]])
        process = start()
        wait_until(lambda: "1 split to read (2 done)" in log.read_text(), process, log)
        arrives("3.jsonl", 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 75
    finally:
        kill_all(process)
        shutil.rmtree(folder, ignore_errors=True)
    whole = la.run({**config, "output": str(tmp_path / "whole")}, executor="local")
    assert labelled(out) == labelled(tmp_path / "whole")
    again = la.run(config, executor="local")
    assert again.score.windows == 0 and again.splits["all"] == 4
    assert (
        again.to_dict()["categories"]["book"]["kept"]
        == whole.to_dict()["categories"]["book"]["kept"]
    )
    assert list(verify(str(out))) == []


def scoring_actors(process):
    """Processes of the actors that score, below a driver's own Ray."""
    found = set()
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "StreamedScores" in " ".join(child.cmdline()):
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_all(process):
    """SIGKILL to a driver and to the Ray that it started."""
    if process.poll() is not None:
        return
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in reversed(family):
        one.kill()
    psutil.wait_procs(family, 20)
    process.wait(20)
