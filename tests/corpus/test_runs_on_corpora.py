"""What a whole run, in this process, makes of corpora: the user's columns, files nothing is read of."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.corpus.counts import Counts, ReadTotals
from longattn.corpus.records import Reason, bad_record
from longattn.resume.remaining import find_remaining
from longattn.storage.records import read_record
from longattn.storage.tables import LABELLED, SELECTED
from tests.corpus.files import jsonl, parquet, put, splits_of
from tests.corpus.test_arrow import arrow


def document(seed: int) -> str:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(50)]
    return " ".join(draw.choices(words, k=600))


def settings(tmp_path: Path, *sources: dict, **more: object) -> la.Config:
    values = {"sources": list(sources), "output": str(tmp_path / "out"), "window": {"tokens": 128}}
    return la.Config.parse({**values, **more})


def tables(folder: Path) -> pa.Table:
    files = [pq.ParquetFile(file).read() for file in sorted(folder.rglob("*.parquet"))]
    assert len({str(table.schema.remove_metadata()) for table in files}) == 1
    return pa.concat_tables(files)


def test_columns_of_the_corpus_join_a_selection_back_to_it(tmp_path: Path) -> None:
    rows = [{"content": document(i), "id": i, "url": f"u{i}", "meta": {"n": i}} for i in range(4)]
    put(tmp_path / "a" / "a.jsonl", jsonl(rows))
    table = pa.table({"content": [document(9)], "id": pa.array([9], pa.int32()), "url": ["u9"]})
    put(tmp_path / "b" / "b.parquet", parquet(table))
    asked = {"columns": ["id", "url", "meta"]}
    config = settings(
        tmp_path,
        {"category": "a", "path": str(tmp_path / "a"), **asked},
        {"category": "a", "path": str(tmp_path / "b"), "columns": ["id"]},
        {"category": "c", "path": str(tmp_path / "b")},
    )
    la.run(config, executor="local")
    by_text = {document(i): i for i in (0, 1, 2, 3, 9)}
    for folder, schema in (("labelled", LABELLED), ("selected", SELECTED)):
        got = tables(tmp_path / "out" / folder)
        assert got.schema.names == [*schema.names, "id", "meta", "url"]
        assert [got.schema.field(name).type for name in ("id", "meta", "url")] == [
            pa.int64(),
            pa.string(),
            pa.string(),
        ]
        for row in got.to_pylist():
            number = next(i for text, i in by_text.items() if row["content"].strip() in text)
            ours = row["category"] == "a"
            assert row["id"] == (number if ours else None)
            assert row["url"] == (f"u{number}" if ours and number < 9 else None)
            assert row["meta"] == (json.dumps({"n": number}) if ours and number < 9 else None)
    types = read_record(f"{tmp_path}/out/_longattn/columns.json")
    assert types == {"id": "int64", "meta": "string", "url": "string"}
    assert list(la.verify(str(tmp_path / "out"))) == []
    # Later files keep the types of the folder: what does not fit is null.
    put(tmp_path / "a" / "z.jsonl", jsonl([{"content": document(20), "id": "x20", "url": 7}]))
    la.run(config, executor="local")
    late = [
        r
        for r in tables(tmp_path / "out" / "labelled").to_pylist()
        if r["source"].endswith("z.jsonl")
    ]
    assert late and {(row["id"], row["url"]) for row in late} == {(None, "7")}


def test_columns_of_types_that_cannot_be_written_as_they_are_are_strings(tmp_path: Path) -> None:
    columns = {
        "view": pa.array(["a", "b"], pa.string_view()),
        "bytes": pa.array([b"a", b"b"], pa.binary_view()),
        "span": pa.array([(1, 2, 3), (4, 5, 6)], pa.month_day_nano_interval()),
    }
    put(tmp_path / "a.arrow", arrow(pa.table({"content": [document(0), document(1)], **columns})))
    source = {"category": "a", "path": str(tmp_path / "a.arrow"), "columns": [*columns]}
    la.run(settings(tmp_path, source), executor="local")
    for folder in ("labelled", "selected"):
        got = tables(tmp_path / "out" / folder)
        assert [got.schema.field(name).type for name in columns] == [pa.string()] * 3
        assert set(got["view"].to_pylist()) == {"a", "b"}
        assert None not in got["bytes"].to_pylist() + got["span"].to_pylist()


def test_a_column_asked_for_after_the_windows_were_scored_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a" / "a.jsonl", jsonl([{"content": document(0), "id": 1, "url": "u"}]))
    source = {"category": "a", "path": str(tmp_path / "a")}
    told = "windows labelled before lack the column 'id'"
    for columns, said in ((["url"], False), (["url"], False), (["url", "id"], True)):
        caplog.clear()
        la.run(settings(tmp_path, {**source, "columns": columns}), executor="local")
        assert (told in caplog.text) == said, columns
        assert "'url'" not in caplog.text


def test_files_have_the_same_columns_whatever_remained_to_be_done(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", jsonl([{"content": document(0), "id": 1}]))
    put(tmp_path / "b.jsonl", jsonl([{"content": document(1)}]))
    sources = [{"category": name, "path": str(tmp_path / f"{name}.jsonl")} for name in "ab"]
    config = settings(tmp_path, {**sources[0], "columns": ["id"]}, sources[1])
    la.run(config, executor="local")
    unbroken = tables(tmp_path / "out" / "labelled")
    for file in (tmp_path / "out" / "labelled" / "b").iterdir():
        file.unlink()
    la.run(config, executor="local")
    assert tables(tmp_path / "out" / "labelled").equals(unbroken)


@pytest.mark.parametrize(
    "name", ["content", "source", "DS", "ds_k64", "lds", "split", "fingerprint"]
)
def test_a_name_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    put(tmp_path / "a.jsonl", jsonl([{"content": "x", name: 1}]))
    source = {"category": "a", "path": str(tmp_path / "a.jsonl"), "columns": [name]}
    with pytest.raises(
        la.ConfigError if hasattr(la, "ConfigError") else ValueError,
        match=f"{name!r} is a column of longattn",
    ):
        la.run(settings(tmp_path, source), executor="local")
    assert not (tmp_path / "out").exists()
    source["columns"] = ["id", "ID"]
    with pytest.raises(ValueError, match="more than once, whatever its case"):
        la.run(settings(tmp_path, source), executor="local")


def test_a_file_of_which_nothing_is_read_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "in" / "good.jsonl", jsonl([{"content": document(1)}, {"content": 7}]))
    put(tmp_path / "in" / "other.jsonl", jsonl([{"body": "x"}] * 3))
    put(tmp_path / "in" / "photo.jsonl", b"%PDF-1.7 ...")
    put(tmp_path / "in" / "empty.jsonl", b"")
    put(tmp_path / "in" / "notes.md", b"x")
    config = settings(tmp_path, {"category": "a", "path": str(tmp_path / "in")})
    summary = la.run(config, executor="local").to_dict()
    named = [m for m in caplog.messages if "nothing could be read" in m]
    assert named == [
        f"{tmp_path}/in/other.jsonl: nothing could be read: no_text_column: its columns are 'body'",
        f"{tmp_path}/in/photo.jsonl: nothing could be read: unreadable: a PDF",
    ]
    assert summary["categories"]["a"]["unread"] == 2
    assert summary["left_out"] == {f"{tmp_path}/in": {".md": 1}}
    assert f"left out below {tmp_path}/in: 1 .md" in caplog.text


def test_unread_lines_are_bounded() -> None:
    totals = ReadTotals()
    for i in range(13):
        counts = Counts()
        counts.add_bad(bad_record(0, Reason.NOT_JSON, "x"))
        counts.end()
        totals.add(Counts.from_dict(json.loads(json.dumps(counts.to_dict()))), f"f{i:02}")
    lines = totals.unread_lines(10)
    assert lines[0] == "f00: nothing could be read: not_json: x"
    assert lines[10:] == ["of 3 more files nothing could be read"]
    whole = Counts()
    whole.add(counts)
    whole.add(counts)
    assert (whole.unread, whole.bad.total(), whole.first_bad) == (2, 2, "")


def test_a_record_over_the_cap_is_read_again_only_under_a_larger_cap(tmp_path: Path) -> None:
    rows = [{"content": document(i)} for i in range(2)] + [{"content": document(3) * 20}]
    put(tmp_path / "in" / "a.jsonl", jsonl(rows))
    put(tmp_path / "in" / "b.jsonl", jsonl(rows[:1]))
    source = {"category": "a", "path": str(tmp_path / "in")}
    la.run(settings(tmp_path, source, max_record_bytes=10_000), executor="local")
    splits = list(splits_of(tmp_path / "in"))
    splits = [type(s)(**{**vars(s), "category": "a", "text_column": "content"}) for s in splits]
    out = str(tmp_path / "out")
    for cap, left in ((0, []), (5_000, []), (10_000, []), (10_001, ["a.jsonl"])):
        remaining = find_remaining(out, splits, max_record_bytes=cap)
        assert [Path(split.path).name for split in remaining.splits] == left
