"""What a file is by its first bytes, its name, and what is told of files that are left out."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma

import pytest
import zstandard

from longattn.corpus.archives import Broken, compression_of, decompressed, peeked
from longattn.corpus.content import Content, as_utf8, content_of
from longattn.corpus.sources import kind_of

OTHERS = {
    b"%PDF-1.7": "a PDF",
    b"PK\x03\x04\x14\0": "a zip archive",
    b"Obj\x01\x04": "an Avro file",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"Rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"version https://git-lfs.github.com/spec/v1": "a Git LFS pointer: the file itself is not here",
}


@pytest.mark.parametrize("head", OTHERS)
def test_kinds_of_files_that_are_not_read_are_named(head: bytes) -> None:
    assert content_of(head) == Content(other=OTHERS[head])
    assert content_of(b" " + head[:3]) == content_of(head[:2]) == Content()


@pytest.mark.parametrize(
    ("head", "kind"), [(b"PAR1", "parquet"), (b"ARROW1\0\0", "arrow"), (b"FEA1", "arrow")]
)
def test_tables_are_told_by_their_magic(head: bytes, kind: str) -> None:
    assert content_of(head) == Content(kind)
    assert content_of(head[:3]) == Content()


def test_archives_are_told_by_theirs() -> None:
    for kind, pack in (("gzip", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress),
                       ("zstd", zstandard.compress)):  # fmt: skip
        for data in (b"", b"text"):
            assert compression_of(pack(data)[:16]) == kind
            assert content_of(pack(data)[:16]) == Content(compression=kind)
            assert compression_of(pack(data)[:1]) is None
    for last in range(256):
        head = bytes([last]) + b"\x2a\x4d\x18"
        assert (compression_of(head) == "zstd") == (0x50 <= last <= 0x5F)  # RFC 8878, 3.1.2
    assert compression_of(b"BZh9 text that begins so") is None


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_encodings_are_told_by_their_mark_or_the_zeros_of_json(name: str) -> None:
    mark = {"16-le": codecs.BOM_UTF16_LE, "16-be": codecs.BOM_UTF16_BE,
            "32-le": codecs.BOM_UTF32_LE, "32-be": codecs.BOM_UTF32_BE}[name[4:]]  # fmt: skip
    assert content_of(mark + "日本".encode(name)).encoding == name[:6]
    for text in ('{"a"', "[{", '{"'):
        assert content_of(text.encode(name)).encoding == name
        assert content_of(text.encode()) == Content()
    for text in ("{", "{日", "a{"):  # too little, or too little like JSON
        assert content_of(text.encode(name)).encoding == ""
    assert content_of("{".encode(name) + b"\0" * 8).encoding == ""


def test_text_of_another_encoding_is_decoded_wherever_it_is_cut() -> None:
    data = "日本 é 👩".encode("utf-16")
    for size in (1, 3, 100):
        pieces = iter([data[i : i + size] for i in range(0, len(data), size)])
        assert b"".join(as_utf8(pieces, "utf-16")).decode() == "日本 é 👩"  # type: ignore[arg-type]
    *given, broken = as_utf8(iter([data[:-1]]), "utf-16")
    assert b"".join(given).decode() == "日本 é "  # type: ignore[arg-type]
    assert isinstance(broken, Broken) and broken.why.startswith("its utf-16 ends or is broken: ")
    cut = Broken("cut", 7)
    assert list(as_utf8(iter([b"a\0", cut, b"b\0"]), "utf-16-le")) == [b"a", cut]


@pytest.mark.parametrize("sizes", [[3, 3, 3], [1] * 9, [9], [4, 5]])
def test_the_first_bytes_are_looked_at_and_not_taken(sizes: list[int]) -> None:
    data, pieces, start = b"123456789", [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    for size in (1, 4, 9, 20):
        waiting = iter(pieces)
        head, again = peeked(waiting, size)
        assert head == data[:size]
        assert list(again) == pieces
    broken = Broken("cut", 1)
    head, again = peeked(iter([b"12", broken, b"3"]), 3)
    assert head == b"12" and list(again) == [b"12", broken, b"3"]


@pytest.mark.parametrize("kind", ["gzip", "bz2", "xz", "zstd"])
def test_what_an_archive_loses_is_told_in_stored_bytes(kind) -> None:
    pack = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zstd": zstandard.compress,
    }[kind]
    member = pack(b"text " * 100)
    for junk in (b"x", b"junk" * 5000):
        data = member * 2 + junk
        *given, broken = decompressed(iter([data]), kind, len(data))
        assert b"".join(given) == b"text " * 200  # type: ignore[arg-type]
        assert isinstance(broken, Broken)
        assert (broken.lost_bytes if len(junk) > 1 else len(junk)) == len(junk)
    *given, broken = decompressed(iter([member[:-1]]), kind, len(member))
    assert broken == ("the archive ends in the middle", 0)
    assert list(decompressed(iter([]), kind, 0)) == [("the archive ends in the middle", 0)]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.jsonl", ("jsonl", None)),
        ("/x.y/A.JSON.GZ", ("jsonl", "gzip")),
        ("a.b.ndjson.bz2", ("jsonl", "bz2")),
        ("a.csv.xz", ("csv", "xz")),
        ("a.tsv.zst", ("tsv", "zstd")),
        ("a.txt", ("txt", None)),
        ("a.parquet", ("parquet", None)),
        ("a.gz.parquet", ("parquet", None)),
        ("a.feather", ("arrow", None)),
        (".jsonl", ("jsonl", None)),
        ("https://h/a.jsonl?x=.pdf", ("jsonl", None)),
        ("https://h/a.jsonl.gz#part", ("jsonl", "gzip")),
        ("a.jsonl?x", None),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("jsonl", None),
        ("a.jsonl/b", None),
        ("a.", None),
        ("", None),
    ],
)
def test_formats_by_name(path: str, kind: tuple | None) -> None:
    assert kind_of(path) == kind
