"""A Ray cluster that cannot be started says what to set."""

import errno
import logging
import os
import socket

import pytest
import ray
from ray._private import services, utils
from ray.exceptions import AuthenticationError

from longattn import cluster
from longattn.errors import ConfigError


@pytest.fixture
def no_cluster(monkeypatch):
    """As where no Ray is connected to; the arguments that `ray.init` gets. The tests' own Ray goes on."""
    given = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **named: given.append(named))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "_require_answer", lambda address: None)
    return given


def test_a_ray_that_runs_here_is_named_before_it_is_joined(no_cluster, monkeypatch, caplog):
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "10.0.0.7:6379")
    with caplog.at_level(logging.INFO, "longattn"), cluster.connected():
        assert len(no_cluster) == 1
    assert caplog.messages == [
        "connecting to Ray at 10.0.0.7:6379, which runs here (RAY_ADDRESS=local starts another)"
    ]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with caplog.at_level(logging.INFO, "longattn"), cluster.connected():
        pass
    assert caplog.messages[1:] == ["connecting to Ray at head:6379"]


def test_where_no_ray_runs_one_is_started(no_cluster, monkeypatch, caplog):
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: None)
    with caplog.at_level(logging.INFO, "longattn"), cluster.connected():
        pass
    assert caplog.messages == ["starting a Ray for this run; RAY_ADDRESS=HOST:PORT takes another"]


def test_a_ray_that_asks_for_another_token_is_a_setting(no_cluster, monkeypatch):
    """`ray start` takes tokens where there is one; a driver that is given an address never does."""

    def refused(**_):
        raise ConnectionError(
            "Failed to connect to Ray cluster at 10.0.0.7:6379"
        )  # Ray's own words

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ConfigError) as caught, cluster.connected():
        pass
    said = str(caught.value)
    assert said.startswith("Failed to connect to Ray cluster at 10.0.0.7:6379: ")
    assert "the RAY_AUTH_MODE of here (not set)?" in said and "set RAY_AUTH_MODE=token" in said
    assert "\n" not in said


def test_an_address_where_nothing_listens_is_refused_at_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for of in (address, f"ray://{address}", "auto"):
            cluster._require_answer(of)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS {address}: nothing answers there"):
        cluster.connected().__enter__()


def test_a_token_that_is_not_there_is_a_setting(no_cluster, monkeypatch):
    def refused(**_):
        raise AuthenticationError(
            "Token authentication is enabled but no token was found. Ensure\nthat"
        )

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError) as caught, cluster.connected():
        pass
    said = str(caught.value)
    assert said.startswith(
        "RAY_AUTH_MODE token: Token authentication is enabled but no token was found"
    )
    assert "\n" not in said and "auth_token" in said


@pytest.mark.parametrize("token_there", [False, True])
def test_a_ray_that_asks_for_a_token_is_one_line_without_its_own(
    no_cluster, monkeypatch, capfd, tmp_path, token_there
):
    monkeypatch.setenv("HOME", str(tmp_path))
    if token_there:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("abc")

    def refused(**_):
        for second in range(3):
            os.write(
                2,
                b"[2026-01-02 03:04:0%d,1 W 1 1] gcs_client.cc:210: Failed to get cluster ID from GCS "
                b"server: Unauthenticated: RPC error: InvalidAuthToken\n" % second,
            )
        os.write(2, b"another line\n")
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.7:6379")

    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ConfigError) as caught, cluster.connected():
        pass
    assert str(caught.value) == (
        "RAY_AUTH_MODE not set: the Ray at 10.0.0.7:6379 asks for a token, and got none or another: set "
        "RAY_AUTH_MODE=token, and put the token of the cluster into ~/.ray/auth_token "
        + ("(a token is there)" if token_there else "or RAY_AUTH_TOKEN")
    )
    told = capfd.readouterr().err
    assert "gcs_client" not in told and "another line" in told


def test_local_starts_one_though_another_runs_here(no_cluster, monkeypatch, caplog):
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _: "10.0.0.7:6379")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with caplog.at_level(logging.INFO, "longattn"), cluster.connected():
        pass
    assert caplog.messages == ["starting a Ray for this run; RAY_ADDRESS=local says so"]


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_a_setting(no_cluster, monkeypatch, name):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = "/tmp/" + "long/" * 30
    monkeypatch.setenv(name, folder)

    def refused(**_):
        utils.validate_socket_filepath(f"{folder}/ray/session/sockets/raylet")  # Ray's own words

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(ConfigError) as caught, cluster.connected():
        pass
    said = str(caught.value)
    assert said.startswith(f"{name} {folder}: ") and "set RAY_TMPDIR to a folder" in said
    assert "\n" not in said


def test_a_home_that_cannot_be_written_is_a_setting(monkeypatch):
    def refused(**_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/.ray")

    monkeypatch.setenv("RAY_ADDRESS", "local")  # whatever else runs on this machine
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
