"""Settings and output folders on the command line: init, config, --log-file, numbers, mix-ups."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from longattn.cli import app
from longattn.config import Config
from longattn.terminal import show_categories
from tests.conftest import config


@pytest.fixture
def call():
    """Runs a command in this process; what it did to the log is put back."""
    root, ours = logging.getLogger(), logging.getLogger("longattn")
    before, level = list(root.handlers), ours.level

    def run(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)

    yield run
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    ours.setLevel(level)


def test_init_writes_a_config_that_plan_accepts_and_overwrites_none(call, tmp_path):
    path = tmp_path / "my.yaml"
    result = call("init", path)
    assert result.exit_code == 0
    assert result.stdout == f"written: {path}; run it: longattn run {path}\n"
    planned = call(
        "plan", path, "--windows-per-second", "10", "--no-check", "--read", "1M", "--json"
    )
    assert planned.exit_code == 0, planned.stderr
    assert set(json.loads(planned.stdout)["categories"]) == {"book", "c", "python"}
    text = path.read_text()
    again = call("init", path)
    assert again.exit_code == 2 and path.read_text() == text
    assert again.stderr.startswith(f"longattn: {path}: is already there")


def test_config_shows_what_is_in_force_and_masks_secrets(call, tmp_path):
    path = tmp_path / "c.yaml"
    source = {"category": "a", "path": "s3://KEY:SECRET@bucket/x[1]"}
    path.write_text(yaml.safe_dump({"sources": [source], "output": str(tmp_path / "out")}))
    result = call("config", path, "--set", "window.tokens=8K")
    assert result.exit_code == 0
    rows = {row[0]: row[1:] for row in map(str.split, result.stdout.splitlines()) if row}
    assert rows["window.tokens"] == ["8192", "--set"]
    assert rows["scorer.model"] == ['"builtin"', "default"]
    assert rows["sources.0.path"] == ['"s3://***@bucket/x[1]"', "file"]
    assert "SECRET" not in result.output
    refused = call("config", path, "--set", "window.token=8K")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"longattn: {path}: window.token: no such setting; did you mean window.tokens?\n"
    )
    assert call("config").exit_code == 2 and call("config", path, "--schema").exit_code == 2


def test_config_prints_the_schema_and_the_page(call):
    schema = json.loads(call("config", "--schema").stdout)
    assert schema["properties"].keys() == Config.model_fields.keys()
    page = Path(__file__).parents[1] / "configs" / "SETTINGS.md"
    assert call("config", "--reference").stdout == page.read_text()


def test_a_log_file_has_the_lines_and_the_stack_of_a_failure(call, tmp_path):
    (tmp_path / "out" / "_longattn").mkdir(parents=True)
    (tmp_path / "out" / "_longattn" / "run.json").write_text("{")
    result = call("report", tmp_path / "out", "--log-file", tmp_path / "a.log")
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("longattn: ") and "not JSON" in line
    text = (tmp_path / "a.log").read_text()
    assert "Traceback (most recent call last)" in text
    assert re.search(r"^\d{4}-\d\d-\d\d .* ERROR longattn: failed$", text, re.MULTILINE)
    assert text.splitlines()[-1].startswith(
        f"ValueError: {tmp_path}/out/_longattn/run.json: not JSON"
    )


def test_a_log_file_holds_no_secret_and_is_appended_to(call, tmp_path):
    path = tmp_path / "a.log"
    path.write_text("before\n")
    call("report", tmp_path, "--log-file", path)
    logging.getLogger("longattn").warning("reading s3://KEY:SECRET@bucket/x")
    text = path.read_text()
    assert text.startswith("before\n") and "s3://***@bucket/x" in text and "SECRET" not in text


def test_a_log_file_that_cannot_be_opened_is_refused(call, tmp_path):
    result = call("report", tmp_path, "--log-file", tmp_path / "no" / "a.log")
    line = f"longattn: --log-file {tmp_path}/no/a.log: No such file or directory\n"
    assert (result.exit_code, result.stderr) == (2, line)


def test_commands_that_log_take_a_log_file(call):
    for command in (
        "run",
        "score",
        "select",
        "plan",
        "report",
        "inspect",
        "evaluate",
        "export",
        "bench",
        "verify",
    ):
        assert "--log-file" in call(command, "--help").stdout, command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("plan", "CONFIG", "--read", "lots"), "--read lots: a whole number is required"),
        (("bench", "--length", "3"), "--length 3: 16 or more is required"),
        (("bench", "--tokens", "many"), "--tokens many: a whole number is required"),
        (("inspect", "--text", "x", "--window", "x"), "--window x: a whole number is required"),
        (("select", "CONFIG", "--set", "select.keep.count=1", "--set", "select.keep.tokens=1B"),
         "the second undoes the first; give one"),
        (("run", "/nowhere/out"), "there is no such config, and no such output folder of a run"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(call, tmp_path, arguments, told):
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump({"sources": [{"category": "a", "path": "x"}], "output": str(tmp_path)})
    )
    result = call(*(path if a == "CONFIG" else a for a in arguments))
    assert result.exit_code == 2 and told in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("longattn: ")]


def test_a_config_and_its_output_stand_for_each_other(call, corpus, checkpoint, tmp_path, caplog):
    settings = config(corpus, tmp_path / "out", checkpoint)
    path = tmp_path / "c.yaml"
    path.write_text(settings.to_yaml())
    ran = call("run", path, "--executor", "local")
    assert ran.exit_code == 0, ran.stderr
    selected = call("select", tmp_path / "out", "--set", "select.keep.count=100K")
    assert "select.keep.count 100,000 is for each category, and more than it has" in caplog.text
    selected = call("select", tmp_path / "out", "--set", "select.keep.count=3")
    assert selected.exit_code == 0, selected.stderr
    chosen = json.loads((tmp_path / "out/_longattn/selection.json").read_text())
    assert {c["kept"] for c in chosen["categories"].values()} == {3}
    for given in (path, tmp_path / "out"):
        assert call("verify", given).stdout == f"{tmp_path}/out: all holds\n"
        assert call("report", given).stdout == f"written: {tmp_path}/out/report.html\n"


def test_follow_takes_times_and_no_share(call, corpus, checkpoint, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(config(corpus, tmp_path / "out", checkpoint).to_yaml())
    run = ("run", path, "--executor", "local", "--follow")
    for arguments, said in (
        (("soon",), "--follow soon: a whole number is required, as in 60s, 10m, 1h or 2d"),
        (("60s", "--idle", "0"), "--idle 0: "),
        (("60s", "--shard", "1/2"), "--follow and --shard exclude each other"),
    ):
        refused = call(*run, *arguments)
        assert refused.exit_code == 2 and said in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank_by", ["compression_ratio", "recurrence_pairs", "a" * 40, "lds"])
def test_the_table_names_what_ranks_in_full_within_eighty_columns(rank_by, capsys):
    told = {
        "documents": 56, "too_short": 5, "quarantine": {"not_json": 3}, "windows": 67,
        "kept": 24, "kept_tokens": 842_112, "ds_mean": 0.167, "du_mean": -1.2e-7,
        "threshold": 0.343,
    }  # fmt: skip
    show_categories({"book": told}, rank_by)
    shown = capsys.readouterr().out
    table = shown.partition("short: ")[0]
    assert "…" not in shown and (max(map(len, shown.splitlines())) <= 80 or len(rank_by) == 40)
    header = table.partition("\nbook")[0].splitlines()
    name = {"lds": "LDS", "recurrence_pairs": "pairs"}.get(rank_by, rank_by)
    column = "".join(line.rpartition("variance")[2] for line in header)
    assert "".join(column.split()) == f"{name}from"
    assert "842,112" in shown and "variance" in table and "category" in table
    show_categories({"book": {**told, "kept_tokens": 842_112 * 10**9}}, rank_by)
    shown = capsys.readouterr().out  # wider rather than cut
    assert "842,112,000,000,000" in shown and " 0.343\n" in shown
