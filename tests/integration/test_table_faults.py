"""Score tables broken while they are written: whole or absent, and in the end bit for bit the same."""

import os
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs

import longattn as la
from longattn.pipeline import execution
from longattn.reports.verify import verify
from tests import faults
from tests.conftest import _first_document
from tests.faults import finish, settings, until
from tests.labelled import data_files
from tests.s3 import FaultyProxy, moto_server

SLOW = "tests.hooks.slow_tables"
BROKEN = "tests.hooks.impatient_clients"


@pytest.fixture(scope="module")
def unbroken(checkpoint, tmp_path_factory):
    """The settings of a whole run with three scores, in this process: a dozen labelled files."""
    text, folder = _first_document("book"), tmp_path_factory.mktemp("tables")
    faults.write_corpus(
        folder / "documents/book", [text[p : p + 7000] for p in range(0, 150_000, 4500)]
    )
    scores = [
        {"name": "text", "kind": "measures"},
        {
            "name": "gap",
            "kind": "loss_gap",
            "model": checkpoint,
            "short": 64,
            "where": [{"column": "compression_ratio", "quantiles": [0.1, 0.9]}],
        },
        {"name": "deep", "kind": "attention", "model": checkpoint},
    ]
    config = settings(folder / "documents", folder / "out", checkpoint, scores=scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(execution.BLOCK_BYTES, "cpu", 64 << 10)
        la.run(config, executor="local")
    assert list(verify(config.output)) == []
    return config


def without_tables(unbroken, output):
    """The settings of a copy of that run, as it was before its tables were computed."""
    shutil.copytree(unbroken.output, output)
    shutil.rmtree(output / "scores")
    shutil.rmtree(output / "_longattn/scores")
    return unbroken.model_copy(update={"output": str(output)})


def tables(output):
    return [
        path for path in Path(output, "scores").rglob("*.parquet") if not path.name.startswith(".")
    ]


def test_a_driver_and_an_actor_killed_and_sigterm_while_tables_are_written(
    cluster, unbroken, tmp_path
):
    config = without_tables(unbroken, tmp_path / "out")
    all_tables = len(tables(unbroken.output))

    def started():
        return faults.start(config, cluster.address, tmp_path / "log", hook=SLOW)

    run = started()
    until(lambda: len(tables(config.output)) >= 2, run)
    run.kill()
    run.join()
    for path in tables(config.output):  # none is half there
        pq.read_table(path)
    first = len(tables(config.output))
    assert 2 <= first < all_tables
    run = started()
    until(lambda: len(tables(config.output)) > first, run)
    os.kill(run.pid, signal.SIGTERM)
    assert finish(run) == 75, (tmp_path / "log").read_text()
    second = len(tables(config.output))
    assert first < second < all_tables
    run = started()
    until(lambda: len(tables(config.output)) > second, run)
    actors = faults.actors("MapBatches(ScoreTables)")
    assert actors
    for actor in actors:
        actor.kill()
    assert finish(run) == 0, (tmp_path / "log").read_text()
    assert data_files(config.output) == data_files(unbroken.output)
    assert not list(tmp_path.glob("out/**/.*.tmp"))
    assert list(verify(config.output)) == []


def test_a_store_that_breaks_a_third_of_requests(cluster, unbroken, tmp_path):
    with moto_server() as endpoint:
        config = without_tables(unbroken, tmp_path / "out")
        fs = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
        fs.put(f"{config.output}/", "bucket/out/", recursive=True)
        remote = config.model_copy(update={"output": "s3://bucket/out"})
        proxy = FaultyProxy(endpoint)
        variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        run = faults.start(
            remote,
            cluster.address,
            tmp_path / "log",
            hook=BROKEN,
            environment={**variables, "AWS_ENDPOINT_URL": proxy.endpoint},
        )
        assert finish(run) == 0, (tmp_path / "log").read_text()
        proxy.close()
        assert sum(proxy.faults.values()) > 10, proxy.faults
        fs.invalidate_cache()
        fs.get("bucket/out/scores/", f"{tmp_path}/there/scores/", recursive=True)
    there = data_files(tmp_path / "there")
    wanted = {k: v for k, v in data_files(unbroken.output).items() if k.startswith("scores")}
    assert there == wanted


def test_tables_that_cannot_be_written_fail_in_one_line_and_come_later(cluster, unbroken, tmp_path):
    config = without_tables(unbroken, tmp_path / "out")
    (tmp_path / "out/scores").mkdir()
    gap = tmp_path / "out/scores/gap"
    gap.write_text("a file where a folder belongs")
    run = faults.start(config, cluster.address, tmp_path / "log")
    assert finish(run) == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("longattn: ") and "tables of score gap are missing: gap at " in last
    gap.unlink()
    la.run(config, executor="local")
    assert data_files(config.output) == data_files(unbroken.output)
