import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from s3fs import S3FileSystem

from longattn.errors import HeldError
from longattn.resume import lock
from longattn.resume.lock import EXPIRES, Hold
from longattn.resume.shards import held
from longattn.storage.files import join, read_json, write_json
from tests.s3 import FaultyProxy, environment

HOLD = "_longattn/hold.json"
OWNER = """
import sys, time
from longattn.resume.shards import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "s3"])
def output(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path)
    request.getfixturevalue("s3")
    return f"s3://bucket/{tmp_path.name}"


def other_machine(output, **more):
    """A hold as a run on another machine leaves it."""
    owner = {"token": "t", "host": "elsewhere", "pid": 7, "since": "2026-01-01T00:00:00"}
    write_json(join(output, HOLD), {**owner, "beat": 0, **more})


def dead_process(output):
    """A hold as a run of this machine leaves it whose process is gone."""
    hold = Hold(join(output, HOLD))
    write_json(join(output, HOLD), {**hold.owner, "pid": 2**22 + 1})  # above the highest pid


def test_a_folder_is_held_once_and_released(output):
    with held(output) as hold:
        assert read_json(join(output, HOLD))["pid"] == os.getpid()
        with (
            pytest.raises(HeldError, match=rf"host \S+, pid {os.getpid()}, since 20"),
            held(output),
        ):
            pass
        assert not hold.lost
    assert read_json(join(output, HOLD)) is None


def test_the_hold_of_a_killed_process_of_this_machine_is_taken_at_once(output):
    command = [sys.executable, "-c", OWNER, output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match=f"pid {owner.pid}"), held(output):
            pass
        owner.send_signal(signal.SIGKILL)
    started = time.monotonic()
    with held(output):
        assert time.monotonic() - started < EXPIRES / 10


def test_the_hold_of_another_machine_expires_when_it_stops_beating(output, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES", 1.0)
    monkeypatch.setattr(lock, "BEAT", 0.2)
    other_machine(output)
    with held(output):
        assert read_json(join(output, HOLD))["pid"] == os.getpid()


def test_a_beating_hold_of_another_machine_is_refused_by_its_name(output, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.2)
    other_machine(output)
    monkeypatch.setattr(lock.time, "sleep", lambda _: other_machine(output, beat=1))
    with pytest.raises(HeldError, match="host elsewhere, pid 7, since 2026"), held(output):
        pass


@pytest.mark.parametrize("first", ["", "written"])
def test_a_container_of_the_same_name_is_another_machine(tmp_path, monkeypatch, first):
    """Its boot or process space is another, and it may have created its hold only just now."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    there = {"host": socket.gethostname(), "boot": "another", "started": "1"}
    other_machine(str(tmp_path), **there)
    if not first:
        (tmp_path / HOLD).write_text("")
    monkeypatch.setattr(lock.time, "sleep", lambda _: other_machine(str(tmp_path), **there, beat=1))
    with pytest.raises(HeldError, match="pid 7, since 2026"), held(str(tmp_path)):
        pass


def test_a_hold_that_was_taken_over_is_known_to_be_lost_and_left_alone(output, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.1)
    told = []
    with held(output, told.append) as hold:
        deadline = time.monotonic() + 10
        while not hold.lost and time.monotonic() < deadline:
            other_machine(output)  # again, since a beat may come between
            time.sleep(0.05)
        assert hold.lost
    assert str(told[0]) == f"{output}: another run has taken the folder over"
    assert read_json(join(output, HOLD))["host"] == "elsewhere"


def test_a_hold_written_in_part_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES", 0.5)
    path = tmp_path / HOLD
    path.parent.mkdir()
    path.write_text("")
    with held(str(tmp_path)):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_hold_whose_creation_was_not_answered_is_known_as_ones_own(s3, tmp_path):
    proxy = FaultyProxy(s3)
    kinds = iter(["lost"])  # of the conditional put; the one tried again meets our own hold
    proxy.kind = lambda: next(kinds, "passed")
    S3FileSystem.clear_instance_cache()
    with (
        environment(AWS_ENDPOINT_URL=proxy.endpoint),
        held(f"s3://bucket/{tmp_path.name}-unanswered"),
    ):
        assert next(kinds, None) is None
    proxy.close()
    S3FileSystem.clear_instance_cache()


def ask_at_once(output, before, rounds):
    """Six ask for a hold at once: of each round one gets it."""
    ready = Barrier(6)

    def ask(hold):
        ready.wait()
        try:
            hold.acquire()
            return True
        except HeldError:
            return False

    with ThreadPoolExecutor(ready.parties) as pool:
        for _ in range(rounds):
            if before == "a dead hold":
                dead_process(output)
            holds = [Hold(join(output, HOLD)) for _ in range(ready.parties)]
            got = list(pool.map(ask, holds))
            assert got.count(True) == 1
            holds[got.index(True)].release()


@pytest.mark.parametrize("before", ["nothing", "a dead hold"])
def test_of_many_that_ask_at_once_one_gets_the_hold(output, before):
    ask_at_once(output, before, rounds=2)


def test_a_hold_that_another_has_now_is_not_removed_on_release(output):
    hold = Hold(join(output, HOLD))
    hold.acquire()
    other_machine(output)  # since the last beat, so that it is not known to be lost
    hold.release()
    assert not hold.lost and read_json(join(output, HOLD))["host"] == "elsewhere"
    write_json(join(output, HOLD), hold.owner)
    hold.release()
    assert read_json(join(output, HOLD)) is None


def test_runs_that_died_one_after_the_other_are_counted(tmp_path):
    for takeovers in (1, 2, 3):
        hold = Hold(join(str(tmp_path), HOLD))
        dead = {**hold.owner, "pid": 2**22 + 1, "takeovers": takeovers - 1}
        write_json(join(str(tmp_path), HOLD), dead)
        with held(str(tmp_path)) as hold:
            assert hold.owner["takeovers"] == takeovers
            assert read_json(join(str(tmp_path), HOLD))["takeovers"] == takeovers


def test_a_hold_that_a_full_disk_cuts_short_is_not_left(tmp_path, monkeypatch):
    path = tmp_path / HOLD

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")

    whole = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *a, **k: Full(whole(self, *a, **k)) if self == path else whole(self, *a, **k),
    )
    with pytest.raises(OSError, match="No space left"), held(str(tmp_path)):
        pass
    assert not path.exists()
    monkeypatch.undo()
    with held(str(tmp_path)):
        pass


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1]", b"null", b"\xff", b"[" * 100_000, b'{"host": 1}']
)
def test_a_broken_hold_is_waited_out_as_a_dead_one(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "EXPIRES", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    (tmp_path / "_longattn").mkdir()
    (tmp_path / HOLD).write_bytes(text)
    with held(str(tmp_path)):
        assert read_json(join(str(tmp_path), HOLD))["pid"] == os.getpid()


def test_a_hold_of_this_machine_without_its_process_is_waited_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES", 0.2)
    monkeypatch.setattr(lock, "BEAT", 0.1)
    owner = {key: Hold("x").owner[key] for key in ("host", "boot")}
    write_json(join(str(tmp_path), HOLD), owner)
    with held(str(tmp_path)) as hold:
        assert hold.owner["takeovers"] == 1
