"""A run whose scorers are at one long batch says so, and not that it makes no progress."""

import logging
import time

import numpy as np
import pyarrow as pa

from longattn.pipeline import pulse, stopping
from longattn.pipeline.monitor import Monitor, RunMonitor
from longattn.pipeline.pulse import ALIVE, Pulses, beating
from longattn.pipeline.score_actor import ScoreStage, ScoreWindows
from longattn.pipeline.stopping import Sign, busy_machine, stop_on_sigterm
from longattn.resume.claims import InThisProcess
from longattn.scoring.settings import ScoreSettings


def test_batches_that_live_are_told_and_silent_ones_are_not():
    now = 100.0
    pulses = Pulses(lambda: now)
    assert str(pulses) == ""
    pulses.beat("a", 8, 15.0)
    now = 110.0
    pulses.beat("b", 1, 2.0)
    assert str(pulses) == (
        "scoring: 2 batches under way, of which one of 8 windows has taken 25 s so far"
    )
    now = 101.0 + ALIVE
    assert str(pulses).startswith("scoring: 1 batch under way, of which one of 1 window has taken ")
    now = 111.0 + ALIVE
    assert str(pulses) == ""


def test_a_batch_beats_while_it_is_computed_and_not_after(monkeypatch):
    monkeypatch.setattr(pulse, "BEAT", 0.01)
    heard = []
    with beating(lambda *beat: heard.append(beat), 3):
        time.sleep(0.2)
    told = len(heard)
    time.sleep(0.05)
    assert len(heard) == told > 2
    assert {(batch, windows) for batch, windows, _ in heard} == {(heard[0][0], 3)}


def test_a_scorer_at_a_long_batch_is_at_work_and_one_without_is_waited_for(
    monkeypatch, caplog, checkpoint
):
    monkeypatch.setattr(pulse, "BEAT", 0.02)
    monkeypatch.setattr(stopping, "POLL", 0.02)
    monkeypatch.setattr(stopping, "STALLED", 0.1)
    monitor = Monitor(InThisProcess(RunMonitor(1.0)), pools=False)
    stage = ScoreStage(ScoreSettings(checkpoint, None, None, None, None), "cpu")
    scorer = ScoreWindows(
        stage, monitor.score_report(), monitor.failure_report(), monitor.pulse_report()
    )
    score = scorer.scorer.score
    monkeypatch.setattr(scorer.scorer, "score", lambda ids: (time.sleep(0.5), score(ids))[1])
    windows = pa.table({"input_ids": pa.array(np.arange(64).reshape(2, 32).tolist())})

    def sign() -> Sign:
        progress = monitor.progress()
        return Sign(progress, "its scorers", progress.computing)

    with (
        caplog.at_level(logging.INFO, "longattn"),
        stop_on_sigterm() as stop,
        stop.draining(lambda: None, sign),
    ):
        scorer(windows)
    told = {message.partition(" so far")[0].rpartition(" taken")[0] for message in caplog.messages}
    assert told == {"scoring: 1 batch under way, of which one of 2 windows has"}
    caplog.clear()
    monkeypatch.setattr(pulse, "ALIVE", 0.0)  # as of an actor that has died
    with stop_on_sigterm() as stop, stop.draining(lambda: None, sign):
        time.sleep(0.3)
    told = "no progress for a minute or more; waiting for its scorers"
    assert {message.partition(" (")[0] for message in caplog.messages} == {told}


def test_a_busy_machine_is_named_where_nothing_goes_on(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for load, told in (
        (7.4, ""),
        (24.2, " (this machine is busy: a load of 24 on 4 cores)"),
    ):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert busy_machine() == told
