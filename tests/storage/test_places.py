"""Where things lie in an output folder: the table at the top of its module, and what is found there."""

import re

import pytest

from longattn.storage import output_folder
from longattn.storage.files import write_bytes
from longattn.storage.output_folder import OutputFolder

OUT = OutputFolder("s3://b/out/")
PLACES = {
    "labelled/<category>/*.parquet": f"{OUT.labelled}/<category>/*.parquet",
    "selected/<category>/*.parquet": f"{OUT.selection(None)}/<category>/*.parquet",
    "selected/<name>/<category>/*.parquet": f"{OUT.selection('<name>')}/<category>/*.parquet",
    "scores/<name>/<category>/*.parquet": OUT.score_file(
        "<name>", f"{OUT.labelled}/<category>/*.parquet"
    ),
    "quarantine/*.parquet": f"{OUT.quarantine}/*.parquet",
    "damaged/": f"{OUT.damaged}/",
    "jsonl/": f"{OUT.export('jsonl')}/",
    "README.md": OUT.card,
    "report.html": OUT.report,
    "evaluation.html": OUT.evaluation("html"),
    "inspections/<data_id>.html": OUT.inspection("<data_id>"),
    "_longattn/run.json": OUT.record("run"),
    "_longattn/scores/<name>.json": OUT.score_record("<name>"),
    "_longattn/splits/*.json": f"{OUT.markers}/*.json",
    "_longattn/shards/*.json": f"{OUT.shards}/*.json",
    "_longattn/selection.json": OUT.selection_record(None),
    "_longattn/selections/<name>.json": OUT.selection_record("<name>"),
}


@pytest.mark.parametrize("place", PLACES)
def test_each_thing_lies_where_the_table_says(place):
    assert PLACES[place] == f"s3://b/out/{place}"
    assert re.search(rf"^(.* )?{re.escape(place)}( |,|$)", output_folder.__doc__, re.MULTILINE)


def test_an_export_of_a_named_selection_lies_beside_that_of_the_other():
    assert OUT.export("mds", "best") == "s3://b/out/mds-best"


@pytest.fixture
def out(tmp_path):
    for place in (
        "labelled/b/x.parquet", "labelled/a/y.parquet", "labelled/ab/z.parquet", "labelled/a/n.txt",
        "selected/a/x.parquet", "selected/best/a/y.parquet", "selected/best/b/z.parquet",
        "scores/gap/a/y.parquet", "scores/gap2/a/y.parquet",
        "_longattn/scores/gap.json", "_longattn/scores/gap2.json",
        "_longattn/selections/best.json", "_longattn/selections/a.json", "_longattn/selection.json",
        "_longattn/summary.json", "report.html",
    ):  # fmt: skip
        write_bytes(f"{tmp_path}/{place}", b"x" * len(place))
    return OutputFolder(f"{tmp_path}/")


def sizes(out, *places):
    return {f"{out.url}{place}": len(place) for place in places}


def test_what_is_there_is_listed(out):
    labelled = ("labelled/a/y.parquet", "labelled/ab/z.parquet", "labelled/b/x.parquet")
    assert list(out.labelled_files().items()) == list(sizes(out, *labelled).items())
    assert out.labelled_files("a") == sizes(out, labelled[0])
    assert out.labelled_files("none") == {}
    assert out.score_files("gap") == sizes(out, "scores/gap/a/y.parquet")
    assert out.score_names() == ["gap", "gap2"]
    assert out.selections() == [None, "a", "best"]
    best = sizes(out, "selected/best/a/y.parquet", "selected/best/b/z.parquet")
    assert out.selected_files("best") == best
    assert out.selected_files() == sizes(out, "selected/a/x.parquet")
    assert out.all_selected_files() == {None: out.selected_files(), "best": best}
    places = ("labelled", "selected", "_longattn/summary.json", "report.html")  # no quarantine
    assert out.shown() == [f"{out.url}{place}" for place in places]


def test_of_a_folder_that_is_not_there_nothing_is_listed(tmp_path):
    out = OutputFolder(str(tmp_path / "none"))
    assert out.labelled_files() == out.selected_files() == out.all_selected_files() == {}
    assert out.selected_files("best") == out.score_files("gap") == {}
    assert out.selections() == out.score_names() == out.shown() == []
