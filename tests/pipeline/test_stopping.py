import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from longattn.errors import Interrupted
from longattn.pipeline.stopping import Sign, every, stop_on_sigterm

STUCK = """
import ctypes
from longattn.pipeline import stopping

stopping.LAST = 1
c = ctypes.CDLL(None)
mutex = ctypes.create_string_buffer(64)
with stopping.stop_on_sigterm():
    print("ready", flush=True)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)  # never returns, and no handler in Python runs
"""


def test_a_process_that_is_stuck_in_c_ends_with_the_status_that_says_resume_me():
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(2)  # in the second lock by now
        process.terminate()
        assert process.wait(60) == 75
        assert process.stderr.read() == "longattn: stopped by SIGTERM; run again to go on\n"


def test_what_fails_after_sigterm_was_stopped_by_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted), stop_on_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt as error:
            raise ValueError(
                "of a library that turns what it meets into errors of its own"
            ) from error
    with pytest.raises(ValueError, match="by itself"), stop_on_sigterm():
        raise ValueError("by itself")
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_ends_at_once_what_swallows_exceptions_and_nothing_in_flight_is_told(caplog):
    """As Ray does while it starts, where nothing is in flight."""
    with pytest.raises(Interrupted, match="Ctrl-C"), stop_on_sigterm() as stop:
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        pytest.fail("it goes on")  # pragma: no cover
    assert not caplog.messages
    reached = []
    with pytest.raises(Interrupted, match="Ctrl-C"), stop_on_sigterm() as stop:
        with contextlib.suppress(KeyboardInterrupt):  # also by such a one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        with stop.draining(lambda: None, lambda: Sign(0)):
            reached.append(1)
    assert not reached and not caplog.messages


TAKEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell lets what it starts with & ignore it
IMPORTING = """
import os, signal, sys
import longattn.__main__ as program

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
program.main()
"""
WORKING = """
import os, signal, time
from longattn.command import guarded

def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except BaseException as error:
        raise ImportError("as a library that was interrupted while it was imported") from error

guarded(work)
"""


@pytest.mark.parametrize("code", [IMPORTING, WORKING], ids=["importing", "working"])
def test_ctrl_c_before_a_run_is_one_line_and_its_status(code):
    result = subprocess.run(
        [sys.executable, "-c", TAKEN + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "longattn: stopped by Ctrl-C\n"


def test_what_watches_ends_quietly_when_what_it_watches_is_gone(monkeypatch, caplog):
    """A signal to a whole process group takes Ray's processes as well; the run itself says so."""
    called, printed = [], []
    monkeypatch.setattr(threading, "excepthook", printed.append)

    def look():
        called.append(1)
        raise RuntimeError("actor unavailable")

    with caplog.at_level(logging.DEBUG, "longattn"), every(0.001, look):
        time.sleep(0.2)
    assert len(called) == 1 and not printed
    assert "watching ended: actor unavailable" in caplog.text
