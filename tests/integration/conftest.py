"""A real object store, and a Ray cluster whose runs are broken, with one that was not."""

import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest

from longattn.reports.verify import verify
from tests import faults
from tests.conftest import _first_document, _shared_by
from tests.faults import finish, settings
from tests.s3 import KEYS, environment, free_port

CEPH = Path(__file__).parent / "ceph_rgw.sh"


@dataclass
class Gateway:
    """A Ceph object gateway, its monitor and its one disk, in a folder."""

    folder: Path
    port: int
    monitor_port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["bash", CEPH, self.folder, str(self.port), str(self.monitor_port)]
        subprocess.run(
            command,
            check=True,
            timeout=120,
            env={**os.environ, **KEYS},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """SIGKILL to all of its daemons; what was stored stays."""
        for file in (self.folder / "run").glob("*.pid"):
            os.kill(int(file.read_text()), signal.SIGKILL)
            file.unlink()


@pytest.fixture(scope="session")
def gateway():
    """A started gateway with a bucket named `bucket`; the environment points clients at it."""
    folder = Path(tempfile.mkdtemp(prefix="la-ceph-"))
    store = Gateway(folder, free_port(), free_port())
    # Ceph 16 knows the checksums of newer clients only in part, and no location us-east-1.
    variables = {
        "AWS_ENDPOINT_URL": store.endpoint,
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        **KEYS,
    }
    store.start()
    try:
        with environment(**variables):
            boto3.client("s3", region_name="default").create_bucket(Bucket="bucket")
            yield store
    finally:
        store.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def s3(gateway):
    """In place of the server of the fast tests: `ray_cluster` and its workers reach this store."""
    return gateway.endpoint


@pytest.fixture(scope="session")
def cluster():
    with faults.cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    text = _first_document("book")
    folder = tmp_path_factory.mktemp("documents")
    faults.write_corpus(
        folder / "book", [text[p : p + 7000 + p % 900] for p in range(0, 305_000, 4500)]
    )
    return folder


@pytest.fixture(scope="session")
def unbroken(cluster, documents, checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken")
    run = faults.start(settings(documents, output, checkpoint), cluster.address, output / "log")
    assert finish(run) == 0, (output / "log").read_text()
    assert list(verify(str(output))) == []
    return output


@pytest.fixture(scope="session")
def ray_cluster(s3, tmp_path_factory):
    """Ray on this machine alone, its workers able to reach the S3 server."""
    import ray

    if "PYTEST_XDIST_WORKER" in os.environ:  # one of the processes starts it: `_shared_by`
        (tmp_path_factory.getbasetemp().parent / "ray_cluster").touch(exist_ok=False)
    folder = tempfile.mkdtemp(prefix="la-")  # short: Ray puts Unix sockets below it
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with environment(LONGATTN_CACHE=f"{folder}/models"):  # of the workers, which get it from Ray
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            _temp_dir=folder,
            logging_level="WARNING",
            object_store_memory=300 * 2**20,
        )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


LONGEST = (
    "faults", "cluster", "table_faults", "submit", "follow", "broken_files", "corruption", "nodes",
    "chain", "kernels", "processes", "remote_model",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """What takes longest comes first, before all what shares servers: at the end no process waits for it."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (_shared_by(item.path) is None, place.get(item.path.name, len(place)))
    )
