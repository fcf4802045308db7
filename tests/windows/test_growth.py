import json

import pytest

from longattn.models import BUILTIN
from longattn.windows.growth import require_usual_growth, worst_growth
from longattn.windows.tokenizer import DocumentTokenizer


def replacing(*steps: tuple[dict, str]) -> dict:
    spec = json.loads((BUILTIN / "tokenizer.json").read_bytes())
    chain = [{"type": "Replace", "pattern": p, "content": c} for p, c in steps]
    return spec | {"normalizer": {"type": "Sequence", "normalizers": chain}}


def tokenizer(*steps: tuple[dict, str]) -> DocumentTokenizer:
    return DocumentTokenizer(json.dumps(replacing(*steps)).encode(), "t")


@pytest.mark.parametrize(
    ("steps", "times"),
    [
        ([], 1),
        ([({"String": " "}, "▁")], 3),
        ([({"String": "abc"}, "a")], 1),
        ([({"String": "ab"}, "abcdef"), ({"String": "é"}, "eeee")], 6),
        ([({"Regex": " {2,}"}, "▁")], 4),
        ([({"String": ""}, "ab")], 3),
    ],
)
def test_the_worst_that_replacing_does(steps, times):
    assert worst_growth(replacing(*steps)) == times
    assert worst_growth({"normalizer": None}) == 1


@pytest.mark.parametrize(
    "steps",
    [
        [({"String": "a"}, "a" * 1001)],
        [({"String": "a"}, "aa")] * 40,
        [({"Regex": "."}, "a" * 5000)],
    ],
)
def test_a_tokenizer_that_blows_a_text_up_is_refused_unloaded(steps):
    with pytest.raises(ValueError, match=r"t: tokenizer.json is refused: .* 1000 times is allowed"):
        tokenizer(*steps)


def test_a_document_that_is_made_much_longer_is_refused_and_others_are_not():
    known = tokenizer(({"String": "a"}, "b" * 900))
    assert known.backend == "tokenizers"
    assert len(known.encode("hello world" * 1000).ids) > 1000
    with pytest.raises(ValueError, match="makes it over 16 times as long"):
        known.encode("banana " * 100_000)


def test_the_bounds_themselves_are_allowed():
    """A thousand times by what a tokenizer may do, 16 times and a thousand letters by what it does."""
    steps = [({"String": "a"}, "b" * 500), ({"String": "bb"}, "cccc")]
    assert worst_growth(replacing(*steps)) == 1000
    with pytest.raises(ValueError, match="1e\\+03 times as long; 1000 times is allowed"):
        worst_growth(replacing(({"String": "a" * 1000}, "b" * 1_000_001)))

    class Times:
        def __init__(self, times):
            self.times = times

        def normalize_str(self, text):
            assert len(text) <= 1024
            return text * self.times

    for length, times in ((10_000, 16), (1024, 17), (60, 33), (5000, 0)):
        require_usual_growth(Times(times), "a" * length)
    for length, times in ((10_000, 17), (1025, 17), (1, 1041)):
        with pytest.raises(ValueError, match="makes it over 16 times as long"):
            require_usual_growth(Times(times), "a" * length)


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 2000},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "x"}, "content": "a" * 2000}]}]},
    ],
)  # fmt: skip
def test_steps_are_found_wherever_they_lie(normalizer):
    with pytest.raises(ValueError, match="may make a text 2e\\+03 times as long"):
        worst_growth({"normalizer": normalizer})
