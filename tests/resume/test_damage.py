"""Damaged files are moved aside, and said: what each was, and what becomes of it."""

from longattn.resume.damage import damaged_records, set_aside
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import write_record


def test_ten_are_named_and_the_others_counted(tmp_path, caplog):
    folder = OutputFolder(str(tmp_path / "out"))
    places = ["labelled/book/a.parquet", "scores/gap/book/a.parquet", "_longattn/splits/a.json"]
    places += ["_longattn/summary.json", *(f"labelled/code/{i}.parquet" for i in range(8))]
    for place in places:
        path = tmp_path / "out" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(place)
    gone = f"{folder.url}/labelled/code/gone.parquet"  # which another run has moved
    set_aside(folder.url, {gone: "x"} | {f"{folder.url}/{place}": "broken" for place in places})
    asides = ["book/a.parquet", "scores/gap/book/a.parquet", "splits/a.json"]
    asides += ["_longattn/summary.json", *(f"code/{i}.parquet" for i in range(8))]
    for place, aside in zip(places, asides, strict=True):
        assert not (tmp_path / "out" / place).exists()
        assert (tmp_path / "out/damaged" / aside).read_text() == place
    ends = {line.partition("out/")[2].partition(": broken; ")[0]: line for line in caplog.messages}
    assert ends[places[0]].endswith("set aside in damaged/, its windows are scored again")
    assert ends[places[1]].endswith("set aside in damaged/, its windows are scored again")
    assert ends[places[2]].endswith("set aside in damaged/, its splits are read again")
    assert ends[places[3]].endswith("set aside in damaged/, it is written again")
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == "3 more damaged files were set aside"


def test_records_that_decide_nothing_may_be_damaged(tmp_path):
    folder = OutputFolder(str(tmp_path))
    assert damaged_records(folder.url) == {}
    for name in ("summary", "rates", "run"):
        write_record(folder.record(name), {"a": 1})
    assert damaged_records(folder.url) == {}
    for name in ("rates", "run"):
        path = tmp_path / f"_longattn/{name}.json"
        path.write_text(path.read_text().replace("1", "2", 1))
    found = {folder.record("rates"): "damaged: it is not what its checksum was taken of"}
    assert damaged_records(folder.url) == found
