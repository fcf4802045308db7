"""A cluster that grows and shrinks, on this machine: nodes are raylets that Ray's autoscaler starts.

Its GPU nodes have no CUDA device: with scorer.dtype set to float32 the scoring actor there computes
on the CPU. All else is as on a cloud.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.samples import SAMPLES
from longattn.windows.tokenizer import load_tokenizer
from tests.s3 import free_port

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"
WINDOW = 1024
CATEGORIES = 48
HEAD_ID = "f" * 51 + "00000"


@pytest.fixture(scope="module")
def cluster():
    """A head of one CPU and no GPU, whose autoscaler brings up to 3 nodes of one GPU each."""
    folder, port = Path(tempfile.mkdtemp(prefix="la-")), free_port()
    settings = (Path(__file__).parent / "fake_autoscaling.json").read_text()
    (folder / "autoscaling.json").write_text(settings.replace("HEAD_IP:6411", f"127.0.0.1:{port}"))
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_health_check_period_ms": "2000",  # a dead node is noticed in 10 s, not 15
        "PYTHONPATH": str(ROOT),
    }
    head = subprocess.Popen(
        [
            str(RAY),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            f"--autoscaling-config={folder}/autoscaling.json",
            "--num-cpus=1",
            "--num-gpus=0",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
            f"--object-store-memory={300 * 2**20}",
        ],
        env={
            **environment,
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    driver = {
        **environment,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS": "1",
    }
    try:
        # An answer of the head alone is not enough: a driver needs its node to be registered.
        ready = "import ray; ray.init(logging_level='ERROR'); assert ray.nodes()[0]['Alive']"
        for _ in range(8):
            if not subprocess.run([sys.executable, "-c", ready], env=driver, timeout=90).returncode:
                break
        else:
            raise RuntimeError("the head does not answer")
        yield driver
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        for process in Path("/proc").glob("[0-9]*"):  # nodes whose autoscaler is gone
            try:
                if str(folder).encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
            except OSError:
                continue
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """48 categories of one long document, a quarter of a sample rotated: each is a task, and one block."""
    folder = tmp_path_factory.mktemp("documents")
    with gzip.open(SAMPLES / "book.jsonl.gz", "rt") as file:
        text = json.loads(next(file))["content"]
    for part in range(CATEGORIES):
        cut = part * len(text) // CATEGORIES
        rotated = (text[cut:] + text[:cut])[: len(text) // 4]
        (folder / f"{part}.jsonl").write_text(json.dumps({"content": rotated}))
    return folder


def settings(tmp_path, documents, checkpoint, categories, further=(), **workers):
    config = la.Config.parse(
        {
            "sources": [
                {"category": f"c{part}", "path": str(documents / f"{part}.jsonl")}
                for part in range(categories)
            ],
            "output": str(tmp_path / "out"),
            "window": {"tokens": WINDOW},
            "scorer": {"model": checkpoint, "dtype": "float32"},
            "scores": list(further),
            "workers": {"gpus_per_scorer": 1, **workers},
        }
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    return config


def watched(cluster, tmp_path, *arguments):
    command = [sys.executable, "-m", "tests.integration.watched_run", tmp_path / "config.yaml"]
    done = subprocess.run(
        [*map(str, command), *arguments],
        env=cluster,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "seen.json").read_text())


def scores(output):
    columns = ["data_id", "ds", "variance", "ds_heads", "variance_heads"]
    return pq.read_table(f"{output}/labelled", columns=columns).sort_by("data_id")


@pytest.fixture(scope="module")
def undisturbed(cluster, documents, checkpoint, tmp_path_factory):
    """A run that starts with no GPU node, and what was seen of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = settings(folder, documents, checkpoint, CATEGORIES)
    return config, watched(cluster, folder)


