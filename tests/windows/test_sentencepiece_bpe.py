"""Sentencepiece-type BPE in pieces: ids and text against `tokenizers` on whole documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from longattn.windows.tokenizer import DocumentTokenizer
from tests.examples import examples
from tests.windows.test_tokenizer import CONTROL, PROSE, TEXTS

REPLACE = normalizers.Replace(" ", "▁")
FORMS: dict[str, tuple[Any, Any]] = {
    "llama2": (normalizers.Sequence([normalizers.Prepend("▁"), REPLACE]), None),
    "gemma": (REPLACE, pre_tokenizers.Split(" ", "merged_with_previous")),
    "mistral": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False)),
    "always": (None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
    "split": (None, pre_tokenizers.Metaspace(prepend_scheme="first", split=True)),
    "no-prefix": (None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
}
KINDS = [*FORMS, "phi3"]


@cache
def reference(kind: str) -> Tokenizer:
    """A tiny tokenizer with merges across words, punctuation and blanks, as real ones have."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=580,
        special_tokens=["<unk>", *CONTROL, *bytes_],
        initial_alphabet=list(map(chr, range(0x21, 0x7F))),
        show_progress=False,
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        REPLACE,
        pre_tokenizers.Split(Regex("▁?[^▁]+|▁+"), "isolated"),
    )
    lines = [PROSE.rstrip("\n") + "     a ▁▁ >; ,\n\n" * 3 + "你好，世界。"] * 3
    tokenizer.train_from_iterator(lines, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    # One merge across a blank: a cut in front of U+2581 is not safe everywhere.
    vocab = spec["model"]["vocab"]
    vocab[">▁"] = len(vocab)
    spec["model"]["merges"].append([">", "▁"])
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.normalizer, tokenizer.pre_tokenizer = FORMS.get(kind, FORMS["llama2"])
    if kind == "gemma":
        tokenizer.add_tokens(
            [AddedToken(t, normalized=False) for t in ("\n\n", "▁▁", "<table>", "a b")]
        )
    if kind == "phi3":
        tokenizer.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    tokenizer.encode_special_tokens = True
    return tokenizer


@cache
def small(kind: str) -> DocumentTokenizer:
    return DocumentTokenizer(reference(kind).to_str().encode(), kind, 24)


def ids_of(kind: str, text: str) -> list[int]:
    return reference(kind).encode(text, add_special_tokens=False).ids


HOSTILE = TEXTS | st.lists(
    st.sampled_from(
        [
            "▁",
            " ",
            "▁▁",
            "> ",
            ">▁",
            "<0x0A>",
            "<0x",
            "\n",
            "\n\n",
            "</s>",
            "</s>  ",
            "<table>",
            "a b",
            "a▁b",
            "a",
            "你好",
            "，",
            "é",
            "\U0001f469\u200d",
            "\x00",
            ";",
            "<unk>",
            "12",
            "   ",
        ]
    ),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(150), deadline=None)
@given(text=HOSTILE)
def test_ids_are_those_of_the_whole_document(kind: str, text: str) -> None:
    document = small(kind).encode(text)
    assert small(kind).backend == "fastokens"
    assert document.exact
    assert document.ids.dtype == np.int32
    assert document.ids.tolist() == ids_of(kind, text)
    assert len(text.encode()) >= small(kind).min_bytes_for(len(document.ids))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(100), deadline=None)
@given(text=HOSTILE, cuts=st.lists(st.floats(0, 1), max_size=4))
def test_ranges_have_the_exact_text(kind: str, text: str, cuts: list[float]) -> None:
    """A character split between two ranges is in neither; everything else is in one."""
    document = small(kind).encode(text)
    n = len(document.ids)
    bounds = sorted({0, n, *(int(cut * n) for cut in cuts)})
    parts = [document.text(start, stop) for start, stop in pairwise(bounds)]
    if n:
        assert 0 <= len(text) - len("".join(parts)) <= max(0, len(bounds) - 2)
    remaining = iter(text)
    assert all(char in remaining for char in "".join(parts))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(text=HOSTILE)
