"""The look before a run: no single file decides, and what is nowhere is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from longattn.corpus import first_look
from longattn.corpus.first_look import check_sources, column_types, with_types
from longattn.corpus.reading import read_split
from longattn.corpus.records import Record
from longattn.corpus.sources import list_sources, list_splits
from tests.corpus.files import ROWS, TEXTS, Source, jsonl, parquet, put, read, splits_of, texts
from tests.corpus.test_arrow import arrow

SOME = pd.DataFrame({"text": TEXTS}, dtype=object)
NULLS = pd.DataFrame({"text": [None] * 3}, dtype=object)
LEADING = {
    "empty.parquet": SOME[SOME.text == "no such"].to_parquet(),
    "nulls.parquet": NULLS.to_parquet(),
    "empty.arrow": arrow(pa.table({"text": pa.array([], pa.string())})),
    "nulls.arrow": arrow(pa.table({"text": pa.nulls(3)})),
    "nulls.jsonl": jsonl([{"text": None}] * 150),
    "empty.jsonl": b"",
    "broken.jsonl": b"oops\n" * 150,
    "empty.json": b"[]",
    "empty.csv": b"text\n",
    "broken.parquet": b"PAR1" * 9,
    "empty.txt.gz": b"",
}


@pytest.mark.parametrize("first", LEADING)
def test_a_first_file_without_text_does_not_decide(tmp_path: Path, first: str) -> None:
    for folder, name in (("before", "z"), ("after", "a")):
        place = tmp_path / folder
        put(place / (f"b{first}" if folder == "before" else f"z{first}"), LEADING[first])
        put(place / f"{name}.parquet", SOME.to_parquet())
        check_sources(splits_of(place))
        assert texts(read(place)) == TEXTS
    check_sources(splits_of(put(tmp_path / "alone" / first, LEADING[first])))


def test_leading_nulls_do_not_hide_what_follows(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", jsonl([{"text": None}] * 120 + ROWS))
    check_sources(splits_of(file))
    assert texts(read(file)) == TEXTS


OTHERS = {
    "a.jsonl": jsonl([{"body": "x", "id": 1}]),
    "a.json": b'[{"body": "x", "id": 1}]',
    "a.csv": b"body,id\nx,1\n",
    "a.parquet": parquet(pa.table({"body": ["x"], "id": [1]})),
    "a.arrow": arrow(pa.table({"body": ["x"], "id": [1]})),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_column_that_is_nowhere_is_refused_with_what_is_there(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, OTHERS[name])
    put(tmp_path / f"nulls-{name.rpartition('.')[0]}.jsonl", jsonl([{"text": None}] * 3))
    with pytest.raises(ValueError, match=r"no text in column 'text': its columns are 'body', 'id'"):
        check_sources(splits_of(tmp_path))
    put(tmp_path / "nulls-a.jsonl", jsonl(ROWS))
    check_sources(splits_of(tmp_path))


def test_the_setting_that_names_the_column_is_told(tmp_path: Path) -> None:
    file = str(put(tmp_path / "a.jsonl", OTHERS["a.jsonl"]))
    sources = [Source(file, "other"), Source(file), Source(file, text_column="body"), Source(file)]
    splits = list_splits(sources[1:2])
    for given, told in (
        (sources, r"sources\.1\.text_column or sources\.3\.text_column: "),
        ((), ""),
    ):
        with pytest.raises(ValueError, match=rf"^{told}{file}: no text in column 'text': "):
            check_sources(splits, given)


def test_each_category_and_column_is_looked_at_by_itself(tmp_path: Path) -> None:
    file = str(put(tmp_path / "a.jsonl", OTHERS["a.jsonl"]))
    good = Source(file, text_column="body")
    for bad in (Source(file), Source(file, "other"), Source(file, text_column="id")):
        for sources in ([good, bad], [bad, good]):
            with pytest.raises(ValueError, match=f"no text in column '{bad.text_column}'"):
                check_sources(list_splits(sources))


@pytest.mark.parametrize(("leading", "refused"), [(7, False), (8, True)])
def test_of_a_folder_eight_files_are_looked_at(tmp_path: Path, leading: int, refused: bool) -> None:
    for i in range(leading):
        put(tmp_path / f"{i}.jsonl", jsonl([{"body": "x"}]))
    put(tmp_path / "z.jsonl", jsonl(ROWS))
    if refused:
        with pytest.raises(ValueError, match=r"0\.jsonl: no text in column 'text'"):
            check_sources(splits_of(tmp_path))
    else:
        check_sources(splits_of(tmp_path))
    # Of each format in turn: one of the other kind is among the first.
    put(tmp_path / "zz.parquet", SOME.to_parquet())
    check_sources(splits_of(tmp_path))


@pytest.mark.parametrize(("lines", "refused"), [(99, False), (100, True)])
def test_of_a_file_a_hundred_records_are_looked_at(
    tmp_path: Path, lines: int, refused: bool
) -> None:
    file = put(tmp_path / "a.jsonl", jsonl([{"body": "x"}] * lines + [{"text": "good"}]))
    if refused:
        with pytest.raises(ValueError, match="its columns are 'body'"):
            check_sources(splits_of(file))
    else:
        check_sources(splits_of(file))


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.arrow"):
        (split,) = list_splits([Source(str(put(tmp_path / name, OTHERS[name])), text_column="id")])
        with pytest.raises(ValueError, match="no text in column 'id': int"):
            check_sources([split])


def test_a_bounded_number_of_files_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        for j in range(30):
            put(tmp_path / f"{i:02}" / f"{j:02}.jsonl", jsonl([{"text": None}]))
    looked: Counter[str] = Counter()
    look = first_look._look

    def counted(split):  # type: ignore[no-untyped-def]
        looked[split.path] += 1
        return look(split)

    monkeypatch.setattr(first_look, "_look", counted)
    check_sources(splits_of(tmp_path))
    assert looked.total() == first_look.FOLDERS_CHECKED * first_look.FILES_CHECKED


# ---------------------------------------------------------------------------------- what is left out


def test_files_of_other_kinds_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a.jsonl", jsonl(ROWS))
    for name in [
        "a.md",
        "b.MD",
        "c/LICENSE",
        "c/Makefile",
        "c/notes.txt",
        "state.json",
        "x.tar.gz",
        ".hidden.md",
        "_SUCCESS",
        "deep_$folder$",
        "a.jsonl.lock",
    ]:
        put(tmp_path / name, b"x")
    listing = list_sources([Source(str(tmp_path))])
    assert [Path(split.path).name for split in listing.splits] == ["a.jsonl"]
    expected = {".md": 2, "without suffix": 2, ".txt": 1, "state.json": 1, ".gz": 1, ".lock": 1}
    assert listing.left_out == {str(tmp_path): Counter(expected)}
    (line,) = listing.left_out_lines()
    assert line.startswith(f"left out below {tmp_path}: 2 .md, 2 without suffix, ")
    list_splits([Source(str(tmp_path))])
    assert caplog.messages.count(line) == 1
    assert list_sources([Source(str(tmp_path / "a.jsonl"))]).left_out == {}
    assert list_sources([Source(str(tmp_path / "*.jsonl"))]).left_out == {}


def test_text_files_are_documents_where_there_is_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "books" / "a.txt", b"one")
    put(tmp_path / "books" / "b.txt.gz", b"")
    put(tmp_path / "books" / "README.md", b"x")
    put(tmp_path / "data" / "a.jsonl", jsonl(ROWS))
    put(tmp_path / "data" / "README.txt", b"x")
    assert texts(read(tmp_path / "books")) == ["one"]
    assert texts(read(tmp_path / "data")) == TEXTS
    assert texts(read(tmp_path / "data" / "*.txt")) == ["x"]
    for pattern in ("", "/**", "/*"):
        assert texts(read(f"{tmp_path}{pattern}"))[-40:] == TEXTS


# ------------------------------------------------------------------------------- further columns


def typed(
    *sources: Source, known: dict[str, str] | None = None
) -> tuple[dict[str, str], list[Record]]:
    splits = list_splits(sources)
    types = column_types(splits, known)
    items = [item for split in with_types(splits, types) for item in read_split(split)]
    return types, [item for item in items if isinstance(item, Record)]


VALUES = {
    "id": (["a", "b"], "string"),
    "n": ([1, 2**60], "int64"),
    "x": ([1, 2.5], "double"),
    "ok": ([True, False], "bool"),
    "mixed": ([1, "one"], "string"),
    "odd": ([True, 1], "string"),
    "tags": ([["é"], {"a": 1}], "string"),
    "some": ([None, 3], "int64"),
    "none": ([None, None], "string"),
    "big": ([1, 2**63], "string"),
}
AS_TEXT = {
    "mixed": ["1", "one"], "odd": ["true", "1"], "tags": ['["é"]', '{"a": 1}'],
    "big": ["1", str(2**63)],
}  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_columns_have_one_type(tmp_path: Path, name: str) -> None:
    import json

    rows = [
        {"text": "t", **{key: values[i] for key, (values, _) in VALUES.items()}} for i in (0, 1)
    ]
    data = jsonl(rows) if name == "a.jsonl" else json.dumps(rows).encode()
    file = put(tmp_path / name, data)
    types, records = typed(Source(str(file), columns=tuple(VALUES)))
    assert types == {key: kind for key, (_, kind) in VALUES.items()}
    for key, (values, _) in VALUES.items():
        assert [record.extra[key] for record in records] == AS_TEXT.get(key, values)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_table_columns_are_typed_as_they_are(tmp_path: Path, name: str) -> None:
    columns = {
        "i8": pa.array([1, None], pa.int8()),
        "u64": pa.array([2**63, 1], pa.uint64()),
        "f32": pa.array([0.5, 1.5], pa.float32()),
        "flag": pa.array([True, None]),
        "word": pa.array(["a", "b"]).dictionary_encode(),
        "day": pa.array([1, 2], pa.date32()),
        "ns": pa.array([1, 10**18 + 1], pa.timestamp("ns")),
        "zoned": pa.array([1, 2], pa.timestamp("us", tz="Europe/Berlin")),
        "list": pa.array([[1], None]),
        "meta": pa.array([{"url": "u", "n": 1}, {"url": None, "n": 2}]),
    }
    table = pa.table({"text": ["s", "t"], **columns})
    file = put(tmp_path / name, parquet(table) if name == "a.parquet" else arrow(table))
    asked = (*columns, "meta.url")
    types, records = typed(Source(str(file), columns=asked))
    plain = {
        "i8": "int8",
        "u64": "uint64",
        "f32": "float",
        "flag": "bool",
        "word": "string",
        "day": "date32[day]",
        "ns": "timestamp[ns]",
        "zoned": "timestamp[us, tz=Europe/Berlin]",
    }
    assert types == {**plain, "list": "string", "meta": "string", "meta.url": "string"}
    from longattn.corpus.columns import arrow_type

    for column in plain:
        given = pa.array([record.extra[column] for record in records], arrow_type(types[column]))
        expected = columns[column]
        expected = expected.dictionary_decode() if column == "word" else expected
        assert given.equals(expected), column
    assert [record.extra["list"] for record in records] == ["[1]", None]
    assert [record.extra["meta"] for record in records] == [
        '{"url": "u", "n": 1}',
        '{"url": null, "n": 2}',
    ]
    assert [r.extra["meta.url"] and str(r.extra["meta.url"]) for r in records] == ["u", None]


def test_a_type_is_common_to_all_sources_and_stays(tmp_path: Path) -> None:
    put(tmp_path / "a" / "a.jsonl", jsonl([{"text": "a", "id": 1, "n": 1}]))
    put(tmp_path / "b" / "b.csv", b"text,id\nb,x7\n")
    put(tmp_path / "c" / "c.parquet", parquet(pa.table({"text": ["c"], "id": [3], "n": [0.5]})))
    sources = [Source(str(tmp_path / name), columns=("id", "n")) for name in "abc"]
    types, records = typed(*sources)
    assert types == {"id": "string", "n": "double"}
    assert [record.extra.get("id") for record in records] == ["1", "x7", "3"]
    assert [record.extra.get("n") for record in records] == [1.0, None, 0.5]
    types, records = typed(*sources, known={"id": "int64"})
    assert types == {"id": "int64", "n": "double"}
    assert [record.extra.get("id") for record in records] == [1, None, 3]


def test_columns_do_not_change_the_id_and_none_are_read_unasked(tmp_path: Path) -> None:
    file = put(tmp_path / "a.jsonl", jsonl([{"text": "a", "id": 1}]))
    plain, asked = (list_splits([Source(str(file), columns=c)])[0] for c in ((), ("id",)))
    assert plain.id == asked.id
    assert [dict(item.extra) for item in read_split(plain) if isinstance(item, Record)] == [{}]


def test_a_column_that_is_in_no_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", parquet(pa.table({"text": ["a"], "url": ["u"]})))
    with pytest.raises(
        ValueError,
        match="'urll' is in none of the files looked at; did you mean url\?; there are 'text', 'url'",
    ):
        typed(Source(str(tmp_path), columns=("urll",)))
    put(tmp_path / "c/c.parquet", parquet(pa.table({"text": ["c"], "words": [1]})))
    sources = [Source(str(tmp_path / "c"), columns=("words", "url"))]
    sources.append(Source(str(tmp_path / "*.parquet"), columns=("text", "urll")))
    with pytest.raises(ValueError) as refused:
        column_types(list_splits(sources), sources=sources)
    assert str(refused.value) == (
        "sources.1.columns: 'urll' is in none of the files looked at; did you mean url?; "
        "there are 'text', 'url'"
    )
    put(tmp_path / "d/d.jsonl", jsonl([{"text": "d", "url": "u", "id": 1}]))
    with pytest.raises(
        ValueError, match=r"'urll' is in none .* did you mean url\?; there are 'id', 'text', 'url'$"
    ):
        typed(Source(str(tmp_path / "d"), columns=("id", "urll")))
    put(tmp_path / "b.jsonl", jsonl([{"text": "b", "urll": None}]))
    assert typed(Source(str(tmp_path), columns=("urll",)))[0] == {"urll": "string"}


def test_each_file_of_a_folder_is_looked_at_once(tmp_path):
    """However many parts it is cut into, and a part of one is what speaks for it."""
    for name in "abc":
        put(tmp_path / f"{name}.jsonl", jsonl([{"text": "x" * 90}] * 9))
    splits = splits_of(tmp_path, split_bytes=200)
    assert len(splits) > 9
    (looked_at,) = first_look._folders(splits)
    assert [split.path for split in looked_at] == sorted({split.path for split in splits})
