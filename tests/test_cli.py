import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.errors import ConfigError
from longattn.terminal import show_scores, show_stages, show_written
from tests.broken import quiet_log
from tests.conftest import config


def write(folder, settings) -> str:
    path = folder / "config.yaml"
    path.write_text(settings.to_yaml())
    return str(path)


@pytest.fixture
def refused_ray(monkeypatch):
    """Fails where a command reaches for Ray."""
    from longattn.pipeline import on_ray

    def reached():
        pytest.fail("Ray is reached for")

    monkeypatch.setattr(on_ray, "connected", reached)


def here(*arguments):
    """The command in this process; a traceback fails."""
    with quiet_log():
        return CliRunner().invoke(app, [*arguments], catch_exceptions=False)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["window.tokens=3"], ["window.tokens", "16 or more is required", "given: 3"]),
        (["windows.tokens=512"], ["windows", "did you mean window?"]),
        (["select.keep.fraction=1.5"], ["select.keep.fraction", "1.5"]),
        (["alpha"], ["--set alpha", "field=value"]),
        (["sources.0.path=/nowhere/*.jsonl"], ["sources.0.path: '/nowhere/*.jsonl' matches nothing"]),
        (["sources.1.text_column=text"],
         ["sources.1.text_column: ", "'text'", "a.parquet", "its columns are 'content', 'n'"]),
        (["sources.0.text_column=text"],
         ["sources.0.text_column: ", "'text'", "0.jsonl", "its columns are 'content', 'n'"]),
        (["scorer.model=/nowhere"], ["'/nowhere'", "no such folder"]),
        (["scorer.model={empty}"], ["{empty}", "config.json"]),
        (["select.keep=0.5"], ["select.keep: a mapping is required, of fraction, tokens, count"]),
        (["select.keep.fraction=50"], ["select.keep.fraction", "did you mean 50%?"]),
        (["sources=s3://b"], ["sources: a list is required", "dash"]),
        (["select.rank_by=ratio"], ["no window will have a column ratio", "allowed: lds, "]),
        (["output={empty}/../config.yaml/x"], ["config.yaml is a file", "allowed: a folder"]),
        (["output={empty}/../config.yaml"], ["config.yaml is a file", "allowed: a folder"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else "",
)  # fmt: skip
def test_a_bad_setting_is_refused_in_one_line_before_ray_starts(
    overrides, told, corpus, checkpoint, tmp_path, refused_ray
):
    (tmp_path / "empty").mkdir()
    path = write(tmp_path, config(corpus, tmp_path / "out", checkpoint))
    flags = [f for o in overrides for f in ("--set", o.format(empty=tmp_path / "empty"))]
    result = here("run", path, *flags)
    assert result.exit_code == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("longattn: ") and not result.stdout
    for part in told:
        assert part.format(empty=tmp_path / "empty") in line
    assert not (tmp_path / "out").exists()


def test_all_bad_settings_are_told_at_once(corpus, checkpoint, tmp_path, refused_ray):
    path = write(tmp_path, config(corpus, tmp_path / "out", checkpoint))
    result = here("run", path, "--set", "window.tokens=3", "--set", "select.alpha=-1")
    assert result.exit_code == 2 and not result.stdout
    first, second = result.stderr.splitlines()
    assert first.startswith(f"longattn: {path}: window.tokens: ")
    assert second.startswith(f"longattn: {path}: select.alpha: ")


def test_select_refuses_what_only_another_run_could_give(finished, tmp_path):
    path = write(tmp_path, finished[0])
    for setting, there in (("window.tokens=1024", 512), ("scorer.min_distance=64", 128)):
        name, _, here_ = setting.partition("=")
        result = here("select", path, "--set", setting)
        with pytest.raises(
            ConfigError, match=rf"{name} {here_}: .* holds scores of {name} {there};"
        ):
            la.select(la.Config.of(path, [setting]))
        assert result.exit_code == 2 and not result.stdout
        assert (
            f"{name} {here_}: " in result.stderr
            and f"holds scores of {name} {there};" in result.stderr
        )


def test_a_config_that_is_not_there_or_no_yaml_is_named(tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    for name, reason in (
        ("none.yaml", "there is no such file to be read as a config"),
        ("broken.yaml", "not YAML"),
    ):
        result = here("select", str(tmp_path / name))
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and f"{tmp_path / name}: " in line and reason in line


def test_what_is_not_there_is_told_as_what_it_was_to_be(tmp_path, finished):
    def line(*arguments):
        result = here(*arguments)
        assert result.exit_code == 2 and not result.stdout
        (told,) = result.stderr.splitlines()
        assert "Errno" not in told
        return told

    none = str(tmp_path / "none")
    assert line("run", none) == (
        f"longattn: {none}: there is no such config, and no such output folder of a run"
    )
    assert line("run", f"{none}.yaml") == (
        f"longattn: {none}.yaml: there is no such file to be read as a config"
    )
    (tmp_path / "latin.yaml").write_bytes(b"output: \xe9")
    assert "cannot be read as a config: not UTF-8" in line("run", str(tmp_path / "latin.yaml"))
    output = finished[0].output
    assert line("export", output, "--mix", f"{none}.yaml") == (
        f"longattn: {none}.yaml: there is no such file to be read as a mix"
    )


def test_the_help_of_follow_says_how_it_ends_and_what_a_number_is():
    told = " ".join(here("run", "--help").stdout.replace("│", " ").split())
    assert "a bare number is seconds" in told
    assert "until Ctrl-C or SIGTERM: what is in flight is finished" in told


def test_help_shows_an_example_of_each_command():
    commands = re.findall(r"^│ (\w+) ", here("--help").stdout, re.MULTILINE)
    assert {"run", "score", "select"} <= set(commands)
    for command in commands:
        result = here(command, "--help")
        assert result.exit_code == 0 and f"Example: longattn {command} " in result.stdout


def test_the_installed_command_tells_its_versions():
    command = Path(sys.executable).parent / "longattn"
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert re.match(r"longattn \d+\.\d+\.\d+ \(ray \d.*torch \d", result.stdout)


def test_the_shell_completes_commands_and_options():
    command = Path(sys.executable).parent / "longattn"

    def completed(words: str) -> list[str]:
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        result = subprocess.run(
            [command],
            env={**os.environ, **asked, "_LONGATTN_COMPLETE": "complete_bash"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result.stdout.split()

    assert completed("longattn s") == ["score", "select"]
    assert "--windows-per-second" in completed("longattn plan --w")


def test_what_a_run_read_says_how_many_documents_repeat_others(finished, capsys):
    told = finished[1].to_dict()
    show_stages(told)
    assert "repeat" not in capsys.readouterr().out
    told["categories"]["book"]["duplicates"] = 3
    show_stages(told)
    documents = told["stages"]["window"]["documents"]
    assert f"read {documents} documents, of which 3 repeat others and are left out (" in (
        capsys.readouterr().out
    )


def test_what_a_score_took_is_told_only_where_something_was_computed(capsys):
    of = {"tables": 2, "windows": 90, "scored": 90, "seconds": 45.0}
    show_scores({"text": of, "gap": {**of, "tables": 1}}, {"text": 2, "gap": 0})
    assert capsys.readouterr().out.splitlines() == [
        "score text: 2 tables, 90 windows at 0.5 s each",
        "score gap: nothing to compute: its table was there before",
    ]


def test_what_was_written_fits_80_columns_below_the_folder_it_is_in(capsys):
    places = ("labelled", "selected", "quarantine", "_longattn/summary.json", "report.html")
    output = "s3://a-bucket/with/a/long/name/of/a/folder"
    show_written(output, [f"{output}/{place}" for place in places] * 2)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"written: {output}"
    assert " ".join(lines).split() == [*places, *places]
    assert len(lines) > 1 and max(map(len, lines)) <= 80