def test_gpu_nodes_come_from_none_as_the_backlog_grows_and_are_given_back(undisturbed, documents):
    config, told = undisturbed
    assert told["seen"][0][1] == 0
    during = [seen for seen in told["seen"] if seen[0] < told["finished"]]
    assert max(nodes for _, nodes, _ in during) == 3
    assert max(taken for _, _, taken in during) == 3  # as many scoring actors
    assert told["left"] == 0
    tokenizer = load_tokenizer("builtin")
    text = json.loads((documents / "0.jsonl").read_text())["content"].encode()
    windows = len(la.sliding_windows(len(tokenizer.encode(text).ids), WINDOW))
    ids = scores(config.output)["data_id"].to_pylist()
    assert len(ids) == len(set(ids)) and sum(i.startswith("c0-") for i in ids) == windows > 20
    assert {i.partition("-")[0] for i in ids} == {f"c{part}" for part in range(CATEGORIES)}


def test_the_result_is_the_same_when_the_gpu_node_is_killed(
    undisturbed, cluster, documents, checkpoint, tmp_path
):
    gap = {"name": "gap", "kind": "loss_gap", "model": checkpoint, "short": 64, "dtype": "float32"}
    config = settings(tmp_path, documents, checkpoint, 6, [gap], score=1)
    told = watched(cluster, tmp_path, "kill")
    assert told["killed"]
    truth = scores(undisturbed[0].output)
    wanted = [
        i.partition("-")[0] in {f"c{part}" for part in range(6)}
        for i in truth["data_id"].to_pylist()
    ]
    assert scores(config.output).equals(truth.filter(wanted))
    gaps = pq.read_table(f"{config.output}/scores/gap").sort_by("data_id")  # by actors with a GPU
    assert gaps["data_id"].equals(truth.filter(wanted)["data_id"])
    assert gaps["gap"].null_count == 0


def test_a_run_that_finds_no_gpu_in_time_says_so_and_stops(
    cluster, documents, checkpoint, tmp_path
):
    settings(tmp_path, documents, checkpoint, 1, gpus_per_scorer=2, wait_seconds=3)
    command = [sys.executable, "-m", "longattn.cli", "run", tmp_path / "config.yaml"]
    done = subprocess.run(
        list(map(str, command)), env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "longattn: no GPU within workers.wait_seconds 3: the cluster has" in done.stderr
    assert "and a scorer wants 2" in done.stderr


def gpu_nodes(cluster):
    """Nodes with a GPU that are there now, as another driver sees them."""
    code = (
        "import ray; ray.init(logging_level='ERROR', log_to_driver=False); "
        "print(sum(n['Alive'] and n['Resources'].get('GPU', 0) > 0 for n in ray.nodes()))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], env=cluster, capture_output=True, text=True, timeout=120
    )
    assert seen.returncode == 0, seen.stderr
    return int(seen.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
def test_a_run_that_follows_gives_its_nodes_back_while_nothing_comes_and_gets_one_again(
    cluster, documents, checkpoint, tmp_path
):
    (tmp_path / "in").mkdir()
    config = settings(tmp_path, documents, checkpoint, 1)
    source = config.sources[0].model_copy(update={"path": str(tmp_path / "in")})
    config = config.model_copy(update={"sources": (source,)})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "longattn.cli", "run", str(tmp_path / "config.yaml")]
    log = tmp_path / "log"

    def wait_until(true, what):
        deadline = time.monotonic() + 240
        while not true():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{what}: {log.read_text()[-3000:]}"
            time.sleep(1)

    def labelled():
        return len({*Path(config.output, "labelled").rglob("*.parquet")})

    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--follow", "1s", "--idle", "3s"],
            env=cluster, cwd=ROOT, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        for number in range(2):
            shutil.copy(documents / f"{number}.jsonl", tmp_path / "in")
            wait_until(lambda files=number: labelled() > files, f"file {number} was not scored")
            wait_until(lambda: gpu_nodes(cluster) == 0, "a node stays")
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
    assert len(scores(config.output)) > 40  # of two documents
