import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from longattn.errors import Interrupted
from longattn.pipeline.stopping import every, stop_on_sigterm

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
        except Interrupted as error:
            raise ValueError(
                "of a library that turns what it meets into errors of its own"
            ) from error
    with pytest.raises(ValueError, match="by itself"), stop_on_sigterm():
        raise ValueError("by itself")
    assert signal.getsignal(signal.SIGTERM) == before


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
