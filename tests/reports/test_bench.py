import json
import logging

import pytest
from typer.testing import CliRunner

from longattn.cli import app
from longattn.reports import bench
from longattn.reports.bench import predict


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Three calls are enough: no figure is looked at."""
    monkeypatch.setattr(bench, "CPU_SECONDS", 0.1)
    monkeypatch.setitem(bench.DENSE_TOKENS, "cpu", 512)


def test_the_command_measures_this_machine_and_predicts():
    options = ["bench", "--length", "512", "--length", "256", "--tokens", "1M", "--json"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["ceiling_tflops"] > 0 and told["tokenized_per_second_a_core"] > 1e5
    (builtin,) = told["models"].values()
    assert [row["length"] for row in builtin["lengths"]] == [512, 256]
    for row in builtin["lengths"]:
        assert row["kernel"] > 0 and row["call"] > 0
    prediction = builtin["prediction"]
    assert prediction["windows"] == pytest.approx(1e6 / 512)
    hours = 1e6 / 512 * builtin["lengths"][0]["stream"] / 3.6e6
    assert prediction["device_hours"] == pytest.approx(hours)


def test_each_step_is_told_and_each_column_explained(caplog, monkeypatch):
    monkeypatch.setattr(bench, "milliseconds", lambda *_: 1.0)
    monkeypatch.setattr(bench, "tokens_per_second", lambda *_: 1e6)
    monkeypatch.setattr(bench, "windows_per_second_written", lambda *_: 1.0)
    with caplog.at_level(logging.INFO, "longattn"):
        result = bench.run_bench(None, [256], 10**6, device="cpu")
    told = [line for line in caplog.messages if line.startswith(("measuring", "loading"))]
    size = "measuring windows of 256 tokens: "
    assert told == [
        "measuring matrix products",
        "measuring the tokenizer",
        "measuring how fast windows are written",
        "loading the scorer builtin",
        f"{size}kernel",
        f"{size}three distances beside one",
        f"{size}one distance",
        f"{size}whole call",
        f"{size}in a batch",
        "measuring the dense formulation",
    ]
    table, words = bench.shown(result).split("\n  kernel: ")
    assert "GiB" in table and all(
        f" {column}: " in f"kernel: {words}"
        for column in ("call", "in a batch", "of ceiling", "busy", "3 distances", "GiB")
    )


def test_slow_calls_are_told_one_by_one(monkeypatch, caplog):
    clock = iter([0.0, 9.0, 9.0, 10.0, 10.0, 19.0])  # calls of 9, 1 and 9 seconds
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    with caplog.at_level(logging.INFO, "longattn"):
        assert bench.milliseconds(lambda: None, "cpu") == 9000.0
    assert caplog.messages == [
        "  measured 1 call, the last of 9.0 s",
        "  measured 3 calls, the last of 9.0 s",
    ]


def test_cores_for_a_device_are_its_rate_over_that_of_a_core():
    told = predict(36 * 10**9, 8.0, 32768, 20e6)
    assert told.device_hours == pytest.approx(36e9 / 32768 * 8e-3 / 3600)
    assert told.cores_a_device == pytest.approx(32768 / 8e-3 / 20e6)


@pytest.mark.parametrize("options", [["--tokens", "many"], ["--length", "3"], ["--model", "/no"]])
def test_bad_options_are_refused_in_one_line(options):
    done = CliRunner().invoke(app, ["bench", "--length", "64", *options])
    assert done.exit_code == 2 and options[1] in done.output
