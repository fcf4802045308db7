"""What is known of the scores of a folder that no run wrote, and what the commands make of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.errors import FolderError
from longattn.pipeline.labelled_sink import write_labelled_windows
from longattn.pipeline.score_actor import ScoreStage, ScoreWindows
from longattn.pipeline.window_actor import DocumentWindows
from longattn.reports.inspection import inspection_page
from longattn.resume.origin import NO_RUN, NO_SCORER, read_origin, require_origin
from longattn.scoring.settings import ScoreSettings
from longattn.storage.tables import file_metadata, write_table
from tests.conftest import WINDOW, _first_document

UNSAID = ["fingerprint", "scored_by"]


def composed(output, model, *, without=(), min_distance=None, texts=6):
    """Labelled windows as the functions of `longattn.pipeline.steps` make and write them."""
    text = _first_document("book")
    documents = pa.table(
        {
            "content": [text[p : p + 9000] for p in range(0, 9000 * texts, 9000)],
            "category": ["book"] * texts,
        }
    )
    cut = DocumentWindows(
        model=model,
        window=WINDOW,
        min_distance=WINDOW // 4,
        sample=None,
        text_column="content",
        block_bytes=1 << 24,
    )
    windows = pa.concat_tables(cut(documents))
    settings = ScoreSettings(model, min_distance, None, None, None)
    score = ScoreWindows(ScoreStage(settings, "cpu", run=False), lambda *_: None)
    write_labelled_windows(str(output), [score(windows).drop_columns(list(without))])
    return windows


@pytest.fixture(scope="module")
def said(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("said")
    composed(folder, checkpoint)
    la.select(str(folder), keep={"fraction": 0.5})
    return folder


@pytest.fixture
def mine(said, tmp_path):
    return Path(shutil.copytree(said, tmp_path / "mine"))


@pytest.fixture
def unsaid(tmp_path, checkpoint):
    """Of which nothing tells what scored it."""
    composed(tmp_path / "unsaid", checkpoint, without=UNSAID)
    la.select(str(tmp_path / "unsaid"))
    return tmp_path / "unsaid"


def some_id(folder, kind="labelled"):
    return pq.read_table(f"{folder}/{kind}")["data_id"][0].as_py()


def change(path, column, value):
    with pq.ParquetFile(path) as parquet:
        metadata, table = file_metadata(parquet), parquet.read()
    rows = table.to_pylist()
    rows[0][column] = value(rows[0][column])
    write_table(str(path), pa.Table.from_pylist(rows, table.schema.remove_metadata()), metadata)


def test_the_footers_say_what_scored_and_a_run_says_it_in_its_record(said, finished, checkpoint):
    origin = require_origin(str(said))
    assert origin.model == checkpoint and not origin.is_run and origin.unknown == NO_RUN
    assert origin.parts.fingerprint == origin.fingerprint
    assert (origin.parts.window, origin.parts.min_distance) == (WINDOW, WINDOW // 4)
    of_run = require_origin(finished[0].output)
    assert of_run.is_run and of_run.unknown == ""
    assert of_run.parts == origin.parts  # the same settings
    (file, *_) = sorted(Path(finished[0].output, "labelled").rglob("*.parquet"))
    with pq.ParquetFile(file) as parquet:
        assert "scored_by" not in file_metadata(parquet)


def test_a_folder_without_anything_is_refused(tmp_path):
    assert read_origin(str(tmp_path)) is None
    with pytest.raises(FolderError, match="no run has written here, and there are no labelled"):
        require_origin(str(tmp_path))


def test_a_footer_that_tells_of_other_settings_is_not_believed(mine):
    (file,) = (mine / "labelled").rglob("*.parquet")
    with pq.ParquetFile(file) as parquet:
        metadata, table = file_metadata(parquet), parquet.read()
    told = metadata["scored_by"].replace('"rope_theta": null', '"rope_theta": 10000.0')
    assert told != metadata["scored_by"]
    write_table(str(file), table.replace_schema_metadata(), {**metadata, "scored_by": told})
    origin = require_origin(str(mine))
    assert origin.parts is None and origin.unknown == f"{NO_RUN}; {NO_SCORER}"


def test_it_is_reported_and_says_what_is_not_known(mine, unsaid, checkpoint):
    page = Path(la.report(str(mine))).read_text()
    assert f"This folder was {NO_RUN}." in page
    assert "0.40" in page  # DS of uniform attention, at k of a quarter
    assert checkpoint in page and "Not known: no run wrote this folder." in page
    page = Path(la.report(str(unsaid))).read_text()
    assert NO_SCORER in page and "how far is not known" in page
    assert "No record was quarantined" not in page


def test_a_report_before_a_selection_is_refused_in_a_line(tmp_path, checkpoint):
    composed(tmp_path, checkpoint, texts=1)
    with pytest.raises(ValueError, match=r"nothing was selected here yet"):
        la.report(str(tmp_path))


def test_it_is_verified_as_far_as_it_says(mine, unsaid, caplog):
    assert la.verify(str(mine), scores=3) == []
    assert NO_RUN in caplog.text and "equal bit for bit" not in caplog.text.replace("3 equal", "")
    assert la.verify(str(unsaid)) == []
    assert NO_SCORER in caplog.text
    (told,) = la.verify(str(unsaid), scores=3)
    assert "the settings are not stored, so no window was scored again" in told
    la.report(str(mine))
    assert la.verify(str(mine)) == []


@pytest.mark.parametrize(
    ("column", "value", "finding"),
    [
        ("content", lambda v: v[:-1], "content is not what its ids decode to"),
        ("ds", lambda v: v + 1e-3, "ds is not the mean of its heads"),
        ("token_stop", lambda v: v + 1, f"{WINDOW} ids for tokens"),
        ("category", lambda _: "other", "category 'other' in the folder of 'book'"),
        ("input_ids", lambda v: v[:-1], f"{WINDOW - 1} ids for tokens"),
    ],
)
def test_what_is_wrong_with_it_is_found(mine, column, value, finding):
    (file,) = (mine / "labelled").rglob("*.parquet")
    change(file, column, value)
    assert any(finding in line for line in la.verify(str(mine)))


def test_a_lost_file_a_broken_one_and_another_scorers_are_found(mine, tmp_path, checkpoint):
    (file,) = (mine / "labelled").rglob("*.parquet")
    file.with_name("broken.parquet").write_bytes(file.read_bytes()[:-9])
    assert any("broken.parquet: cannot be checked" in line for line in la.verify(str(mine)))
    file.with_name("broken.parquet").unlink()
    composed(tmp_path / "other", checkpoint, min_distance=64, texts=1)
    (other,) = (tmp_path / "other/labelled").rglob("*.parquet")
    shutil.copy(other, file.with_name("z" + other.name))
    assert any("fingerprint" in line for line in la.verify(str(mine)))
    shutil.rmtree(mine / "selected")
    assert any("though selection.json lists it" in line for line in la.verify(str(mine)))


def test_a_window_of_it_is_inspected_with_what_scored_it(mine, checkpoint):
    data_id = some_id(mine)
    found = la.inspect(str(mine), data_id)
    row = pq.read_table(f"{mine}/labelled")["ds"][0].as_py()
    assert np.isclose(found.ds_h.mean(), row, rtol=1e-5)
    assert found.window.model == checkpoint and found.window.verdict is not None
    assert NO_RUN in inspection_page(found)


def test_a_guessed_scorer_is_refused_where_it_gives_another_score(unsaid, checkpoint):
    data_id = some_id(unsaid)
    with pytest.raises(ValueError, match=r"what scored it is not stored, and builtin.* gives DS"):
        la.inspect(str(unsaid), data_id)
    found = la.inspect(str(unsaid), data_id, model=checkpoint)
    row = pq.read_table(f"{unsaid}/labelled")["ds"][0].as_py()
    assert np.isclose(found.ds_h.mean(), row, rtol=1e-5)


def test_windows_of_ones_own_with_ids_alone_are_verified_and_inspected(tmp_path, checkpoint):
    windows = composed(tmp_path / "cut", checkpoint, texts=2)
    own = windows.select(["input_ids", "category"]).append_column(
        "data_id", pa.array([f"mine {i}" for i in range(len(windows))])
    )
    settings = ScoreSettings(checkpoint, None, None, None, None)
    score = ScoreWindows(ScoreStage(settings, "cpu", run=False), lambda *_: None)
    write_labelled_windows(str(tmp_path / "own"), [score(own)])
    assert la.verify(str(tmp_path / "own")) == []
    assert la.inspect(str(tmp_path / "own"), "mine 1").window.title == "mine 1"


def test_the_commands_take_it(mine):
    def call(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)

    selected = call("select", mine, "--set", "select.keep.count=2")
    assert selected.exit_code == 0 and pq.read_table(f"{mine}/selected").num_rows == 2
    assert call("report", mine).stdout == f"written: {mine}/report.html\n"
    assert call("verify", mine).stdout == f"{mine}: all holds\n"
    inspected = call("inspect", mine, some_id(mine, "selected"))
    assert inspected.exit_code == 0 and "Kept: LDS" in inspected.stdout
    assert f"Its folder was {NO_RUN}" in " ".join(inspected.stdout.split())
    assert call("run", mine).exit_code == 2  # it has no sources


def test_what_no_run_wrote_is_exported_with_the_tokenizer_that_it_names(said, tmp_path):
    shutil.copytree(said, tmp_path / "mine")
    result = CliRunner().invoke(app, ["export", str(tmp_path / "mine")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    selected = pq.read_table(tmp_path / "mine/selected").num_rows
    index = next(Path(tmp_path / "mine/megatron").glob("*.idx")).read_bytes()
    assert int.from_bytes(index[18:26], "little") == selected > 0
    told = json.loads((tmp_path / "mine/_longattn/export-megatron.json").read_text())
    assert told["vocab_size"] == 8192


def test_an_export_of_what_says_no_tokenizer_asks_for_the_model(unsaid, checkpoint):
    with pytest.raises(la.ConfigError, match=r"--set scorer\.model="):
        la.export(str(unsaid))
    paths = la.export(str(unsaid), [f"scorer.model={checkpoint}"], format="jsonl")
    assert paths and all(Path(path).exists() for path in paths)
    with pytest.raises(
        la.ConfigError, match="without a run, so it holds no settings; give a config"
    ):
        la.plan(str(unsaid))
