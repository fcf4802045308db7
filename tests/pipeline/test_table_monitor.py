"""What is shown and exported of score tables while they are computed."""

from longattn.pipeline.failures import Failure
from longattn.pipeline.monitor import MAX_FAILURES
from longattn.pipeline.table_monitor import TableMonitor, table_line
from longattn.pipeline.table_stage import TableWritten


def test_reports_add_up_and_a_line_says_how_far_it_is():
    monitor = TableMonitor("gap", 4, 512)
    for category, scored in (("book", 10), ("code", 5)):
        monitor.add(TableWritten(category, 10, scored, 2000, 3.0, 0.5))
    now = monitor.progress()
    assert (now.written, now.rest, now.windows, now.scored) == (2, 2, 20, 15)
    assert (now.bytes, now.seconds) == (4000, 6.0)
    told = "score gap: 2 of 4 tables, 20 windows (15 within where), 1.5 scored a second, about 10 s left"
    assert table_line("gap", now, 10.0) == told


def test_metrics_carry_the_score_as_their_stage():
    monitor = TableMonitor("gap", 4, 512)
    seen = {}

    class Metrics:
        def add(self, stage, category, **amounts):
            seen[stage, category] = amounts

    monitor.metrics = Metrics()
    monitor.add(TableWritten("book", 10, 7, 2000, 3.0, 0.5))
    assert seen == {
        ("scores/gap", "book"): {
            "windows": 7,
            "tokens": 7 * 512,
            "bytes": 2000,
            "busy": 3.0,
            "waiting": 0.5,
        }
    }


def test_a_stop_and_too_many_failures_end_it():
    monitor = TableMonitor("gap", 4, 512)
    for _ in range(MAX_FAILURES - 1):
        monitor.add_failure(Failure("gap", "a.parquet", "broken", ""))
    assert monitor.goes_on()
    monitor.add_failure(Failure("gap", "a.parquet", "broken", ""))
    assert not monitor.goes_on() and len(monitor.progress().failures) == MAX_FAILURES
    other = TableMonitor("gap", 4, 512)
    other.stop()
    assert not other.goes_on()
