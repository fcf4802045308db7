"""`ray job submit` to a head that asks for a token: what the job did, and its exit status.

So does KubeRay submit the entrypoint of a RayJob; nothing else of Kubernetes is here.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import longattn as la
from longattn.pipeline.monitor import LAG_METRICS, METRICS
from longattn.reports.verify import verify
from tests.conftest import WINDOW, config
from tests.s3 import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
RAYJOB = yaml.safe_load((ROOT / "configs/cluster/kuberay-rayjob.yaml").read_text())["spec"]


@dataclass
class Head:
    address: str
    folder: Path
    dashboard: str
    metrics: str
    environment: dict[str, str]

    @contextmanager
    def gpu_node(self):
        """One more node, with a GPU by name alone: with scorer.dtype float32 its CPU computes."""
        command = [
            *(str(RAY), "start", "--block", f"--address={self.address}"),
            *("--num-cpus=1", "--num-gpus=1", f"--object-store-memory={100 * 2**20}"),
            *(f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={self.folder}"),
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        node = subprocess.Popen(command, env=self.environment, start_new_session=True, **quiet)
        try:
            yield
        finally:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()

    def submit_as_kuberay(self, name: str, entrypoint: str):
        """What the operator's submitter pod runs: the entrypoint is words of its shell's line."""
        address = f"--address {self.dashboard}"
        runtime = yaml.safe_load(RAYJOB.get("runtimeEnvYAML", "")) or {}
        options = f"--runtime-env-json {shlex.quote(json.dumps(runtime))}" if runtime else ""
        line = (
            f"if ! ray job status {address} {name} >/dev/null 2>&1 ; "
            f"then ray job submit {address} --no-wait {options} --submission-id {name} "
            f"-- {entrypoint} ; fi ; ray job logs {address} --follow {name}"
        )
        return subprocess.Popen(
            ["bash", "-ce", "--", line],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def info(self, name: str) -> dict:
        """Of a job, as the operator asks for it."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.dashboard}/api/jobs/{name}", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def submit(self, script: str, *arguments: str, options: tuple = (), **environment: str):
        """Submit a script of ray_jobs/ from the project's root."""
        options = ("--working-dir", ROOT, "--entrypoint-num-cpus", 1, *options)  # as many do: one
        script = f"ray_jobs/{script}.py"  # CPU is left to the run
        return self.job("submit", *options, "--", "python", script, *arguments, **environment)

    def job(self, command: str, *arguments, **environment: str):
        """`ray job` with a command."""
        return subprocess.run(
            [str(RAY), "job", command, "--address", self.dashboard, *map(str, arguments)],
            env={**self.environment, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )


def variables_of_the_rayjob() -> dict[str, str]:
    """Those of its head that matter without Kubernetes."""
    (container,) = RAYJOB["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    variables = {v["name"]: v["value"] for v in container["env"]}
    return {name: variables[name] for name in ("RAY_JOB_STOP_WAIT_TIME_S",)}


@pytest.fixture(scope="module")
def head():
    """A head of two CPUs, in a process group of its own, that lets in who has its token."""
    folder = Path(tempfile.mkdtemp(prefix="la-"))
    (folder / "token").write_text("token-of-this-test-" + os.urandom(16).hex())
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_metrics_report_interval_ms": "500",
        **variables_of_the_rayjob(),
        "RAY_worker_niceness": "0",  # other work on the machine would stop workers else
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the job's `python`
    }
    port, dashboard, metrics = free_port(), free_port(), free_port()
    process = subprocess.Popen(
        [
            str(RAY),
            "start",
            "--head",
            "--block",
            "--num-cpus=2",
            "--num-gpus=0",
            f"--port={port}",
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--metrics-export-port={metrics}",
            f"--temp-dir={folder}",
            f"--object-store-memory={300 * 2**20}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    head = Head(
        f"127.0.0.1:{port}",
        folder,
        f"http://127.0.0.1:{dashboard}",
        f"http://127.0.0.1:{metrics}/metrics",
        environment,
    )
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


def assert_metrics_tell(endpoint, labelled):
    """What Prometheus would read of the run that wrote `labelled`."""
    with urllib.request.urlopen(endpoint, timeout=10) as answer:
        families = {f.name: f for f in text_string_to_metric_families(answer.read().decode())}
    told = Counter()
    for name, _ in METRICS.values():
        for sample in families[f"ray_{name.removesuffix('_total')}"].samples:
            told[name, sample.labels["stage"], sample.labels["category"]] += sample.value
    for category in ("book", "code"):
        rows = labelled.filter(pc.equal(labelled["category"].cast("string"), category))
        for stage in ("window", "score", "write"):
            assert told["longattn_windows_total", stage, category] == len(rows)
        assert told["longattn_tokens_total", "score", category] == len(rows) * WINDOW
        kernel = told["longattn_kernel_seconds_total", "score", category]
        assert 0 < kernel <= told["longattn_busy_seconds_total", "score", category]
        assert told["longattn_written_bytes_total", "write", category] > 1000
    assert told["longattn_quarantined_records_total", "window", "book"] == 1


def test_a_job_runs_whole_and_its_failure_is_the_submissions(head, corpus, checkpoint, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    with (tmp_path / "corpus" / "book" / "0.jsonl").open("a") as file:
        file.write("not JSON\n")
    settings = config(tmp_path / "corpus", tmp_path / "out", checkpoint)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    done = head.submit("run", str(tmp_path / "config.yaml"), "--set", "select.keep.count=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"written: {tmp_path}/out\n  labelled", done.stdout)
    assert len(pq.read_table(tmp_path / "out/selected")) == 8
    labelled, deadline = pq.read_table(tmp_path / "out/labelled"), time.monotonic() + 20
    while True:  # they are exported from time to time
        try:
            assert_metrics_tell(head.metrics, labelled)
            break
        except (AssertionError, KeyError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    refused = head.submit("run", str(tmp_path / "config.yaml"), "--set", "scorer.min_distance=7")
    assert refused.returncode != 0
    assert "min_distance: there 128, here 7" in refused.stdout


def test_a_job_that_follows_scores_what_comes_until_it_is_stopped(
    head, corpus, checkpoint, tmp_path
):
    documents, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, documents)
    late = [documents / "book" / name for name in ("1.jsonl", "2.jsonl")]
    text = [path.read_text() for path in late]
    for path in late:
        path.unlink()
    settings = config(documents, out, checkpoint)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    name = ("--submission-id", "follows", "--no-wait")
    submitted = head.submit("run", str(tmp_path / "config.yaml"), "--follow", "1s", options=name)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr

    def rows():
        return len(pq.read_table(out / "labelled")) if (out / "labelled").exists() else 0

    try:
        deadline, before = time.monotonic() + 400, 0
        for path, lines in zip([None, *late], ["", *text], strict=True):
            if path:
                path.write_text(lines)
            while rows() <= before:
                assert time.monotonic() < deadline, head.job("logs", "follows").stdout
                time.sleep(0.5)
            before = rows()
        with urllib.request.urlopen(head.metrics, timeout=10) as answer:
            told = {f.name for f in text_string_to_metric_families(answer.read().decode())}
        assert {f"ray_{metric}" for metric, _ in LAG_METRICS.values()} <= told
    finally:
        assert head.job("stop", "follows").returncode == 0
    assert "Job 'follows' was stopped" in head.job("status", "follows").stdout
    assert "longattn: stopped by SIGTERM; run again to go on" in head.job("logs", "follows").stdout
    whole = la.run(config(documents, tmp_path / "whole", checkpoint), executor="local")
    again = la.run(settings, executor="local")
    assert again.to_dict()["categories"] == whole.to_dict()["categories"]


def test_without_the_token_no_job_is_taken(head, tmp_path):
    (tmp_path / "token").write_text("another-token-of-the-same-kind")
    refused = head.submit("run", "--help", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert refused.returncode != 0
    assert re.search("401|403|token", refused.stdout + refused.stderr, re.IGNORECASE)


def test_the_rayjob_runs_whole_and_a_driver_that_gets_sigterm_has_failed_so_as_to_run_again(
    head, corpus, checkpoint, tmp_path
):
    scorer = {"model": checkpoint, "dtype": "float32"}
    settings = config(corpus, tmp_path / "out", checkpoint, scorer=scorer)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    entrypoint = RAYJOB["entrypoint"].replace(
        "s3://my-bucket/longattn.yaml", f"{tmp_path}/config.yaml"
    )
    assert "s3://" not in entrypoint and "gpus_per_scorer=1" in entrypoint
    with head.gpu_node():
        submitter = head.submit_as_kuberay("rayjob", entrypoint)
        log = submitter.communicate(timeout=200)[0]
        assert submitter.returncode == 0 and head.info("rayjob")["status"] == "SUCCEEDED", log
    assert f"written: {tmp_path}/out\n  labelled" in log
    again = head.submit_as_kuberay("rayjob", entrypoint)  # by a new pod, where the first was lost
    assert again.communicate(timeout=60)[0].count("written:") == 1
    assert list(verify(settings.output)) == []
    whole = config(corpus, tmp_path / "whole", checkpoint, scorer=scorer)
    la.run(whole, executor="local")
    columns = ["data_id", "input_ids", "ds", "variance", "lds"]
    selected = [
        pq.read_table(f"{of.output}/selected", columns=columns).sort_by("data_id")
        for of in (settings, whole)
    ]
    assert len(selected[0]) and selected[0].equals(selected[1])

    service = head.submit_as_kuberay("service", f"{entrypoint} --follow 1s")  # all is done
    try:
        deadline = time.monotonic() + 120
        while "selected: book" not in (log := head.job("logs", "service").stdout):
            assert service.poll() is None and time.monotonic() < deadline, log
            time.sleep(0.5)
        os.kill(int(head.info("service")["driver_info"]["pid"]), signal.SIGTERM)
        log = service.communicate(timeout=60)[0]
    finally:
        service.kill()
    assert "longattn: stopped by SIGTERM; run again to go on" in log
    info = head.info("service")  # KubeRay retries what is FAILED, not what is STOPPED
    assert (info["status"], info["driver_exit_code"]) == ("FAILED", 75)
