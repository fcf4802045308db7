from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

import longattn as la
from longattn.config import Sample
from longattn.corpus.counts import Counts
from longattn.storage.tables import WINDOWS
from longattn.windows.cutting import WindowCutter, window_table
from longattn.windows.ids import document_id, hash_key, is_sampled
from longattn.windows.recurrence import Recurrence, far_recurrence
from longattn.windows.tokenizer import DocumentTokenizer, load_tokenizer


def algorithm_1(n: int, w: int) -> list[tuple[int, int]]:
    """The paper's Algorithm 1 written as it stands there, recursive; an exact fit kept."""

    def cut(left: int, right: int) -> list[tuple[int, int]]:
        n = right - left
        if n < w:
            return []
        if n == w:
            return [(left, right)]
        if n <= 2 * w:
            return [(left, left + w), (right - w, right)]
        if n <= 3 * w:
            middle = left + (n - w) // 2
            return [(left, left + w), (middle, middle + w), (right - w, right)]
        return [(left, left + w), *cut(left + w, right - w), (right - w, right)]

    return sorted(cut(0, n))


@given(st.integers(0, 3000), st.integers(1, 97))
def test_windows_are_those_of_algorithm_1(n, w):
    assert la.sliding_windows(n, w) == algorithm_1(n, w)


