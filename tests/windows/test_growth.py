import json

import pytest

from longattn.models import BUILTIN
from longattn.windows.growth import worst_growth
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
