"""A Ray cluster that cannot be started says what to set."""

import errno

import pytest
import ray

from longattn import cluster
from longattn.errors import ConfigError


def test_a_home_that_cannot_be_written_is_a_setting(monkeypatch):
    def refused(**_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/.ray")

    monkeypatch.setenv("HOME", "/proc")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # the other tests' Ray goes on
    with (
        pytest.raises(ConfigError, match=r"HOME /proc: Ray .*: set HOME .*, or RAY_AUTH_MODE="),
        cluster.connected(),
    ):
        pass
    monkeypatch.setenv("HOME", "/root")
    with pytest.raises(FileNotFoundError, match=r"/proc/\.ray"), cluster.connected():
        pass
