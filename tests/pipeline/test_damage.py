"""A run, and a selection, that find stored files damaged: made anew, by name, to the same bytes."""

import json
import shutil
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.reports.verify import verify
from longattn.storage.page_seal import read_seal
from longattn.storage.tables import METADATA_KEY, DamagedFileError, write_table
from tests.corruptions import first, rewritten

run = partial(la.run, executor="local")


@pytest.fixture(scope="module")
def moved(finished, tmp_path_factory):
    """A copy of the finished run whose records name its own place, and a copy of that elsewhere."""
    folder = tmp_path_factory.mktemp("damage")
    shutil.copytree(finished[0].output, folder / "out")
    settings = finished[0].model_copy(update={"output": str(folder / "out")})
    run(settings)
    shutil.copytree(folder / "out", folder / "whole")
    return settings, folder


@pytest.fixture
def copied(moved):
    """That copy, whole, to break."""
    settings, folder = moved
    shutil.rmtree(folder / "out")
    shutil.copytree(folder / "whole", folder / "out")
    return settings, folder / "out"


def data_files(output):
    places = ("labelled", "selected")
    return {
        p.relative_to(output): p.read_bytes()
        for f in places
        for p in (output / f).rglob("*.parquet")
    }


def bit_flipped(path, column):
    """Flip a bit in the first page of a column."""
    with pq.ParquetFile(path) as parquet:
        place = parquet.schema_arrow.names.index(column)
        chunk = parquet.metadata.row_group(0).column(place)
        start, size = chunk.data_page_offset, chunk.total_compressed_size
    data = bytearray(path.read_bytes())
    data[start + size - 3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a lost row": (lambda path: rewritten(path, lambda rows: rows[1:], reseal=False), False),
    "a truncated file": (lambda path: path.write_bytes(path.read_bytes()[:-30]), False),
    "a flipped bit that selection reads": (lambda path: bit_flipped(path, "ds"), False),
    "a flipped bit that it does not read": (lambda path: bit_flipped(path, "content"), True),
    "other scores": (
        lambda path: rewritten(path, lambda r: [{**x, "ds": x["ds"] + 1} for x in r], reseal=False),
        True,
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_labelled_file_is_set_aside_and_scored_again(copied, caplog, damage):
    settings, output = copied
    before = data_files(output)
    path = first(output, "labelled")
    plant, check = DAMAGES[damage]
    plant(path)
    with caplog.at_level("WARNING", "longattn"):
        summary = run(settings, check=check)
    assert summary.score.windows > 0 and data_files(output) == before
    assert f"{path}: " in caplog.text and "set aside in damaged/" in caplog.text
    assert [p.name for p in (output / "damaged").rglob("*.parquet")] == [path.name]
    assert list(verify(str(output))) == []
    assert run(settings, check=True).score.windows == 0


def test_a_damaged_marker_is_set_aside_and_its_splits_are_read_again(copied, caplog):
    settings, output = copied
    path = sorted((output / "_longattn/splits").iterdir())[0]
    path.write_text(path.read_text().replace('"windows": ', '"windows": 1', 1))
    with caplog.at_level("WARNING", "longattn"):
        summary = run(settings)
    assert f"{path}: damaged" in caplog.text and "its splits are read again" in caplog.text
    assert summary.score.windows == 0 < summary.window.documents
    assert list(verify(str(output))) == []


@pytest.mark.parametrize("record", ["run", "samples"])
def test_a_damaged_record_is_refused_in_a_line_that_names_it(copied, record):
    settings, output = copied
    path = output / f"_longattn/{record}.json"
    for text in ("{", "[1]", "[" * 100_000, path.read_text().replace("0", "1", 1), "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ValueError, match=f"{record}.json: ") as refusal:
            run(settings)
        assert len(str(refusal.value).splitlines()) == 1


def test_files_of_other_programs_are_left_and_named(copied, caplog):
    settings, output = copied
    foreign = [output / f"{place}/book/theirs.parquet" for place in ("labelled", "selected")]
    for path in foreign:
        pq.write_table(pa.table({"x": [1]}), path)
    with caplog.at_level("WARNING", "longattn"):
        run(settings)
    for path in foreign:
        assert path.exists() and f"{path} was not written by longattn: left alone" in caplog.text
    found = "\n".join(verify(str(output)))
    assert all(str(path) in found for path in foreign)


SELECTED_DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "a lost row": lambda path: rewritten(path, lambda rows: rows[1:], reseal=True),
    "another value": lambda path: rewritten(
        path, lambda rows: [{**row, "source": "x"} for row in rows], reseal=False
    ),
    "a flipped bit": lambda path: bit_flipped(path, "input_ids"),
    "of another selection": lambda path: _with_settings(path, {"alpha": 9}),
}


def _with_settings(path: Path, settings):
    metadata = json.loads(pq.read_metadata(path).metadata[METADATA_KEY])
    table = pq.read_table(path, partitioning=None).replace_schema_metadata()
    write_table(str(path), table, {**metadata, "select": settings})


@pytest.mark.parametrize("damage", SELECTED_DAMAGES)
def test_select_writes_anew_what_is_not_what_it_means_to_hold(copied, caplog, damage):
    settings, output = copied
    before = data_files(output)
    path = first(output, "selected")
    SELECTED_DAMAGES[damage](path)
    with caplog.at_level("WARNING", "longattn"):
        la.select(str(output), settings.select)
    assert data_files(output) == before
    assert f"{path}: " in caplog.text and "it is written anew" in caplog.text


def test_select_of_a_damaged_labelled_file_is_refused_by_name(copied):
    settings, output = copied
    path = first(output, "labelled")
    bit_flipped(path, "ds")
    with pytest.raises(DamagedFileError, match=path.name):
        la.select(str(output), settings.select)


def test_select_writes_anew_what_tells_of_a_selection(copied):
    settings, output = copied
    chosen = la.select(str(output), keep={"count": 3})
    told = json.loads((output / "_longattn/summary.json").read_text())
    assert told["categories"]["book"]["kept"] == chosen["book"].kept == 3
    seal = read_seal((output / "report.html").read_bytes())
    assert seal["selection"] == told["selection"]
    assert list(verify(str(output))) == []
    again = run(settings)
    assert again.categories["book"].selection.kept > 3 and list(verify(str(output))) == []


def test_some_windows_are_scored_again_on_demand(copied, caplog):
    _, output = copied
    with caplog.at_level("INFO", "longattn"):
        assert list(verify(str(output), scores=4)) == []
    assert "4 windows scored again in float32 on cpu" in caplog.text
    for path in (output / "labelled").rglob("*.parquet"):

        def moved(rows):
            return [
                {**r, "ds": r["ds"] * 1.01, "ds_heads": [h * 1.01 for h in r["ds_heads"]]}
                for r in rows
            ]

        rewritten(path, moved, reseal=True)
    found = [line for line in verify(str(output), scores=4) if "is now" in line]
    assert len(found) == 4 and "ds is now 9.9e-03 of it away" in found[0]


def test_the_footer_tells_the_kind_of_processor_and_a_mixture_is_told(copied, caplog):
    settings, output = copied
    url = first(output, "labelled/book")
    kind = footer(url)["scored_on"]
    assert "CPU, " in kind
    assert run(settings).to_dict()["scored_on"].keys() == {kind}
    assert f"Scored on {kind}" in (output / "report.html").read_text()
    rows = rewritten_footer(url, scored_on="NVIDIA H200")
    caplog.clear()
    summary = run(settings).to_dict()
    assert summary["scored_on"]["NVIDIA H200"] == rows and len(summary["scored_on"]) == 2
    assert caplog.text.count("scored on several kinds of processor: NVIDIA H200") == 1
    assert "Scores of several kinds of processor" in (output / "report.html").read_text()
    caplog.clear()
    assert list(verify(str(output))) == []
    assert caplog.text.count("scored on several kinds") == 1
    rewritten_footer(url, scored_on=kind)
    assert any("the footers of labelled files say" in line for line in verify(str(output)))


def footer(path):
    with pq.ParquetFile(path) as parquet:
        return json.loads(parquet.metadata.metadata[METADATA_KEY])


def rewritten_footer(path, **changes):
    """The rows with another footer; returns how many they are."""
    told = {k: v for k, v in footer(path).items() if k not in ("rows", "digest", "checksum")}
    table = pq.read_table(path, partitioning=None).replace_schema_metadata()
    write_table(str(path), table, {**told, **changes})
    return len(table)
