"""Runs in processes of their own, to be broken, and what they wrote."""

import functools
import json
import multiprocessing
import os
import pydoc
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from longattn.config import Config
from tests.conftest import WINDOW

ROOT = str(Path(__file__).parents[1])
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(
    [
        "longattn.cli",
        "longattn.pipeline.job",
        "longattn.pipeline.in_process",
        "longattn.scoring.scorer",
        "tests.faults",
    ]
)


@contextmanager
def cluster():
    """A head where what belongs to the driver lives; nodes may be added, and killed."""
    folder = tempfile.mkdtemp(prefix="la-")
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray notes the cluster
    os.environ["RAY_AUTH_MODE"] = "disabled"
    head = {
        "num_cpus": 2,
        "object_store_memory": 150 << 20,
        "temp_dir": folder,
        "include_dashboard": False,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def settings(documents, output, checkpoint, **fields):
    """Of a run over the JSONL files of `<documents>/book`."""
    values = {
        "sources": [{"category": "book", "path": f"{documents}/book"}],
        "output": str(output),
        "window": {"tokens": WINDOW},
        "scorer": {"model": checkpoint, "batch": 4},
        "workers": {"window": 1, "score": 1},
    }
    return Config.parse({**values, **fields})


def start(settings, address, log, *, environment=None, hook=None, block=64 << 10, shard=None):
    """`longattn run` of these settings in a process; its exit code is the command's status.

    Args:
        environment: variables of the driver and its workers.
        hook: dotted name of a function that each of these processes calls first.
        block: bytes of windows in a block, which becomes a file.
        shard: the share `i/n` to take.
    """
    values = settings.model_dump(mode="json", exclude_none=True)
    arguments = (values, address, str(log), environment or {}, hook, block, shard)
    process = FORK.Process(target=_drive, args=arguments)
    process.start()
    return process


def command(*arguments, log, hook=None, block=64 << 10, environment=None):
    """`longattn` with these arguments in a process that has imported most already, in this interpreter."""
    options = ([*map(str, arguments)], str(log), hook, block, environment or {})
    process = FORK.Process(target=_call, args=options)
    process.start()
    return process


def finish(run, seconds=300):
    """The exit code of a run, which must come to its end."""
    run.join(seconds)
    if run.exitcode is None:
        run.kill()
        pytest.fail("it hangs")
    return run.exitcode


def until(condition, run, seconds=200):
    """Wait for a condition; fails once the run has ended without it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.is_alive()
        if time.monotonic() > deadline:
            run.kill()
            pytest.fail("it hangs")
        time.sleep(0.02)


def _call(arguments, log, hook, block, environment):
    from longattn.cli import app
    from longattn.corpus.sources import group_splits
    from longattn.pipeline import execution, in_process

    _log_to(log)
    os.environ.update(environment)
    execution.BLOCK_BYTES["cpu"] = block
    in_process.group_splits = functools.partial(group_splits, target_bytes=1)
    if hook:
        pydoc.locate(hook)()
    app(arguments)


def _log_to(log):
    os.setsid()
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _drive(values, address, log, environment, hook, block, shard):
    import ray

    from longattn import command, config
    from longattn.corpus.sources import group_splits
    from longattn.pipeline import execution, job, on_ray

    _log_to(log)
    os.environ.update(environment, RAY_AUTH_MODE="disabled", RAY_ADDRESS=address)
    # Blocks of a few windows and tasks of one file, as a large corpus has many.
    execution.BLOCK_BYTES["cpu"] = block
    on_ray.group_splits = functools.partial(group_splits, target_bytes=1)
    variables = {"PYTHONPATH": ROOT, **environment}
    ray.init(
        address=address,
        logging_level="WARNING",
        log_to_driver=False,
        runtime_env={
            "env_vars": variables,
            **({"worker_process_setup_hook": hook} if hook else {}),
        },
    )
    settings = config.Config.parse(values)
    if hook:
        pydoc.locate(hook)()
    try:
        command.guarded(lambda: print(job.run(settings, shard=shard).to_dict()))
    except command.typer.Exit as status:
        sys.exit(status.exit_code)


def actors(name):
    """Processes of this test's clusters that are actors of a class."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"({name})" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def files(output):
    """How many labelled files there are on disk."""
    return len(list(Path(output).glob("labelled/**/[!.]*.parquet")))


def labelled(output, folder="labelled", filesystem=None, but=()):
    """All rows of a set, in order of their ids."""
    return (
        pq.read_table(f"{output}/{folder}", filesystem=filesystem)
        .drop_columns(list(but))
        .sort_by("data_id")
    )


def assert_same(output, unbroken, filesystem=None, but=()):
    """Both sets equal those of an unbroken run, row for row, bit for bit; none is there twice."""
    for folder in ("labelled", "selected"):
        table = labelled(output, folder, filesystem, but)
        ids = table["data_id"].to_pylist()
        assert len(ids) == len(set(ids))
        assert table.equals(labelled(unbroken, folder, but=but)), folder


def write_corpus(folder, texts):
    """One JSONL file for every few texts."""
    folder.mkdir(parents=True)
    for part in range(0, len(texts), 4):
        lines = "".join(json.dumps({"content": text}) + "\n" for text in texts[part : part + 4])
        (folder / f"{part:05d}.jsonl").write_text(lines)
