"""An export as a whole: nothing that looks whole until it is, resumed, replaced, refused, on any store."""

import json
import logging
import shutil
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from longattn.cli import app
from longattn.errors import HeldError
from longattn.formats import writing
from longattn.formats.export import SUMMARY
from longattn.resume.shards import held
from longattn.storage.files import filesystem, remove
from tests.formats.made import (
    drawn,
    exported,
    names_of,
    read_bytes,
    read_jsonl,
    sequences,
    write_selected,
)

FORMATS = ("megatron", "mds", "npy", "jsonl")


@pytest.fixture
def folder(tmp_path):
    for category, seed in (("book", 1), ("code", 2)):
        write_selected(tmp_path, category, drawn(40, 8, 100, seed))
    return tmp_path


def contents(folder):
    return {name: read_bytes(f"{folder}/{name}") for name in names_of(folder)}


class Killed(BaseException):
    pass


def break_after(monkeypatch, parts):
    """The export stops dead when so many parts have been given to the format."""
    done = []
    true = writing.prefix_of

    def prefix_of(layout, part, format, folder):
        if sys._getframe(1).f_code.co_name == "finish":
            done.append(part)
            if len(done) > parts:
                raise Killed
        return true(layout, part, format, folder)

    monkeypatch.setattr(writing, "prefix_of", prefix_of)
    monkeypatch.setattr(writing, "CORES", 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shuffle", [None, 3])
def test_one_that_broke_goes_on_and_equals_an_unbroken_one(folder, monkeypatch, format, shuffle):
    wanted = {"shuffle": shuffle, "part_bytes": 200}
    exported(folder, format, **wanted)
    whole = contents(folder / format)
    for name in names_of(folder / format):
        remove(f"{folder / format}/{name}")
    with monkeypatch.context() as broken, pytest.raises(Killed):
        break_after(broken, 3)
        exported(folder, format, **wanted)
    left = contents(folder / format)
    assert SUMMARY not in left and not [name for name in left if name.endswith("index.json")]
    assert 0 < len(left) < len(whole) and left.items() <= whole.items()
    times = {name: (folder / format / name).stat().st_mtime_ns for name in left}
    exported(folder, format, **wanted)
    assert contents(folder / format) == whole
    lasts = {"megatron": ".idx", "mds": ".mds", "npy": ".csv.gz", "jsonl": ".zst"}
    finished = [name for name in left if name.endswith(lasts[format])]
    assert len(finished) >= 3
    assert all((folder / format / name).stat().st_mtime_ns == times[name] for name in finished)


def test_one_that_is_whole_writes_nothing(folder):
    exported(folder, "megatron", part_bytes=100)
    before = {path: path.stat().st_mtime_ns for path in (folder / "megatron").iterdir()}
    exported(folder, "megatron", part_bytes=100)
    assert {path: path.stat().st_mtime_ns for path in (folder / "megatron").iterdir()} == before


@pytest.mark.parametrize("change", [{"shuffle": 4}, {"part_bytes": 300}, {"vocab_size": 70_000}])
@pytest.mark.parametrize("format", FORMATS)
def test_another_one_leaves_nothing_of_the_first(folder, format, change):
    exported(folder, format, shuffle=1, part_bytes=100)
    changed = {"shuffle": 1, "part_bytes": 100, **change}
    exported(folder, format, **changed)
    got = contents(folder / format)
    for name in got:
        remove(f"{folder / format}/{name}")
    exported(folder, format, **changed)
    assert contents(folder / format) == got


def test_another_selection_is_exported_anew(folder):
    exported(folder, "jsonl")
    write_selected(folder, "code", drawn(40, 8, 100, 9))  # the same names and lengths
    exported(folder, "jsonl")
    assert [ids for _, of, ids in sequences(folder, "jsonl") if of == "code"] == drawn(
        40, 8, 100, 9
    )


def test_files_of_others_are_left_alone(folder):
    (folder / "npy").mkdir()
    (folder / "npy" / "notes.txt").write_text("mine")
    exported(folder, "npy")
    exported(folder, "npy", shuffle=1)
    assert (folder / "npy" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("format", FORMATS)
def test_an_id_outside_the_vocabulary_is_refused_and_nothing_appears(tmp_path, format):
    write_selected(tmp_path, "a", [[1, 2], [3, 70_000]])
    with pytest.raises(ValueError, match="ids from 1 to 70000; the vocabulary has 0 to 65535"):
        exported(tmp_path, format, 65_536)
    assert names_of(tmp_path / format) == []


def test_a_window_that_is_not_as_long_as_its_range_is_refused(tmp_path):
    write_selected(tmp_path, "a", [[1, 2], [3, 4]], lengths=[2, 3])
    with pytest.raises(ValueError, match=r"a\.parquet: row 1 has 2 ids, where 3 are expected"):
        exported(tmp_path, "jsonl")


def test_nothing_selected_and_no_such_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no selected windows to export"):
        exported(tmp_path, "mds")
    write_selected(tmp_path, "a", [[1]])
    with pytest.raises(
        ValueError, match="format 'tfrecord': megatron, mds, npy, jsonl are allowed"
    ):
        exported(tmp_path, "tfrecord")


def test_a_folder_that_a_run_writes_to_is_refused(folder):
    with held(str(folder)), pytest.raises(HeldError, match="is being written by the run of"):
        exported(folder, "mds")


@pytest.mark.parametrize("format", ["megatron", "jsonl"])
def test_an_object_store_gets_the_same_files(folder, s3, format):
    """The others do in tests/integration/test_export_kills.py."""
    url = f"s3://bucket/formats-{format}"
    for category, seed in (("book", 1), ("code", 2)):
        write_selected(url, category, drawn(40, 8, 100, seed))
    outputs = exported(url, format, shuffle=1, part_bytes=300)
    assert all(output.startswith(f"{url}/{format}") for output in outputs)
    exported(folder, format, shuffle=1, part_bytes=300)
    assert contents(f"{url}/{format}") == contents(folder / format)
    first = next(name for name in names_of(f"{url}/{format}") if "0002" in name)
    remove(f"{url}/{format}/{first}")
    fs, path = filesystem(f"{url}/{format}/{SUMMARY}")
    before = fs.info(path)["LastModified"]
    exported(url, format, shuffle=1, part_bytes=300)
    assert contents(f"{url}/{format}") == contents(folder / format)
    assert fs.info(path)["LastModified"] >= before


def test_export_json_tells_what_is_there(folder):
    exported(folder, "mds", shuffle=1)
    told = json.loads((folder / "mds" / SUMMARY).read_text())
    assert told["tokens"] == 640 and told["parts"] == 1 and told["shuffle"] == 1
    assert told["categories"]["book"] == {
        "sequences": 40,
        "documents": 40,
        "tokens": 320,
        "share": 0.5,
    }


def test_a_second_export_replaces_the_first_on_an_object_store(s3):
    folder = "s3://bucket/export"
    write_selected(folder, "a", [[i, i] for i in range(6)])
    assert len(exported(folder, "megatron", part_bytes=8)) == 3
    (prefix,) = exported(folder, "megatron")
    assert names_of(f"{folder}/megatron") == ["a-00000.bin", "a-00000.idx", "export.json"]
    fs, path = filesystem(prefix + ".bin")
    assert np.frombuffer(fs.cat_file(path), "<u2").tolist() == [i for i in range(6) for _ in "ab"]


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_says_what_the_files_hold_and_how_they_are_read(
    format, finished, tmp_path, caplog
):
    output = tmp_path / "out"
    shutil.copytree(finished[0].output, output)
    with caplog.at_level(logging.INFO, "longattn"):
        done = CliRunner().invoke(app, ["export", str(output), "--format", format])
    assert done.exit_code == 0 and f"{output}/{format}" in done.stdout
    told = next(line for line in caplog.messages if line.startswith(f"{format} is read so: "))
    files = [path for path in (output / format).rglob("*") if path.name != "export.json"]
    for suffix in {"".join(path.suffixes[-2:]) for path in files if "index" not in path.name}:
        assert suffix in told or format == "mds"
    assert "{" not in told and ('numpy.memmap(file, "<u2")' in told) == (format == "npy")
    if format == "jsonl":
        rows = read_jsonl(next(iter(files)))
        assert all(field in told for field in rows[0])
    if format == "mds":
        index = json.loads(next(output.glob("mds/*/index.json")).read_text())
        assert all(name in told for name in index["shards"][0]["column_names"])
    page = CliRunner().invoke(app, ["export", "--help"]).output
    assert f"{format}: " in page
