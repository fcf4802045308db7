"""Where documents are cut: at safe points, each byte searched once, forced where there is none."""

from __future__ import annotations

import bisect
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from longattn.windows.cut_points import (
    AROUND_PUNCTUATION,
    SAFE,
    SAFE_WITH_NEWLINES,
    CutRule,
    MergeCuts,
    PreTokenizerCuts,
    isolated,
    pieces,
)
from longattn.windows.tokenizer import DocumentTokenizer
from tests.examples import examples
from tests.windows.test_tokenizer import TEXTS, reference

KB = 64  # for speed: all sizes are sixteenths of the real ones
PIECE, REACH = 128 * KB, 256 * KB
WORDS = "All plain words, in order. " * (3900 * KB // 27)


def forced(data: bytes, rule: CutRule | None = None) -> int:
    return sum(not exact for _, _, exact in pieces(data, PIECE, REACH, rule or PreTokenizerCuts()))


def defined(data: bytes) -> list[tuple[int, int, bool]]:
    """The pieces by definition: from a list of all cut points."""
    cuts = [match.end() for match in SAFE_WITH_NEWLINES.finditer(data)]
    spans, start = [], 0
    while len(data) - start > PIECE:
        target = start + PIECE
        i = bisect.bisect_right(cuts, target)
        # What tells of a cut point stands right behind it, and is in reach, too.
        if i < len(cuts) and cuts[i] < target + REACH:
            stop, exact = cuts[i], True
        elif target + REACH >= len(data):
            break
        else:
            stop, exact = target + (data[target] & 0xC0 == 0x80), False  # two bytes at most here
        spans.append((start, stop, exact))
        start = stop
    return [*spans, (start, len(data), True)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a" * 500 * KB + WORDS, 1),  # the next target has a cut point in reach
        ("a" * 370 * KB + WORDS, 0),
        ("a" * 1000 * KB + WORDS, 5),
        ("a" * 1000 * KB, 5),
        (WORDS, 0),
        (WORDS + "a" * 500 * KB + WORDS, None),
        (WORDS + "a" * 500 * KB, None),
        (WORDS + "\u0301" * 250 * KB + WORDS, None),
        (("b" * 500 * KB + WORDS[: 600 * KB]) * 3, None),
    ],
)
def test_cuts_are_forced_only_where_no_safe_one_is_in_reach(text: str, count: int | None) -> None:
    data = text.encode()
    spans = list(pieces(data, PIECE, REACH, PreTokenizerCuts()))
    assert spans == defined(data)
    assert count is None or forced(data) == count
    assert forced(data) <= 5


def test_each_byte_is_searched_once() -> None:
    class Counting(PreTokenizerCuts):
        searched = 0

        def first_cut(self, data: bytes, start: int, stop: int) -> int | None:
            Counting.searched += stop - start
            return super().first_cut(data, start, stop)

    data = b"a" * 5000 * KB
    assert forced(data, Counting()) > 30
    assert Counting.searched < 1.01 * len(data)


def test_a_cut_point_across_the_end_of_what_was_searched_is_found() -> None:
    """The blank that tells of a cut is one byte past the reach of the first search."""
    for text in ("a" * 96 + " " + "b" * 200, "a" * 94 + "é " + "b" * 200):
        data = text.encode()
        spans = list(pieces(data, 32, 64, PreTokenizerCuts(SAFE)))
        assert (32, data.index(b" "), True) in spans


@cache
def whole(kind: str) -> Tokenizer:
    return reference(kind)


@pytest.mark.parametrize("kind", ["llama3", "digits", "qwen2-nfc", "deepseek", "falcon"])
@pytest.mark.parametrize(
    "barren", ["a" * 700, "q" * 511 + "x", "\u0301" * 400, " " * 700, "é" * 300]
)
@pytest.mark.parametrize("place", ["start", "middle", "end", "several"])
def test_ids_of_documents_with_barren_stretches(kind: str, barren: str, place: str) -> None:
    """A thousandth of the real sizes: a stretch longer than the reach, and one within it."""
    import longattn.windows.tokenizer as tokenization

    words = "The sailor's 3 cats saw 12345 gulls; naïve café.\n" * 40
    text = {
        "start": barren + words,
        "middle": words + barren + words,
        "end": words + barren,
        "several": words + (barren + words) * 3,
    }[place]
    ids = whole(kind).encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = DocumentTokenizer(reference(kind).to_str().encode(), kind, 128)
        patch.setattr(tokenization, "REACH_BYTES", 1024)
        document = tokenizer.encode(text)
        assert document.exact
        assert document.ids.tolist() == ids
        # Forced: only ids inside the stretch may differ.
        patch.setattr(tokenization, "REACH_BYTES", 256)
        document = tokenizer.encode(text)
        assert not document.exact
        around = whole(kind).encode(words, add_special_tokens=False).ids[:-2]
        got = document.ids.tolist()
        if place in ("middle", "end", "several"):
            assert got[: len(around)] == around
        if place in ("start", "middle", "several"):
            assert got[-len(around) + 2 :] == ids[-len(around) + 2 :]


