"""What Ray's core writes to the terminal by itself: all but one line comes through."""

import io
import os
import subprocess
import sys
from contextlib import ExitStack

from longattn.ray_messages import without_noise

CODE = r"""
import logging, os, sys
from longattn.ray_messages import without_noise
logging.basicConfig(format="%(message)s", stream=sys.stderr)
line = b"[2026-01-02 03:04:05,678 E 12 12] core_worker.cc:2214: Actor with class name: 'X' has constructor "
line += b"arguments in the object store and max_restarts > 0. If the arguments in the object store go out"
os.write(2, b"before\n")
try:
    with without_noise():
        os.write(2, b"[2026-01-02 03:04:05,678 E 12 12] core_worker.cc:9: something else\n")
        os.write(2, line + b" of scope\n")
        print("by Python", file=sys.stderr)
        logging.warning("logged")
        os.write(2, b"last, without an end")
        raise ValueError("of the block")
except ValueError as error:
    os.write(2, b"\nafter " + str(error).encode() + b"\n")
logging.warning("logged after")
"""


def test_all_but_the_lines_on_constructor_arguments_comes_through():
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert sorted(lines) == sorted(
        [
            "before",
            "[2026-01-02 03:04:05,678 E 12 12] core_worker.cc:9: something else",
            "by Python",
            "logged",
            "last, without an end",
            "after of the block",
            "logged after",
        ]
    )
    assert lines[0] == "before" and lines[-2:] == ["after of the block", "logged after"]


LINE = b"core_worker.cc:2214: Actor X has constructor arguments in the object store and max_restarts > 0\n"


def test_a_notebooks_stream_stays_and_the_lines_are_left_out_of_what_it_watches(monkeypatch, capfd):
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stderr", mine)
    with without_noise():
        assert sys.stderr is mine
        print("kept", file=sys.stderr)
        os.write(2, b"one\n" + LINE + b"two\n")
    assert mine.getvalue() == "kept\n"
    assert capfd.readouterr().err == "one\ntwo\n"


def test_blocks_of_several_threads_may_overlap(capfd):
    first, second = ExitStack(), ExitStack()
    first.enter_context(without_noise())
    second.enter_context(without_noise())
    first.close()
    os.write(2, LINE + b"within the second\n")
    second.close()
    os.write(2, b"after both: " + LINE)
    assert capfd.readouterr().err == f"within the second\nafter both: {LINE.decode()}"
