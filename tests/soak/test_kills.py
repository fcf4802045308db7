"""One run of 10,000 small windows, killed at random again and again: nothing lost, nothing twice.

pytest -o addopts= -s tests/soak
"""

import random
import time
from collections import Counter

import pytest

from longattn.reports.verify import verify
from tests import faults
from tests.conftest import _first_document

KILLS, WINDOWS = 100, 10_000
FILES_BETWEEN = (2, 30)  # new labelled files from kill to kill: of about 2,500
SECONDS_BETWEEN = 12  # at most
STAGES = ("MapBatches(SplitWindows)", "MapBatches(ScoreWindows)")


@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_a_hundred_times(checkpoint, tmp_path):
    text = _first_document("book")
    starts = range(0, 305_000, 420)
    faults.write_corpus(tmp_path / "book", [text[p : p + 7000 + p % 900] for p in starts])
    small = {"window": {"tokens": 128}, "scorer": {"model": checkpoint, "batch": 4}}
    chance, kills, began = random.Random(7), Counter(), time.monotonic()
    with faults.cluster() as cluster:
        unbroken = faults.settings(tmp_path, tmp_path / "unbroken", checkpoint, **small)
        run = faults.start(unbroken, cluster.address, tmp_path / "log")
        assert faults.finish(run, 900) == 0, (tmp_path / "log").read_text()
        config = faults.settings(tmp_path, tmp_path / "out", checkpoint, **small)
        run = None
        while run is None or run.exitcode != 0:
            if run is None or run.exitcode is not None:
                assert run is None or run.exitcode == -9, (tmp_path / "log").read_text()
                run = faults.start(config, cluster.address, tmp_path / "log", block=4 << 10)
            wanted = faults.files(tmp_path / "out") + chance.randint(*FILES_BETWEEN)
            deadline = time.monotonic() + chance.uniform(0, SECONDS_BETWEEN)
            while run.exitcode is None and time.monotonic() < deadline:
                if faults.files(tmp_path / "out") >= wanted:
                    break
                time.sleep(0.05)
            if kills.total() >= KILLS:
                assert faults.finish(run, 900) == 0, (tmp_path / "log").read_text()
            elif run.exitcode is None:
                victims = [(name, actor) for name in STAGES for actor in faults.actors(name)]
                if not victims or chance.random() < 0.15:
                    victims = [("driver", run)]
                name, victim = chance.choice(victims)
                victim.kill()
                kills[name] += 1
                if name == "driver":
                    run.join()
    rows = len(faults.labelled(tmp_path / "out"))
    print(f"\n{rows:,} windows, {dict(kills)}, {time.monotonic() - began:.0f} s")
    assert kills.total() >= KILLS and rows >= WINDOWS
    faults.assert_same(tmp_path / "out", tmp_path / "unbroken")
    assert list(verify(config.output)) == []
