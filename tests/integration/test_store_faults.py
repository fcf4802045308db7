"""Stores and disks broken under a run, compared with an unbroken one: nothing lost, nothing twice."""

import os
import subprocess
import time

import pyarrow.parquet as pq
import pytest
import s3fs

import longattn as la
from longattn.reports.verify import verify
from tests import faults
from tests.faults import finish, settings, until
from tests.s3 import FaultyProxy

IMPATIENT = "tests.hooks.impatient_clients"
PATIENT = "tests.hooks.patient_clients"


@pytest.fixture(scope="module")
def store(gateway, documents):
    """The corpus in a real object store, and what a run needs to reach it by some endpoint."""
    fs = s3fs.S3FileSystem(
        endpoint_url=gateway.endpoint, skip_instance_cache=True, use_listings_cache=False
    )
    fs.put(f"{documents}/", "bucket/faults/corpus/", recursive=True)
    return fs, {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def test_a_store_that_breaks_a_third_of_requests(
    cluster, store, gateway, checkpoint, documents, tmp_path
):
    """Over three files of the corpus: a request that is never answered takes a second."""
    fs, variables = store
    proxy = FaultyProxy(gateway.endpoint)
    part = {"category": "book", "path": "s3://bucket/faults/corpus/book/0000*"}
    config = settings("", "s3://bucket/faults/broken", checkpoint, sources=[part])
    here = {**part, "path": f"{documents}/book/0000*"}
    whole = settings("", tmp_path / "whole", checkpoint, sources=[here])
    la.run(whole, executor="local")
    run = faults.start(
        config,
        cluster.address,
        tmp_path / "log",
        hook=IMPATIENT,
        block=256 << 10,
        environment={**variables, "AWS_ENDPOINT_URL": proxy.endpoint},
    )
    assert finish(run) == 0, (tmp_path / "log").read_text()
    proxy.close()
    assert all(proxy.faults[kind] > 3 for kind in proxy.KINDS), proxy.faults
    faults.assert_same("bucket/faults/broken", whole.output, fs, but=["source"])
    assert list(verify(config.output)) == []


def test_a_store_killed_and_started_again_under_way(
    cluster, store, gateway, checkpoint, unbroken, tmp_path
):
    fs, variables = store
    config = settings("s3://bucket/faults/corpus", "s3://bucket/faults/killed", checkpoint)
    run = faults.start(
        config, cluster.address, tmp_path / "log", hook=PATIENT, environment=variables
    )
    until(lambda: fs.find("bucket/faults/killed/labelled"), run)
    gateway.kill()
    time.sleep(3)
    gateway.start()
    assert finish(run) == 0, (tmp_path / "log").read_text()
    faults.assert_same("bucket/faults/killed", unbroken, fs, but=["source"])
    assert list(verify(config.output)) == []


def test_a_disk_that_fills_up(cluster, documents, checkpoint, unbroken, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        config = settings(documents, disk / "out", checkpoint)
        assert finish(faults.start(config, cluster.address, tmp_path / "log")) == 1
        assert "No space left on device" in (tmp_path / "log").read_text()
        for file in (disk / "out").glob("labelled/**/[!.]*.parquet"):
            pq.read_table(file)  # none is half there
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        assert finish(faults.start(config, cluster.address, tmp_path / "log")) == 0
        faults.assert_same(disk / "out", unbroken)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
