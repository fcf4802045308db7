from pathlib import Path

import pytest
import yaml

from longattn.config import Config, is_config_file, output_of
from longattn.corpus.sources import list_splits
from longattn.errors import ConfigError
from longattn.settings.paths import absolute_model, absolute_path
from longattn.storage.files import filesystem, write_json

SOURCE = {"category": "a", "path": "data/a.jsonl"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder to work in, with data and a model's folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.jsonl").write_text('{"content": "x"}\n')
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("data/*.jsonl", "{}/data/*.jsonl"), ("./data", "{}/data"), (".", "{}"),
        ("file://data", "{}/data"), ("/abs/x", "/abs/x"), (Path("data"), "{}/data"),
        ("s3://bucket/x", "s3://bucket/x"), ("https://host/x?y=1", "https://host/x?y=1"),
        ("samples:book.jsonl.gz", "samples:book.jsonl.gz"), ("memory://o", "memory://o"),
        ("~/x", str(Path("~/x").expanduser())),
    ],
)  # fmt: skip
def test_only_local_paths_change(project, given, want):
    assert absolute_path(given) == want.format(project)
    assert absolute_path(absolute_path(given)) == absolute_path(given)


def test_a_local_path_stays_the_path_that_its_file_system_tells(project):
    """So that the ids of splits, and with them what a folder holds, stay as they were."""
    for path in ("data/a.jsonl", "./data", "data/../data", "file://data", "~/x", "data/"):
        assert absolute_path(path) == filesystem(path)[1]


def test_an_output_in_rays_copy_of_a_working_directory_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "session_1/runtime_resources/working_dir_files/_ray_pkg_0a"
    copy.mkdir(parents=True)
    (tmp_path / "link").symlink_to(copy)
    monkeypatch.chdir(copy)
    for output in ("out/run", "file://out", str(tmp_path / "link/out")):
        with pytest.raises(ConfigError) as refused:
            Config.parse({"sources": [SOURCE], "output": output})
        (line,) = refused.value.lines
        where = output if output.startswith("/") else f"{copy}/{output.removeprefix('file://')}"
        assert line.startswith(f"config: output: {where} lies in Ray's copy of the job's working ")
        assert "allowed: an absolute path that all nodes see, or a URL as s3://" in line
    for output in ("s3://bucket/runtime_resources/working_dir_files/x", str(tmp_path / "out")):
        assert Config.parse({"sources": [SOURCE], "output": output}).output == output


def test_a_config_is_absolute_once_it_is_read(project, tmp_path, monkeypatch):
    values = {"sources": [SOURCE], "output": "out/run", "scorer": {"model": "models/mine"}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    for config in (Config.from_yaml("c.yaml"), Config.parse(values), Config(**values)):
        assert config.output == f"{project}/out/run"
        assert config.sources[0].path == f"{project}/data/a.jsonl"
        assert config.scorer.model == f"{project}/models/mine"
    config, splits = Config.from_yaml("c.yaml"), list_splits(Config.from_yaml("c.yaml").sources)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")  # as a worker of a Ray that was started there
    assert Config.parse(config.model_dump()) == config
    assert Config.parse(yaml.safe_load(config.to_yaml())) == config
    assert list_splits(config.sources) == splits
    overridden = Config.of(tmp_path / "c.yaml", ["output=here", "scorer.model=builtin"])
    assert overridden.output == f"{project}/elsewhere/here"
    assert overridden.scorer.model == "builtin"


def test_a_model_that_is_no_local_folder_keeps_its_name(project):
    for name in ("builtin", "meta-llama/Llama-3.1-8B", "s3://bucket/model", "/nowhere"):
        assert absolute_model(name) == name
    assert absolute_model("./nowhere") == f"{project}/nowhere"


def test_a_config_or_an_output_is_taken_for_the_other(project, tmp_path):
    values = {"sources": [SOURCE], "output": "out/run", "select": {"alpha": 2}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    config = Config.of("c.yaml")
    assert Config.of(config) is config and Config.of(values) == config
    assert Config.of(Path("c.yaml")) == config
    for given in ("c.yaml", Path("c.yaml"), values, config, "out/run", f"{project}/out/run"):
        assert output_of(given) == f"{project}/out/run"
    assert output_of("s3://bucket/out") == "s3://bucket/out"
    write_json(f"{project}/out/run/_longattn/run.json", {"config": config.to_yaml()})
    assert Config.of("out/run") == config
    Path("out/run").rename("moved")
    assert Config.of("moved", ["select.alpha=3"]).output == f"{project}/moved"
    assert Config.of("moved", ["select.alpha=3"]).select.alpha == 3


def test_overrides_of_a_mapping_leave_the_mapping_alone(project):
    values = {"sources": [SOURCE], "output": "out"}
    config = Config.of(values, ["sources.0.text_column=text", "select.alpha=1"])
    assert config.sources[0].text_column == "text" and config.select.alpha == 1
    assert values == {"sources": [{"category": "a", "path": "data/a.jsonl"}], "output": "out"}
    more = Config.of(config, ["sources.0.category=b", "select.keep.count=3"])
    assert (more.sources[0].category, more.sources[0].text_column) == ("b", "text")
    assert (more.select.alpha, more.select.keep.count, more.select.keep.fraction) == (1, 3, None)


def test_what_is_neither_config_nor_output_is_refused_in_one_line(project, tmp_path):
    refused = [
        ("data", f"{project}/data: neither a config nor the output folder of a run"),
        ("nowhere.yaml", "nowhere.yaml: there is no such file to be read as a config"),
        (7, "config: a path, a mapping or a Config is required, not int"),
    ]
    write_json("mine/_longattn/run.json", {"config": None})
    refused.append(("mine", "what wrote it had no config"))
    write_json("masked/_longattn/run.json", {"config": "output: s3://***@bucket/x"})
    refused.append(("masked", "its stored config lacks a password"))
    for given, told in refused:
        with pytest.raises(ConfigError) as caught:
            Config.of(given)
        assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_any_name_is_a_config_and_a_folder_never(project, tmp_path):
    (tmp_path / "settings").write_text("a: 1")
    (tmp_path / "folder.yaml").mkdir()
    assert is_config_file("settings") and is_config_file("/dev/null")
    assert is_config_file("s3://bucket/c.yaml") and is_config_file("not-there.yml")
    assert not is_config_file("folder.yaml") and not is_config_file("s3://bucket/out")
