"""Selections with names: beside each other, each with its record; compared, verified, exported."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.config import Config
from longattn.errors import ConfigError
from longattn.reports.comparison import compared_selections
from longattn.reports.report import report_page
from longattn.reports.verify import verify
from longattn.storage.digests import sealed
from longattn.storage.output_folder import OutputFolder
from tests.reports.test_report import Page
from tests.reports.test_report import selected as selected_folder
from tests.reports.test_verify import output  # noqa: F401 - a fixture


def ids(path, name=None):
    folder = OutputFolder(str(path))
    return {
        data_id
        for url in folder.selected_files(name)
        for data_id in pq.ParquetFile(url).read(["data_id"])["data_id"].to_pylist()
    }


def test_selections_lie_side_by_side_and_leave_each_other_alone(tmp_path):
    path = selected_folder(tmp_path)
    plain = {p: p.read_bytes() for p in tmp_path.glob("selected/*/*.parquet")}
    la.select(path, name="narrow", keep={"count": 5})
    la.select(path, name="by_ds", rank_by="ds", keep={"count": 7})
    assert [len(ids(path, name)) for name in (None, "narrow", "by_ds")] == [30, 10, 14]
    assert {p: p.read_bytes() for p in tmp_path.glob("selected/*/*.parquet")} == plain
    records = tmp_path / "_longattn"
    assert json.loads((records / "selection.json").read_text())["select"]["keep"] == {
        "fraction": 0.25
    }
    stored = json.loads((records / "selections/narrow.json").read_text())
    assert stored["select"]["name"] == "narrow" and stored["categories"]["a"]["kept"] == 5
    assert stored["files"] == sorted(map(str, tmp_path.glob("selected/narrow/*/*.parquet")))
    la.select(path, keep={"count": 1})
    assert len(ids(path)) == 2 and len(ids(path, "narrow")) == 10
    la.select(path, name="narrow", keep={"count": 2})
    assert len(ids(path, "narrow")) == 4 and len(ids(path, "by_ds")) == 14


def test_a_name_and_a_category_cannot_share_a_folder(tmp_path):
    path = selected_folder(tmp_path, categories=("b",))
    la.select(path, name="a")
    with pytest.raises(
        ValueError, match=r"select\.name 'b': a category and a selection cannot share"
    ):
        la.select(path, name="b")
    selected_folder(tmp_path / "other", categories=("a",))
    (tmp_path / "other/labelled/a").rename(tmp_path / "labelled/a")
    with pytest.raises(
        ValueError, match=r"select\.name 'a': a category and a selection cannot share"
    ):
        la.select(path)
    values = {"sources": [{"category": "a", "path": "/x"}], "output": "/o"}
    with pytest.raises(ConfigError, match=r"select\.name 'a' is a category"):
        Config.parse({**values, "select": {"name": "a"}})
    with pytest.raises(ConfigError, match="no source has the category 'b'; there are: a"):
        Config.parse({**values, "select": {"categories": {"b": {"keep": {"count": 1}}}}})


def test_the_report_compares_selections(tmp_path):
    path = selected_folder(tmp_path)
    assert compared_selections(OutputFolder(path)) == []
    la.select(path, name="by_ds", rank_by="ds", keep={"count": 10})
    plain, named = compared_selections(OutputFolder(path))
    assert (plain.name, named.name, named.windows, named.tokens) == ("selected", "by_ds", 20, 160)
    for category in ("a", "b"):
        of = [{i for i in ids(path, name) if i.startswith(category)} for name in (None, "by_ds")]
        both = len(of[0] & of[1])
        assert plain.overlap["by_ds"][category] == pytest.approx(both / 15)
        assert named.overlap["selected"][category] == pytest.approx(both / 10)
    rows = [
        row
        for url in OutputFolder(path).selected_files("by_ds")
        for row in pq.ParquetFile(url).read(["data_id", "ds"]).to_pylist()
        if row["data_id"].startswith("a")
    ]
    low, middle, high = named.values["a"]["ds"]
    assert min(r["ds"] for r in rows) < low < middle < high < max(r["ds"] for r in rows)
    text = Page(report_page(path)).text
    assert "Selections side by side" in text and "by ds; 10 windows of each category" in text


def test_the_report_of_a_run_is_of_the_last_selection(output):  # noqa: F811
    la.select(str(output), name="few", keep={"count": 3})
    assert (
        "Kept in few: 3 windows of each category" in Page((output / "report.html").read_text()).text
    )
    la.select(str(output), keep={"count": 4})
    assert "Kept: 4 windows of each category" in Page((output / "report.html").read_text()).text


def test_the_report_says_what_bounds_take_out_and_what_chosen_heads_change(tmp_path):
    path = selected_folder(tmp_path)
    la.select(path, heads=[0], where=[{"column": "recurrence", "quantiles": [0.1, 1]}])
    text = Page(report_page(path)).text
    assert re.search(r"a\s*recurrence quantiles 0.1 to 1\s*6\s*10 %", text)
    assert "a: DS and variance are means over head 0: as the settings say." in text
    assert re.search(r"By all heads, (100|9\d(\.\d)?) % of the kept would be the same", text)


def test_a_run_with_named_selections_holds_and_damage_is_found(output):  # noqa: F811
    la.select(str(output), name="few", keep={"count": 3}, where=[{"column": "ds", "min": 0}])
    la.select(str(output), name="pairs", rank_by="recurrence_pairs", heads=[1], per_document=1)
    assert list(verify(str(output))) == []
    la.select(str(output))
    assert list(verify(str(output))) == []
    record = output / "_longattn/selections/few.json"
    values = json.loads(record.read_text())
    record.write_text(
        json.dumps(sealed({**values, "select": {**values["select"], "keep": {"count": 2}}}))
    )
    assert any(
        "selected/few: 2 windows should not be selected" in line for line in verify(str(output))
    )
    record.unlink()
    lines = list(verify(str(output)))
    assert any("selected/few: selected files, and no few.json" in line for line in lines)
    next(Path(output).glob("selected/pairs/*/*.parquet")).unlink()
    assert any("selected/pairs" in line and "not there" in line for line in verify(str(output)))


def test_the_selection_that_the_config_names_is_exported(output):  # noqa: F811
    whole = la.export(str(output))
    la.select(str(output), name="few", keep={"count": 2})
    settings = Config.of(str(output), ["select.name=few"])
    assert all("/megatron-few/" in prefix for prefix in la.export(settings))
    assert all(Path(prefix + ".bin").exists() for prefix in whole)
    small = sum(file.stat().st_size for file in output.glob("megatron-few/*.bin"))
    assert small == 2 * 2 * 512 * 2
    la.export(str(output))
    assert list(output.glob("megatron-few/*.bin"))