def test_a_cut_stays_in_reach() -> None:
    data, rule = b"aaaa bbbb\ncccc", PreTokenizerCuts()
    assert rule.first_cut(data, 0, 5) == 4
    assert rule.first_cut(data, 0, 4) is None  # the blank that decides is out of reach
    assert rule.first_cut(data, 4, 14) == 9
    assert rule.first_cut(data, 9, 14) == 10
    assert PreTokenizerCuts(SAFE).first_cut(data, 9, 14) is None
    assert PreTokenizerCuts(unbroken=(b"a bbbb\nc",)).first_cut(data, 0, 14) is None
    assert PreTokenizerCuts(unbroken=(b"a b",)).first_cut(data, 0, 14) == 9
    assert PreTokenizerCuts(AROUND_PUNCTUATION).first_cut(b"ab'c", 0, 4) == 2


def test_merges_tell_where_to_cut() -> None:
    rule = MergeCuts(frozenset({"ab", "b▁", "▁a", "éa"}))
    data = "abab a▁béa".encode()
    assert rule.first_cut(data, 0, len(data)) == 2  # "ba" is no pair
    assert rule.first_cut(data, 2, len(data)) == 6  # "a▁", past "b " and " a"
    assert rule.first_cut(data, 6, len(data)) == 9  # "▁b"
    assert rule.first_cut(data, 10, len(data)) is None  # "éa"
    assert rule.first_cut(data, 9, len(data)) == 10  # "bé"
    long = ("ab" * 1).encode() + "é".encode() * 40_000
    assert MergeCuts(frozenset({"ab", "bé", "éé"})).first_cut(long, 0, len(long)) is None
    assert MergeCuts(frozenset({"ab", "bé", "éé"})).first_cut(long + b"x", 1, 80_003) == 80_002


@settings(max_examples=examples(100), deadline=None)
@given(text=TEXTS, size=st.integers(1, 40), reach=st.integers(1, 40))
def test_pieces_cover_the_document_in_bounded_steps(text: str, size: int, reach: int) -> None:
    data, position = text.encode(), 0
    for start, stop, _ in pieces(data, size, reach, PreTokenizerCuts()):
        assert start == position < stop <= start + size + max(reach, 4)
        data[start:stop].decode()
        position = stop
    assert position == len(data)


@settings(max_examples=examples(100), deadline=None)
@given(text=TEXTS)
def test_isolated_parts_cover_the_piece(text: str) -> None:
    data, position = text.encode(), 0
    odd = b"\x00\x04\xbc\xf0"
    for start, stop, is_odd in isolated(data, odd, PreTokenizerCuts(), 0, len(data)):
        assert start == position < stop
        assert is_odd == bool(set(data[start:stop]) & set(odd))
        data[start:stop].decode()
        position = stop
    assert position == len(data)


@settings(max_examples=examples(100), deadline=None)
@given(text=st.text("aZ 1!\n\x00\x04", max_size=60), first=st.integers(0, 8))
def test_an_odd_byte_is_in_a_part_between_the_cut_points_around_it(text: str, first: int) -> None:
    data, odd = text.encode(), b"\x00\x04"
    start = min(first, len(data))
    cuts = [at for at in (m.end() for m in SAFE_WITH_NEWLINES.finditer(data)) if start < at]
    expected, done = [], start
    while at := next((i for i in range(done, len(data)) if data[i] in odd), -1) + 1:
        left = max([done, *(cut for cut in cuts if cut < at)])
        right = min([len(data), *(cut for cut in cuts if at <= cut < len(data))])
        expected += [(done, left, False)] * (left > done) + [(left, right, True)]
        done = right
    expected += [(done, len(data), False)] * (done < len(data))
    found = list(isolated(data, odd, PreTokenizerCuts(), start, len(data)))
    assert found == expected


def test_a_document_without_a_rule_is_one_piece() -> None:
    assert list(pieces(b"word " * 99, 10, 10, None)) == [(0, 495, True)]
    assert list(pieces(b"", 10, 10, None)) == list(pieces(b"", 10, 10, PreTokenizerCuts())) == []
    assert list(pieces(b"word word", 9, 10, PreTokenizerCuts())) == [(0, 9, True)]