@given(st.integers(1, 5000), st.integers(1, 97))
def test_windows_cover_the_document_inside_it(n, w):
    windows = la.sliding_windows(n, w)
    assert bool(windows) == (n >= w)
    assert windows == sorted(set(windows))
    assert all(start >= 0 and stop - start == w and stop <= n for start, stop in windows)
    if windows:
        assert windows[0][0] == 0 and windows[-1][1] == n
        assert len(windows) == -(-n // w)  # as few as can cover it
        covered = np.zeros(n, bool)
        for start, stop in windows:
            covered[start:stop] = True
        assert covered.all()


def test_the_edges_of_algorithm_1():
    assert la.sliding_windows(9, 10) == []
    assert la.sliding_windows(10, 10) == [(0, 10)]
    assert la.sliding_windows(11, 10) == [(0, 10), (1, 11)]
    assert la.sliding_windows(20, 10) == [(0, 10), (10, 20)]
    assert la.sliding_windows(25, 10) == [(0, 10), (7, 17), (15, 25)]
    assert la.sliding_windows(31, 10) == [(0, 10), (10, 20), (11, 21), (21, 31)]
    with pytest.raises(ValueError, match="window >= 1"):
        la.sliding_windows(5, 0)


def test_ids_and_samples_are_the_same_in_every_version():
    """Computed by coreutils: `printf %s TEXT | b2sum -l 128`. An output folder goes by them."""
    assert document_id("naïve\n".encode()) == "4806b204111f2bf629ee9a08429cea2b"
    assert hash_key("book-naïve").hex() == "d482b256b7dd6b4279837297fe026d6a"
    # The first 8 of `b2sum -l 64` of "3:book-0" and so on, as a number below 2^64.
    sample = Sample(fraction=0.25, seed=3)
    assert [i for i in range(12) if is_sampled(f"book-{i}", sample)] == [1, 2, 3, 5, 7, 8, 10]


def test_sampling_depends_on_the_id_and_the_seed_alone():
    ids = [f"book-{i}" for i in range(4000)]
    tenth = {i for i in ids if is_sampled(i, Sample(fraction=0.1, seed=12))}
    assert 320 < len(tenth) < 480
    assert tenth == {i for i in reversed(ids) if is_sampled(i, Sample(fraction=0.1, seed=12))}
    assert tenth < {i for i in ids if is_sampled(i, Sample(fraction=0.3, seed=12))}
    assert tenth != {i for i in ids if is_sampled(i, Sample(fraction=0.1, seed=13))}
    assert all(is_sampled(i, None) and is_sampled(i, Sample(fraction=1.0)) for i in ids)


@pytest.fixture(scope="module")
def byte_tokenizer(tmp_path_factory):
    """One token a byte: ids and bytes can be compared by eye."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return DocumentTokenizer.from_file(path)


def test_rows_hold_the_slice_its_text_and_its_lineage(byte_tokenizer):
    text = "".join(chr(97 + i % 26) for i in range(47)).encode()
    counts = Counts()
    cutter = WindowCutter(byte_tokenizer, 20, 5, {})
    rows = list(cutter.cut(text, "book", "s3://b/x.jsonl", counts, set()))
    assert [(r["token_start"], r["token_stop"]) for r in rows] == [(0, 20), (13, 33), (27, 47)]
    assert [r["content"].encode() for r in rows] == [text[0:20], text[13:33], text[27:47]]
    assert [r["window_index"] for r in rows] == [0, 1, 2]
    assert {r["document_id"] for r in rows} == {document_id(text)}
    assert [r["data_id"] for r in rows] == [f"book-{document_id(text)}-{i}" for i in range(3)]
    table = window_table(rows, ["split"] * 3)
    assert table.select(WINDOWS.names).schema == WINDOWS
    whole = byte_tokenizer.encode(text.decode()).ids
    assert [i.as_py() for i in table["input_ids"][1]] == whole[13:33].tolist()
    assert [tuple(r.values()) for r in table.select(Recurrence._fields).to_pylist()] == [
        far_recurrence(whole[start:stop], 5) for start, stop in [(0, 20), (13, 33), (27, 47)]
    ]
    assert (counts.documents, counts.windows, counts.tokens, counts.bytes) == (1, 3, 47, 47)


def test_a_character_cut_by_a_window_is_left_out_of_its_text(byte_tokenizer):
    text = "é" * 30  # two tokens each
    rows = list(
        WindowCutter(byte_tokenizer, 21, 5, {}).cut(text.encode(), "b", "f", Counts(), set())
    )
    assert [r["token_start"] for r in rows] == [0, 19, 39]
    assert [r["content"] for r in rows] == ["é" * 10, "é" * 10, "é" * 10]


def test_short_and_repeated_documents_are_counted_and_give_nothing(byte_tokenizer):
    cutter, counts, seen = WindowCutter(byte_tokenizer, 10, 5, {}), Counts(), set()
    assert list(cutter.cut(b"too short", "a", "f", counts, seen)) == []
    assert len(list(cutter.cut(b"long enough", "a", "f", counts, seen))) == 2
    assert list(cutter.cut(b"long enough", "a", "g", counts, seen)) == []
    assert len(list(cutter.cut(b"long enough", "b", "f", counts, seen))) == 2
    assert (counts.documents, counts.too_short, counts.duplicates, counts.windows) == (4, 1, 1, 4)


def test_a_document_of_exactly_one_window_gives_it(byte_tokenizer):
    cutter, counts = WindowCutter(byte_tokenizer, 10, 5, {}), Counts()
    (row,) = cutter.cut(b"ten bytes!", "a", "f", counts, set())
    assert (row["content"], row["token_start"], row["token_stop"]) == ("ten bytes!", 0, 10)
    assert (counts.too_short, counts.windows) == (0, 1)
    assert list(cutter.cut(b"nine byte", "a", "f", counts, set())) == []


def test_a_document_of_many_bytes_and_few_tokens_is_too_short_and_never_a_duplicate():
    cutter = WindowCutter(load_tokenizer("builtin"), 40, 5, {})
    counts, seen, text = Counts(), set(), b"the window of the house " * 4
    for _ in range(2):
        assert list(cutter.cut(text, "a", "f", counts, seen)) == []
    assert cutter.shortest <= len(text) and 0 < counts.tokens < 2 * 40
    assert (counts.documents, counts.too_short, counts.duplicates, counts.windows) == (2, 2, 0, 0)
    assert not seen


def test_windows_outside_the_sample_are_counted_and_left_out(byte_tokenizer):
    cutter = WindowCutter(byte_tokenizer, 10, 5, {"a": Sample(fraction=0.5, seed=3)})
    counts = Counts()
    rows = [
        r for i in range(100) for r in cutter.cut(b"document %04d" % i, "a", "f", counts, set())
    ]
    assert 0 < len(rows) == counts.windows < 200
    assert counts.windows + counts.sampled_out == 200


def test_a_document_that_another_worker_claimed_is_a_duplicate_and_is_not_tokenized(byte_tokenizer):
    cutter, counts, seen, asked = WindowCutter(byte_tokenizer, 10, 5, {}), Counts(), set(), []

    def claim(category, document):
        asked.append((category, document))
        return category == "a"

    for category, windows in (("a", 2), ("b", 0)):
        for _ in range(2):
            rows = list(cutter.cut(b"long enough", category, "f", counts, seen, claim))
            assert len(rows) == windows
            windows = 0
    assert list(cutter.cut(b"too short", "a", "f", counts, seen, claim)) == []
    document = document_id(b"long enough")
    assert asked == [("a", document), ("b", document)]  # each once, and nothing too short
    assert (counts.documents, counts.duplicates, counts.too_short) == (5, 3, 1)
    assert counts.tokens == len("long enough")


def test_documents_whose_ids_a_forced_cut_may_have_changed_are_counted(byte_tokenizer, monkeypatch):
    encode = byte_tokenizer.encode
    monkeypatch.setattr(
        byte_tokenizer, "encode", lambda text: replace(encode(text), exact=b"x" not in text)
    )
    cutter, counts = WindowCutter(byte_tokenizer, 3, 1, {}), Counts()
    for text in (b"abc", b"xyz", b"x"):  # the last is too short, and gives no window
        list(cutter.cut(text, "a", "f", counts, set()))
    assert counts.inexact == 1


def test_tables_of_windows_carry_the_users_columns(byte_tokenizer):
    cutter = WindowCutter(byte_tokenizer, 4, 1, {})
    rows = list(cutter.cut(b"some text", "a", "f", Counts(), set()))
    rows[0] |= {"n": 3, "day": None}
    table = window_table(rows, carried={"n": "int16", "day": "date32[day]"})
    assert table["n"].to_pylist() == [3, None, None] and table.schema.field("n").type == pa.int16()
    assert table["day"].null_count == 3 and table.schema.field("day").type == pa.date32()
    assert table["split"].to_pylist() == table["fingerprint"].to_pylist() == ["", "", ""]
    assert window_table(rows, ["s", "t", "s"])["split"].to_pylist() == ["s", "t", "s"]
    assert table["input_ids"].to_pylist() == [row["input_ids"].tolist() for row in rows]
    nothing = window_table([], carried={"n": "int16"})
    assert len(nothing) == 0 and nothing.schema == window_table(rows, carried={"n": "int16"}).schema
