"""Every record broken in every way, the commands on it in turn, and 100 other values at random."""

import os
import random
import resource
import subprocess
import sys

import pytest

from longattn.resume import lock
from tests.broken import COMMANDS, CONTENTS, RECORDS, any_change, complaints, copied


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES", 0.0)


def test_broken_records_are_told_in_a_line(finished, tmp_path):
    for i, name in enumerate(RECORDS):
        for j, content in enumerate(CONTENTS):
            output = copied(finished[0], tmp_path)
            (output / "_longattn" / f"{name}.json").write_bytes(content)
            complaints(finished[0], output, (COMMANDS[(i + j) % 4],), (name, content[:40]))


def test_other_values_are_told_in_a_line(finished, tmp_path):
    draw = random.Random(16)
    for i in range(100):
        output = copied(finished[0], tmp_path)
        what = any_change(output, draw)
        complaints(finished[0], output, (COMMANDS[i % 4],), what)


LIMITED = """
import resource, sys
kind, size = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (size, size))
from longattn.cli import main
sys.argv[:] = ["longattn", *sys.argv[3:]]
main()
"""


@pytest.mark.parametrize(
    ("kind", "size"),
    [(resource.RLIMIT_AS, size << 20) for size in (400, 700, 1200, 2000)]
    + [(resource.RLIMIT_NOFILE, 8)],
)
def test_a_machine_without_room_is_told_in_a_line(finished, tmp_path, kind, size):
    settings = finished[0].model_copy(update={"output": str(tmp_path / "out")})
    (tmp_path / "c.yaml").write_text(settings.to_yaml())
    command = [sys.executable, "-c", LIMITED, str(int(kind)), str(size)]
    command += ["run", str(tmp_path / "c.yaml"), "--executor", "local"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "Traceback" not in done.stderr and done.returncode in (0, 1), done.stderr
    if done.returncode:
        assert done.stderr.splitlines()[-1].startswith("longattn: "), done.stderr
