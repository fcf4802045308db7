import itertools
import json
import logging
import os
import pty
import select
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from longattn.corpus.counts import Counts
from longattn.corpus.records import Split
from longattn.pipeline import display, monitor
from longattn.pipeline.display import HISTORY, History, RateSample, view, watched
from longattn.pipeline.monitor import Monitor, Progress, RunMonitor, StageWork
from longattn.resume.claims import InThisProcess


def sample(seconds, windows=0, scored=0, busy=(0.0, 0.0)):
    cut, by_scorers = StageWork(windows, 0, busy[0]), StageWork(scored, scored * 512, busy[1])
    return RateSample.of(Progress(documents=windows, cut=cut, scored=by_scorers), seconds)


def shown(before, now, read) -> str:
    console = Console(width=120, file=None)
    with console.capture() as captured:
        console.print(view(before, now, read))
    return captured.get()


def test_a_long_history_stays_small_and_even():
    history = History()
    for i in range(5000):
        history.add(sample(float(i), windows=i))
    assert HISTORY / 2 < len(history.samples) <= HISTORY
    seconds = [sample.seconds for sample in history.samples]
    assert {b - a for a, b in itertools.pairwise(seconds)} == {16.0}
    assert history.samples[-1].windows == history.samples[-1].seconds > 4900


@pytest.mark.parametrize(
    ("cut", "scored", "read", "told"),
    [
        (0, 0, 0.0, ["unknown number", "first windows are being cut"]),
        (50, 0, 0.5, ["0 of about 100 windows", "the scorers are starting"]),
        (400, 100, 0.5, ["100 of about 800", "12%", "2 min left", "scoring is what the run waits"]),
        (101, 100, 0.5, ["1 window wait", "reading and cutting is what the run waits for"]),
        (110, 100, 1.0, ["100 of 110 windows", "91%", "2 s left", "scoring is"]),
    ],
)
def test_it_tells_how_far_how_fast_and_what_holds_it_back(cut, scored, read, told):
    before = sample(0.0)
    now = sample(20.0, cut, scored, (5.0, 30.0))
    text = " ".join(shown(before, now, read).split())
    for part in told:
        assert part in text
    if scored:
        assert "5 windows/s, 2.56 K tokens/s" in text
        assert "0.2 window actors, 1.5 scorers" in text


def work(steps):
    """Reports as the actors of a run give them."""
    monitor = Monitor(InThisProcess(RunMonitor(0.5)))
    yield monitor
    split = Split("book", "a.jsonl", "content", "jsonl", None, 0, 100, 100, "")
    cut, score = monitor.window_report(), monitor.score_report()
    for i in range(1, steps + 1):
        counts = Counts(records=2 * i, documents=2 * i, windows=i, seconds=0.1 * i, bad=Counter())
        cut([(split, counts, i == steps, 0.0)])
        score(Counter(book=1), 512, 0.05, 0.04, 0.0)
        time.sleep(0.1)
    yield monitor


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(display, "SAMPLE_SECONDS", 0.1)
    monkeypatch.setattr(monitor, "LOG_SECONDS", 0.3)


def test_in_a_terminal_it_is_live_and_leaves_its_history(quick, tmp_path, monkeypatch):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", terminal)
        steps = work(12)
        with watched(next(steps), 100, str(tmp_path)):
            next(steps)
        terminal.flush()
        seen = ""
        while select.select([master], [], [], 0)[0]:  # a read gives what the line discipline holds
            seen += os.read(master, 1 << 20).decode(errors="replace")
    os.close(master)
    assert "windows/s" in seen and "left" in seen and "\x1b[" in seen
    rates = json.loads(Path(tmp_path, "_longattn/rates.json").read_text())["samples"]
    assert len(rates) > 3 and rates[0]["windows"] == 0
    assert (rates[-1]["windows"], rates[-1]["scored"], rates[-1]["tokens"]) == (12, 12, 12 * 512)
    assert rates[-1]["busy"] == {"window": pytest.approx(1.2), "score": pytest.approx(0.6)}
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(rates))


def test_piped_it_is_plain_lines(quick, tmp_path, capfd, caplog):
    steps = work(8)
    with caplog.at_level(logging.INFO, "longattn"), watched(next(steps), 100, str(tmp_path)):
        next(steps)
    assert "documents read" in caplog.text and "tokens/s" in caplog.text
    assert "\x1b[" not in capfd.readouterr().err


def test_a_run_leaves_what_its_report_draws(finished):
    settings, summary = finished
    rates = json.loads(Path(settings.output, "_longattn/rates.json").read_text())["samples"]
    windows = sum(c.windows for c in summary.categories.values())
    assert (rates[-1]["windows"], rates[-1]["scored"]) == (windows, windows)
    assert rates[-1]["busy"]["score"] > 0 and rates[-1]["busy"]["window"] > 0
    page = Path(settings.output, "report.html").read_text()
    assert '"rates":[{"seconds":' in page
