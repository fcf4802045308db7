"""Every record broken in every way, each command on it, and 200 other values at random."""

import random

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
            commands = COMMANDS[(i + j) % 2 :: 2]
            complaints(finished[0], output, commands, (name, content[:40]))


def test_other_values_are_told_in_a_line(finished, tmp_path):
    draw = random.Random(16)
    for i in range(200):
        output = copied(finished[0], tmp_path)
        what = any_change(output, draw)
        complaints(finished[0], output, (COMMANDS[i % 4],), what)
