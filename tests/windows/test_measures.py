"""Compression and repetition of a window against plain Python."""

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from longattn.windows import measures
from longattn.windows.measures import compression_ratio, repetition
from tests.examples import examples


def _plain(ids: list[int]) -> float:
    seen: set[tuple[int, ...]] = set()
    inside: set[int] = set()
    for i in range(len(ids) - 31):
        gram = tuple(ids[i : i + 32])
        if gram in seen:
            inside.update(range(i, i + 32))
        seen.add(gram)
    return len(inside) / len(ids) if ids else 0.0


@given(
    st.lists(st.integers(0, 2), max_size=60),
    st.lists(st.integers(0, 99999), max_size=50),
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(0, 3),
)
def test_repetition_is_that_of_plain_python(a, b, c, times) -> None:
    ids = a + (b + c) * times + a
    assert repetition(np.array(ids, np.int32)) == _plain(ids)


def test_known_windows() -> None:
    passage = np.arange(32)
    assert repetition(np.arange(5000)) == 0
    assert repetition(np.zeros(100, np.int32)) == 0.99  # all but the first token
    assert repetition(np.tile(np.arange(100), 4)) == 0.75
    assert repetition(np.r_[passage, -1, passage]) == 32 / 65
    assert repetition(np.r_[passage[:31], -1, passage[:31]]) == 0
    assert repetition(np.array([], np.int32)) == 0


def test_grams_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.r_[np.arange(200), np.arange(50, 120), np.arange(1000, 1100)]
    expected = _plain(ids.tolist())
    starts = np.arange(len(ids) - 31)
    monkeypatch.setattr(
        measures, "_candidates", lambda ids: (starts, (starts % 7).astype(np.uint64))
    )
    assert 0 < expected == repetition(ids)


@settings(max_examples=examples(200))
@given(
    st.lists(st.integers(0, 110), max_size=2),
    st.lists(st.tuples(st.integers(0, 12), st.integers(50, 62)), max_size=4),
    st.integers(1, 4),
    st.integers(1, 2),
)
@example([32], [(0, 50)], 2, 1)  # the last token of the second alone
@example([85], [(0, 50), (1, 60)], 1, 1)  # a gram after the one before, its like not
@example([32], [(0, 50)], 2, 2)  # the other way round
def test_grams_are_equal_only_where_all_their_tokens_are(changed, pairs, run, step) -> None:
    """Of grams that follow each other, as their likes do, only the last token is new."""
    ids = np.zeros(120, np.int32)
    ids[changed] = 1
    of = {start + i * step: earlier + i for start, earlier in pairs for i in range(run)}
    start_m, earlier_m = (np.array(x, np.intp) for x in (sorted(of), [of[s] for s in sorted(of)]))
    equal = all((ids[s : s + 32] == ids[e : e + 32]).all() for s, e in of.items())
    assert measures._equal_grams(ids, start_m, earlier_m) == equal


def test_repeated_passages_of_long_windows() -> None:
    rng = np.random.default_rng(0)
    for length, vocabulary in ((3000, 4), (9000, 50), (20000, 100000)):
        ids = rng.integers(0, vocabulary, length)
        for _ in range(30):
            size, source, place = rng.integers(20, 90), *rng.integers(0, length - 100, 2)
            ids[place : place + size] = ids[source : source + size]
        assert 0 < _plain(ids.tolist()) == repetition(ids)


def test_compression_ratio_is_that_of_zstd() -> None:
    text = b"the same line again\n" * 500
    stored = zstandard.ZstdDecompressor()
    ratio = compression_ratio(text)
    size = round(len(text) / ratio)
    assert ratio == len(text) / size and ratio > 100
    compressed = zstandard.ZstdCompressor(level=1, write_content_size=False).compress(text)
    assert len(compressed) == size
    assert stored.decompress(compressed, max_output_size=len(text)) == text
    assert compression_ratio(np.random.default_rng(0).bytes(10000)) < 1
    assert compression_ratio(b"") == 1
