"""One run by both executors: the files of a cluster are those of one process, byte for byte."""

import pytest

import longattn as la
from tests.conftest import config
from tests.labelled import data_files


@pytest.fixture(scope="module")
def on_ray(corpus, tmp_path_factory, checkpoint, ray_cluster):
    settings = config(corpus, tmp_path_factory.mktemp("on_ray"), checkpoint)
    return settings, la.run(settings)


def test_both_executors_write_the_same_files(finished, on_ray):
    (here, by_process), (there, by_ray) = finished, on_ray
    files = data_files(here.output)
    assert files == data_files(there.output)
    assert {name.partition("/")[0] for name in files} == {"labelled", "selected"}
    for one, two in zip(by_process.categories.values(), by_ray.categories.values(), strict=True):
        assert one.to_dict() == two.to_dict()
    assert by_process.fingerprint == by_ray.fingerprint
    assert by_process.score.windows == by_ray.score.windows == by_ray.window.windows
    assert by_process.window.bytes == by_ray.window.bytes > 0
