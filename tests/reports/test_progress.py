"""Long work tells how far it is, short work nothing."""

import logging
import time

from longattn.reports.progress import QUIET_SECONDS, with_progress


def test_how_far_it_is_is_told_every_few_seconds(monkeypatch, caplog):
    clock = iter([0.0, *(step * QUIET_SECONDS / 2 for step in (1, 2, 2, 3, 4, 4, 5))])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "longattn"):
        assert list(with_progress("abcdef", "windows scored")) == list("abcdef")
    assert caplog.messages == ["  2 of 6 windows scored", "  4 of 6 windows scored"]
    caplog.clear()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert list(with_progress([1, 2], "windows scored")) == [1, 2] and not caplog.messages
