"""What Parquet and Arrow files share: a file as pyarrow reads it, columns by name, and what is bounded."""

from __future__ import annotations

import io
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.corpus.arrow_columns import (
    Paths,
    TrackedFile,
    Unreadable,
    column_path,
    column_type,
    content_errors,
    require_bounded,
    text_problem,
)
from longattn.corpus.records import Reason, Split

DATA = bytes(range(200))
SPLIT = Split("a", "memory://x.arrow", "text", "arrow", None, 0, None, len(DATA), "200:1")


@given(
    st.lists(
        st.tuples(st.just("seek"), st.integers(0, 250), st.just(io.SEEK_SET))
        | st.tuples(st.just("seek"), st.integers(0, 60), st.just(io.SEEK_CUR))
        | st.tuples(st.just("seek"), st.integers(-200, 20), st.just(io.SEEK_END))
        | st.tuples(st.just("read"), st.none() | st.integers(-1, 250)),
        max_size=8,
    )
)
def test_a_tracked_file_is_a_file(calls: list[tuple]) -> None:
    ours, plain = TrackedFile(io.BytesIO(DATA), SPLIT), io.BytesIO(DATA)
    assert ours.readable() and ours.seekable()
    for name, *arguments in calls:
        assert getattr(ours, name)(*arguments) == getattr(plain, name)(*arguments)
        assert ours.tell() == plain.tell()


def test_a_file_that_ends_before_its_listing_is_an_error_of_the_storage() -> None:
    short = TrackedFile(io.BytesIO(DATA[:150]), SPLIT)
    short.seek(140)
    with (
        pytest.raises(OSError, match=r"^memory://x\.arrow: 10 of 60 bytes at byte 140$"),
        content_errors(short),
    ):
        short.read()
    with (
        pytest.raises(OSError, match="10 of 60"),
        content_errors(short),
    ):  # pyarrow tells it otherwise
        raise pa.ArrowInvalid("broken")


def test_what_compressed_buffers_unpack_to_is_counted_as_they_are_read() -> None:
    data = b"".join(n.to_bytes(8, "little", signed=True) for n in (30, 1000, -1, 40, 99))
    file = TrackedFile(io.BytesIO(data), replace(SPLIT, file_size=40))
    file.buffers, file.cap = (0, 16, 24, 32), 168  # not the second; -1 is stored as it is
    file.read(8)
    assert file.unpacked == 30
    file.seek(8)
    file.read(23)  # of the last one in it a byte is not there yet
    assert file.unpacked == 30
    file.seek(24)
    with content_errors(file):
        file.read(8)
    assert file.unpacked == 70
    with (
        pytest.raises(Unreadable, match="169 bytes unpacked of 0: over max_record_bytes 168"),
        content_errors(file),
    ):
        file.read(8)
    with content_errors(file):  # told once: the next batch may be read
        file.seek(0)


def test_what_unpacks_to_much_of_little_is_refused() -> None:
    for unpacked, stored, cap in ((10, 0, 10), (1000, 10, 0), (0, 0, 0)):
        require_bounded(unpacked, stored, cap)
    for unpacked, stored, cap in ((11, 0, 10), (1001, 10, 1000)):
        with pytest.raises(
            Unreadable, match=f"^{unpacked} bytes unpacked of {stored}: over .* {cap}, and over 100"
        ):
            require_bounded(unpacked, stored, cap)


INNER = pa.struct([("b", pa.string()), ("c.d", pa.int8()), ("e", pa.struct([("f", pa.binary())]))])
SCHEMA = pa.schema(
    [("text", pa.string()), ("a", INNER), ("a.b", pa.int64()), ("x.y", pa.struct([("z", pa.bool_())])),
     ("word", pa.dictionary(pa.int8(), pa.large_string())), ("n", pa.dictionary(pa.int8(), pa.int64()))]
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [
        ("text", ["text"], pa.string()),
        ("a.b", ["a.b"], pa.int64()),  # a name of its own comes first
        ("a.c.d", ["a", "c.d"], pa.int8()),
        ("a.e.f", ["a", "e", "f"], pa.binary()),
        ("x.y.z", ["x.y", "z"], pa.bool_()),
        ("a.x", None, None),
        ("text.b", None, None),
        ("a.", None, None),
        ("b", None, None),
        ("", None, None),
    ],
)
def test_columns_are_found_by_names_with_dots(
    name: str, path: list[str] | None, kind: pa.DataType
) -> None:
    assert column_path(SCHEMA, name) == path
    if path:
        assert column_type(SCHEMA, path) == kind


def test_which_columns_hold_text() -> None:
    for name in ("text", "a.e.f", "word"):
        assert text_problem(SCHEMA, name) is None
    for name, kind in (("a.b", "int64"), ("n", "int64"), ("x.y", "struct<z: bool>")):
        assert text_problem(SCHEMA, name) == (Reason.NOT_A_STRING, kind)
    assert text_problem(SCHEMA, "body") == (
        Reason.NO_TEXT_COLUMN,
        "its columns are 'text', 'a', 'a.b', 'x.y', 'word', 'n'",
    )


def test_columns_that_a_file_lacks_are_not_read_of_it() -> None:
    split = replace(SPLIT, columns=(("n", ""), ("gone", ""), ("a.e.f", "")))
    paths = Paths.of(SCHEMA, split)
    assert paths == (["text"], {"n": ["n"], "a.e.f": ["a", "e", "f"]})
    assert paths.all() == [["text"], ["n"], ["a", "e", "f"]]
    assert Paths.of(SCHEMA, replace(split, text_column="gone")).all() == paths.all()[1:]
