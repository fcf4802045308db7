"""CSV, TSV and plain text, against Python's csv with the file in memory as the truth."""

from __future__ import annotations

import csv
import io
import tracemalloc
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longattn.corpus import records
from longattn.corpus.records import BadRecord, Reason
from tests.corpus.files import put, read, reasons, texts
from tests.examples import examples

DOCUMENTS = [
    "plain",
    'a "quoted", one',
    "over\nseveral\r\nlines",
    "",
    "tab\there",
    "é 日本",
    " sp ",
]


def table(rows: list[list[str]], delimiter: str = ",", end: str = "\r\n") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_tables(tmp_path: Path, suffix: str, delimiter: str, end: str, chunk: int) -> None:
    rows = [["id", "text", "n"], *([str(i), d, "x"] for i, d in enumerate(DOCUMENTS))]
    data = table(rows, delimiter, end)
    for mark in (b"", b"\xef\xbb\xbf"):
        with patch.object(records, "CHUNK", chunk):
            items = read(put(tmp_path / f"a.{suffix}", mark + data))
        assert texts(items) == DOCUMENTS
        assert [(mark + data)[item.position :][:1].decode() for item in items] == list("0123456")


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    lines = [
        b"text,n",
        b"good,1",
        b"one field",
        b"a,b,c",
        b"",
        b"\xff,1",
        b'"junk after"x,1',
        b'"' + b"x" * 500 + b"\n" + b"y" * 600 + b'",1',
        b"z" * 2000 + b",1",
        b"last,1",
    ]
    items = read(put(tmp_path / "a.csv", b"\n".join(lines)), max_record_bytes=1000)
    assert [x.reason if isinstance(x, BadRecord) else x.text for x in items] == [
        "good",
        Reason.BAD_ROW,
        Reason.BAD_ROW,
        Reason.BAD_UTF8,
        Reason.BAD_ROW,
        Reason.OVER_SIZE_CAP,
        Reason.OVER_SIZE_CAP,
        "last",
    ]
    assert "1 fields, the first row has 2" in items[1].detail  # type: ignore[union-attr]


def test_a_table_without_the_column_or_an_end(tmp_path: Path) -> None:
    items = read(put(tmp_path / "a.csv", b"body,n\nx,1\n"))
    assert reasons(items) == ["no_text_column"]
    assert items[0].detail == "its columns are 'body', 'n'"  # type: ignore[union-attr]
    items = read(put(tmp_path / "a.csv", b'text,n\nx,1\n"cut off in the mid'))
    assert (texts(items), reasons(items)) == (["x"], ["bad_row"])
    assert read(put(tmp_path / "a.csv", b"text,n\n")) == []


def test_a_long_field_is_no_more_than_a_record(tmp_path: Path) -> None:
    long = "word " * 400_000  # Python's own limit is 131,072 characters
    assert texts(read(put(tmp_path / "a.csv", table([["text"], [long]])))) == [long]
    data = b'text\n"' + (b"x" * 999 + b"\n") * (80 << 10) + b'"\nafter\n'
    tracemalloc.start()
    items = read(put(tmp_path / "a.csv", data), max_record_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (texts(items), reasons(items)) == (["after"], ["over_size_cap"])
    assert peak < 40 << 20


def test_a_row_of_just_the_cap_is_taken(tmp_path: Path) -> None:
    rows = [b"x" * 1000, b"y" * 1001, b'"' + b"z" * 998 + b'"', b'"' + b"w" * 999 + b'"', b"end"]
    items = read(put(tmp_path / "a.csv", b"\n".join([b"text", *rows])), max_record_bytes=1000)
    assert texts(items) == ["x" * 1000, "z" * 998, "end"]
    assert reasons(items) == ["over_size_cap"] * 2


FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@settings(max_examples=examples(200), deadline=None)
@given(documents=st.lists(FIELD, max_size=6), chunk=st.integers(1, 30))
def test_tables_are_those_of_csv(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], chunk: int
) -> None:
    rows = [["n", "text"], *(["1", d] for d in documents)]
    file = put(tmp_path_factory.getbasetemp() / "any.csv", table(rows, end="\n"))
    with patch.object(records, "CHUNK", chunk):
        assert texts(read(file)) == documents


@settings(max_examples=examples(200), deadline=None)
@given(data=st.binary(max_size=60) | st.text('",\n ab', max_size=40).map(str.encode))
def test_no_bytes_of_a_table_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    assume(not data.startswith((b"PAR1", b"%PDF")))
    for item in read(put(tmp_path_factory.getbasetemp() / "fuzz.csv", b"text,n\n" + data)):
        assert isinstance(item, BadRecord) or item.text.encode() is not None


def test_a_text_file_is_a_document(tmp_path: Path) -> None:
    documents = {"a": "one\n\ntwo\r\n", "b": '{"not": "json"}\n', "c": "[1]", "d": "日本"}
    for name, text in documents.items():
        put(tmp_path / f"{name}.txt", text.encode())
    put(tmp_path / "e.txt", b"\xef\xbb\xbfmark")
    put(tmp_path / "f.txt", "über".encode("utf-16"))
    put(tmp_path / "g.txt", b"")
    put(tmp_path / "h.txt", b" \n")
    put(tmp_path / "i.txt", b"\xff\xff")
    put(tmp_path / "j.txt", b"x" * 1001)
    with patch.object(records, "CHUNK", 3):
        items = read(tmp_path, max_record_bytes=1000, split_bytes=100)
    assert texts(items) == [*documents.values(), "mark", "über"]
    assert reasons(items) == ["bad_utf8", "over_size_cap"]
    assert "1001 bytes" in items[-1].detail  # type: ignore[union-attr]
