"""Runs in processes of their own, to be broken, and what they wrote."""

import functools
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq

ROOT = str(Path(__file__).parents[1])
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["longattn.pipeline", "longattn.scoring.scorer", "tests.faults"])


def start(settings, address, log, *, environment=None, hook=None):
    """`longattn run` of these settings in a process; its exit code is the command's status."""
    values = settings.model_dump(mode="json", exclude_none=True)
    process = FORK.Process(target=_drive, args=(values, address, str(log), environment or {}, hook))
    process.start()
    return process


def _drive(values, address, log, environment, hook):
    import ray

    from longattn import cli, config, corpus, pipeline, pools

    os.setsid()
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment, RAY_AUTH_MODE="disabled", RAY_ADDRESS=address)
    # Blocks of a few windows and tasks of one file, as a large corpus has many.
    pools.CPU_BLOCK = 64 << 10
    pipeline.group_splits = functools.partial(corpus.group_splits, target_bytes=1)
    variables = {"PYTHONPATH": ROOT, **environment}
    ray.init(
        address=address, logging_level="WARNING", log_to_driver=False,
        runtime_env={"env_vars": variables, **({"worker_process_setup_hook": hook} if hook else {})},
    )  # fmt: skip
    settings = config.Config.parse(values)
    try:
        cli._guarded(lambda: print(pipeline.run(settings).to_dict()))
    except cli.typer.Exit as status:
        sys.exit(status.exit_code)


def deadly_documents():
    """Set up in every worker: a document with a certain word kills the process that tokenizes it."""
    from longattn.tokenization import DocumentTokenizer

    encode = DocumentTokenizer.encode

    def guarded(self, text):
        if b"KILLS ITS PROCESS" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"EATS ALL MEMORY" in text:
            import resource

            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
            text = text * 4096
        return encode(self, text)

    DocumentTokenizer.encode = guarded


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
