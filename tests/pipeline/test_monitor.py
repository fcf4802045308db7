"""What the monitor of a run tells Prometheus, against what it was told, retries included.

That Ray exports it is tested in tests/integration/test_submit.py.
"""

import re
from collections import Counter

import pytest

from longattn.corpus.counts import Counts
from longattn.corpus.records import Split
from longattn.pipeline import monitor
from longattn.pipeline.monitor import LABELS, METRICS, RunMonitor, StageWork, balance


class Recorded:
    """In place of the exporter, which tells Ray's agent and nobody else."""

    def __init__(self):
        self.totals = Counter()

    def add(self, stage, category, **told):
        for name, amount in told.items():
            assert name in METRICS
            if amount > 0:
                self.totals[stage, category, name] += amount


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(monitor, "Exporter", Recorded)
    return RunMonitor(max_bad_fraction=0.5, export=True)


def split(name, category="book"):
    return Split(category, f"{name}.jsonl", "content", "jsonl", None, 0, 10, 10, "")


def counts(n):
    return Counts(
        records=n + 1,
        documents=n,
        windows=2 * n,
        tokens=100 * n,
        seconds=n / 10,
        bad=Counter(not_json=1),
    )


def test_a_split_that_is_read_again_is_counted_once(watch):
    a, b = split("a"), split("b", "code")
    for n in (10, 20):
        watch.add_windows(a, counts(n), n == 20, 0.5)
    watch.add_windows(b, counts(5), True, 0.0)
    for n in (5, 15, 30):  # the actor that read a was lost at 20
        watch.add_windows(a, counts(n), n == 30, 0.0)
    totals = watch.metrics.totals
    wanted = {"documents": 30, "windows": 60, "tokens": 3000, "quarantined": 1, "waiting": 1.0}
    for name, value in wanted.items():
        assert totals["window", "book", name] == pytest.approx(value)
    assert totals["window", "book", "busy"] == pytest.approx(3.0)
    assert totals["window", "code", "documents"] == 5
    assert watch.progress().documents == 35


def test_a_batch_of_several_categories_shares_its_seconds(watch):
    watch.add_scored(Counter(book=6, code=2), 512, 4.0, 3.0, 1.0)
    watch.add_written("code", 2, 4096, 0.25)
    totals = watch.metrics.totals
    assert totals["score", "book", "windows"] == 6 and totals["score", "code", "tokens"] == 1024
    for name, value in (("busy", 4.0), ("kernel", 3.0), ("waiting", 1.0)):
        both = [totals["score", category, name] for category in ("book", "code")]
        assert both == pytest.approx([value * 0.75, value * 0.25])
    assert totals["write", "code", "bytes"] == 4096
    assert watch.progress().scored == StageWork(8, 4096, 4.0)


def test_names_follow_the_conventions_of_prometheus():
    for name, about in METRICS.values():
        assert re.fullmatch(r"longattn_[a-z_]+_total", name) and about
        assert "second" not in about or name.endswith("_seconds_total")
    assert LABELS == ("stage", "category")


def test_the_log_says_what_one_actor_of_each_stage_does():
    told = balance(StageWork(600, 0, 10.0), StageWork(300, 300 * 32768, 20.0))
    assert "a window actor cuts 1,966,080 tokens/s" in told
    assert "scores 15.00 windows/s (491,520 tokens/s); one window actor feeds 4.0 scoring" in told
    assert balance(StageWork(0, 0, 1.0), StageWork()) == ""


def test_a_split_is_scored_once_it_is_read_and_all_that_it_gave_is_written(watch):
    a, b, c = split("a"), split("b"), split("c")
    watch.expect({of.id: since for of, since in ((a, 5.0), (b, 6.0), (c, 7.0))}, arrived=30)
    assert watch.progress().oldest == 5.0 and watch.progress().arrived == 30
    watch.add_windows(a, counts(10), False, 0.0, given=2)
    watch.add_written("book", 3, 4096, 0.1, {a.id: 2, b.id: 1})
    assert watch.progress().unscored == 3  # more may come of a
    watch.add_windows(a, counts(20), True, 0.0, given=4)
    watch.add_windows(c, counts(20), True, 0.0, given=0)  # all of it labelled before
    assert watch.progress().unscored == 2 and watch.progress().oldest == 5.0
    watch.add_written("book", 2, 4096, 0.1, {a.id: 2})
    assert watch.progress().oldest == 6.0
    watch.add_windows(b, counts(1), True, 0.0, given=1)
    assert watch.progress().unscored == 0 and watch.progress().oldest is None
    assert watch.progress().written == 5
    watch.add_written("book", 2, 4096, 0.1, {a.id: 2})  # a block that was tried again
    assert watch.progress().unscored == 0
