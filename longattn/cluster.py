"""A Ray cluster to work on: the one that is connected to, that of RAY_ADDRESS, or one started here."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants, services
from ray.exceptions import AuthenticationError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from longattn.errors import ConfigError
from longattn.ray_messages import without_noise
from longattn.storage.files import filesystem, is_local
from longattn.storage.output_folder import OutputFolder

log = logging.getLogger("longattn")
ANSWER_SECONDS = 15
LONGEST_TMPDIR = 36  # bytes; Ray adds /ray/session_<time>_<pid>/sockets/plasma_store and the like


@contextmanager
def connected() -> Iterator[None]:
    """A Ray cluster: the one connected to, that of RAY_ADDRESS, one that runs here, or one started.

    RAY_ADDRESS=local starts one whatever runs here.

    One started here listens on the loopback address alone: no other machine reaches it. SIGTERM
    does what it did before, though `ray.init` takes it for itself.
    """
    if ray.is_initialized():
        with without_noise():
            yield
        return
    before = signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    noise: Sequence[bytes] | None = None
    try:
        try:
            # The second is one that `ray start` left on this machine: `ray.init` would join it too.
            given = os.environ.get("RAY_ADDRESS")
            address = None if given == "local" else given or services.find_bootstrap_address(None)
            if address:
                found = "" if given else ", which runs here (RAY_ADDRESS=local starts another)"
                log.info("connecting to Ray at %s%s", address, found)
                _require_answer(address)
            else:
                why = (
                    "RAY_ADDRESS=local says so" if given else "RAY_ADDRESS=HOST:PORT takes another"
                )
                log.info("starting a Ray for this run; %s", why)
            with without_noise() if address else _on_loopback() as noise:
                ray.init(logging_level=logging.WARNING)
        except SystemExit:  # Ray's handler
            if main and callable(before):
                before(signal.SIGTERM, None)
            raise
        except OSError as error:
            if noise and b"Unauthenticated" in noise[0]:
                raise _token_asked(address) from error
            raise _setting(error) from error
        except AuthenticationError as error:
            why = " ".join(error.message.split()).rstrip(".")
            raise ConfigError(
                f"RAY_AUTH_MODE {os.environ.get('RAY_AUTH_MODE', 'not set')}: {why}: put the token of the "
                "cluster into ~/.ray/auth_token or RAY_AUTH_TOKEN; where it asks for none, set RAY_AUTH_MODE="
                "disabled"
            ) from error
        finally:
            if main and callable(before):
                signal.signal(signal.SIGTERM, before)
        yield
    finally:
        ray.shutdown()


def _token_asked(address: str | None) -> ConfigError:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    there = (Path.home() / ".ray" / "auth_token").is_file()
    what = "(a token is there)" if there else "or RAY_AUTH_TOKEN"
    return ConfigError(
        f"RAY_AUTH_MODE {mode}: the Ray at {address} asks for a token, and got none or another: set "
        f"RAY_AUTH_MODE=token, and put the token of the cluster into ~/.ray/auth_token {what}"
    )


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself asks there for minutes. Raises ConfigError."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS {address}: nothing answers there ({error}); allowed: the host:port of a Ray head "
            "that runs, as `ray start` prints it; without RAY_ADDRESS one is started here"
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray that is started in the block listens on 127.0.0.1, as it does where clusters are off.

    Given `_node_ip_address="127.0.0.1"`, it takes this machine's other address all the same.
    """
    name, clusters = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _setting(error: OSError) -> OSError | ConfigError:
    """The error; where Ray's folder, its token or the folder of that is the reason, what to set."""
    if isinstance(error, ConnectionError) and "Ray cluster" in str(error):
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        return ConfigError(
            f"{error}: is it up, and was it started with the RAY_AUTH_MODE of here ({mode})? `ray start` "
            "takes token by itself once ~/.ray/auth_token is there: set RAY_AUTH_MODE=token, or disabled"
        )
    if "AF_UNIX path length" in str(error):
        name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        folder = os.environ.get(name, "/tmp")
        return ConfigError(
            f"{name} {folder}: its path of {len(os.fsencode(folder))} bytes is too long for the sockets "
            f"that Ray makes below it: set RAY_TMPDIR to a folder of at most {LONGEST_TMPDIR} bytes"
        )
    home = str(Path.home())
    if not str(error.filename or "").startswith(f"{home}/.ray"):
        return error
    return ConfigError(
        f"HOME {home}: Ray keeps a token there and cannot write it ({error.strerror}): set HOME to a "
        "folder that can be written, or RAY_AUTH_MODE=disabled"
    )


def require_shared_folder(output: str) -> None:
    """Refuse a local output that a node of the cluster does not see.

    Each node is asked with one small task whether it reads the hold of this run there. Nodes that
    come later are not asked.

    Raises ConfigError naming the first node that does not.
    """
    url = OutputFolder(output).record("hold")
    fs, path = filesystem(url)
    if not is_local(fs):
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0, max_retries=0)(_token_at)
    asked = {
        node["NodeManagerAddress"]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(path)
        for node in nodes
        if node["NodeID"] != here
    }
    mine = _token_at(path)
    for address, answer in asked.items():
        if ray.get(answer) != mine:
            raise ConfigError(
                f"output {output} is on this machine's disk, and node {address} does not see it: "
                "choose s3:// or another store, or a folder that all nodes mount"
            )


def _token_at(path: str) -> str | None:
    try:
        token: str = json.loads(Path(path).read_bytes())["token"]
        return token
    except (OSError, ValueError, KeyError):
        return None
