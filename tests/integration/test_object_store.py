"""The main job against a real object store."""

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs

import longattn as la
from longattn.errors import HeldError
from longattn.resume.shards import held
from longattn.storage.files import list_files, read_json
from longattn.storage.tables import open_parquet
from tests.conftest import config
from tests.labelled import labelled_table, write_labelled
from tests.resume.test_lock import HOLD, OWNER, ask_at_once
from tests.s3 import CountingProxy, environment

pytestmark = pytest.mark.usefixtures("gateway", "ray_cluster")


def rows(path, filesystem=None):
    return pq.read_table(path, filesystem=filesystem).sort_by("data_id")


def test_a_run_over_the_store_gives_what_local_disk_gives_and_two_actors_what_one_gives(
    gateway, corpus, checkpoint, finished, tmp_path, monkeypatch
):
    """The corpus, the model and the output are there."""
    here, by_process = finished
    monkeypatch.setenv("LONGATTN_CACHE", str(tmp_path))
    fs = s3fs.S3FileSystem(endpoint_url=gateway.endpoint, skip_instance_cache=True)
    fs.put(f"{corpus}/", "bucket/corpus/", recursive=True)
    fs.put(f"{checkpoint}/", "bucket/model/", recursive=True)
    workers = {"window": [1, 1], "score": [2, 2]}
    settings = config("s3://bucket/corpus", "s3://bucket/out", "s3://bucket/model", workers=workers)
    first = la.run(settings)
    assert first.fingerprint == by_process.fingerprint
    for folder in ("labelled", "selected"):
        there = rows(f"bucket/out/{folder}", fs)
        assert there["source"][0].as_py().startswith("s3://bucket/corpus/")
        wanted = rows(f"{here.output}/{folder}").drop_columns(["source"])
        assert there.drop_columns(["source"]).equals(wanted)
    assert fs.exists("bucket/out/_longattn/summary.json")
    again = la.run(settings, executor="local")
    assert again.window.documents == again.score.windows == 0
    assert again.categories == first.categories


def test_a_narrow_read_fetches_that_column_alone(gateway):
    ids = [f"{i:032x}" for i in range(256)]
    values = np.linspace(0, 1, 256)
    write_labelled("s3://bucket/narrow", "a", labelled_table("a", ids, values, values, window=2048))
    ((url, size),) = list_files("s3://bucket/narrow", ".parquet").items()
    proxy = CountingProxy(gateway.endpoint)
    with environment(AWS_ENDPOINT_URL=proxy.endpoint), open_parquet(url) as parquet:
        footer = proxy.received
        assert parquet.read(columns=["ds"])["ds"].to_pylist() == values.tolist()
    proxy.close()
    assert size > 200_000 and footer > 1000  # it does go through the proxy
    assert proxy.received - footer < 8192 + 4 * 1000  # 256 doubles, and headers of 4 row groups


def test_selecting_fetches_narrow_columns_alone(gateway):
    ids = [f"{i:032x}" for i in range(256)]
    values = np.linspace(0, 1, 256)
    output = "s3://bucket/narrow-select"
    write_labelled(output, "a", labelled_table("a", ids, values, values, window=2048))
    (size,) = list_files(output, ".parquet").values()
    proxy = CountingProxy(gateway.endpoint)
    with environment(AWS_ENDPOINT_URL=proxy.endpoint):
        told = la.select(output, keep={"tokens": 1})["a"]  # keeps none: whole rows are not read
    proxy.close()
    assert (told.windows, told.kept) == (256, 0)
    assert size > 400_000 and 1000 < proxy.received < 120_000


def test_the_hold_on_a_folder(gateway):
    output = "s3://bucket/held"
    command = [sys.executable, "-c", OWNER, output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=f"pid {owner.pid}"), held(output):
            pass
        owner.kill()
    for before in ("nothing", "a dead hold"):  # the first of them all takes the killed one's over
        ask_at_once(output, before, rounds=5)
    assert read_json(f"{output}/{HOLD}") is None