def test_each_token_has_its_own_text(kind: str, text: str) -> None:
    """Token by token: what stands in the document is what the vocabulary says."""
    if kind == "phi3" and "</s>" in text:
        return  # goes the slow way, with the offsets of `tokenizers`
    document = small(kind).encode(text)
    for i, token in enumerate(map(reference(kind).id_to_token, document.ids.tolist())):
        span = document.data[document.begins[i] : document.ends[i + 1]]
        if token.startswith("<0x") and len(token) == 6:
            assert span == bytes([int(token[3:5], 16)])
        else:
            shown = span.decode().replace(" ", "▁")
            # The first may hold a prefix that is not in the document.
            expected = token.replace(" ", "▁")
            assert shown == expected or (i == 0 and "▁" + shown == expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_stands_between_characters_that_no_token_joins(kind: str) -> None:
    rule, data = small(kind)._rule, b"sailor> sailor"
    assert rule is not None
    cuts, cut = [], 0
    while (found := rule.first_cut(data, cut, len(data))) is not None:
        cuts.append(cut := found)
    # ">▁" is a token, so that only a form that splits there may cut between the two.
    assert (7 in cuts) == (kind == "split")
    assert 8 not in cuts  # "▁s" is joined


def test_a_document_with_a_token_that_eats_blanks_goes_the_slow_way() -> None:
    tokenizer = small("phi3")
    text = "One cat. " * 20 + "</s>   two </s>"
    document = tokenizer.encode(text)
    assert document.ids.tolist() == ids_of("phi3", text)
    assert document.ids.tolist().count(reference("phi3").token_to_id("</s>")) == 2


def merged(spec: dict, left: str, right: str, *, new: str = "") -> None:
    """Adds a merge, with a token for what it gives and, in front, for `new`."""
    vocab = spec["model"]["vocab"]
    for token in (new, left, right, left + right):
        if token:
            vocab.setdefault(token, len(vocab))
    spec["model"]["merges"].append([left, right])


@pytest.mark.parametrize(("number", "backend"), [(64, "fastokens"), (65, "tokenizers")])
def test_some_added_tokens_that_count_their_neighbours_and_not_many(number, backend) -> None:
    """A document that holds one goes the slow way; more than 64 are not looked for in each."""
    whole = Tokenizer.from_str(reference("llama2").to_str())
    whole.add_tokens([AddedToken(f"<x{i}>", normalized=False) for i in range(number)])
    tokenizer = DocumentTokenizer(whole.to_str().encode(), "t", 24)
    assert tokenizer.backend == backend
    text = f"A cat<x0> and <x{number - 1}>cats <x{number}>"
    ids = tokenizer.encode(text).ids.tolist()
    assert ids == whole.encode(text, add_special_tokens=False).ids
    assert {whole.token_to_id("<x0>"), whole.token_to_id(f"<x{number - 1}>")} < set(ids)
    assert tokenizer.min_bytes_for(8) == (4 if number == 64 else 0)


def test_no_fewer_bytes_give_so_many_tokens_and_no_more_are_asked_for() -> None:
    """A prefix has no byte; with tokens that begin a text anew, each may have a prefix behind it."""
    for kind, n_bytes in (("llama2", [0, 0, 7]), ("gemma", [0, 0, 7]), ("phi3", [0, 0, 4])):
        assert [small(kind).min_bytes_for(n) for n in (0, 1, 8)] == n_bytes


def metaspace(replacement: str) -> dict[str, object]:
    how = {"replacement": replacement, "prepend_scheme": "first", "split": True}
    return {"type": "Metaspace", **how}


@pytest.mark.parametrize(
    "edit",
    [
        lambda spec: spec["model"].update(ignore_merges=True),
        lambda spec: spec["model"]["vocab"].pop("<0x07>"),
        lambda spec: spec["model"].update(byte_fallback=False),
        lambda spec: spec["normalizer"]["normalizers"].reverse(),
        lambda spec: spec.update(normalizer=spec["normalizer"]["normalizers"][0]),
        lambda spec: spec.update(pre_tokenizer={"type": "Whitespace"}),
        lambda spec: spec.update(
            normalizer=None,
            pre_tokenizer={"type": "Sequence", "pretokenizers": [metaspace("▁")] * 2},
        ),
        lambda spec: merged(spec, "<0x0A>", "a"),
        lambda spec: merged(spec, "a", "<0x0A>"),
        lambda spec: merged(spec, "<0x0", "A>", new="<0x0"),
        lambda spec: spec.update(normalizer={"type": "NFKC"}),
        lambda spec: spec.update(normalizer=None, pre_tokenizer=metaspace("_")),
        lambda spec: spec.update(normalizer=None, pre_tokenizer=metaspace("▂")),
        lambda spec: spec["added_tokens"].append(
            {**AddedToken("two words").__getstate__(), "id": 900}
        ),
    ],
)
def test_other_forms_go_the_slow_way(edit: Callable[[dict], object]) -> None:
    spec = json.loads(reference("llama2").to_str())
    edit(spec)
    contents = json.dumps(spec)
    tokenizer = DocumentTokenizer(contents.encode(), "other")
    assert tokenizer.backend == "tokenizers"
    assert tokenizer.slow_because
    assert tokenizer.min_bytes_for(100) == 0
    whole = Tokenizer.from_str(contents)
    whole.encode_special_tokens = True
    text = PROSE * 3 + " \x07 two words ▁"
    assert tokenizer.encode(text).ids.tolist() == whole.encode(text, add_special_tokens=False).ids


def test_long_documents_without_a_blank() -> None:
    """Any two characters that no token joins are a cut point: letters before `▁` are not needed."""
    for text in ("你好，世界。" * 300, "z" * 900, "a" * 900, "\u0301" * 500, "x\n" * 300):
        for kind in KINDS:
            document = small(kind).encode(text)
            assert document.exact
            assert document.ids.tolist() == ids_of(kind, text)
