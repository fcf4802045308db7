"""Ids against the `tokenizers` library on whole documents, with pieces of a few bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from longattn.models import BUILTIN
from longattn.windows import tokenizer as tokenization
from longattn.windows.cut_points import PreTokenizerCuts
from longattn.windows.tokenizer import DocumentTokenizer, load_tokenizer
from tests.examples import examples

# The patterns as published with each model, written out: the module must know these very texts.
PATTERNS: dict[str, tuple[str, ...]] = {
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "tekken": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek": (
        r"\p{N}{1,3}",
        "[一-龥぀-ゟ゠-ヿ]+",
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
        + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    "deepseek-coder": (
        "[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        "[一-龥ࠀ-一가-퟿]+",
    ),
    "deepseek-llm": (
        "[\r\n]",
        r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ]+",
        "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        "[一-龥ࠀ-一가-퟿]+",
    ),
    "unproven": (r"\p{L}+[^\p{L}]?|[^\p{L}]+(?=\n)|[^\p{L}]",),
}
CONTROL = ["<|begin_of_text|>", "<|eot_id|>"]
PROSE = "The sailor's 3 cats didn't see 12345 gulls; HTTPServer's naïve café. 你好，世界。\n\n    x = f(a_1)\n"
PROVEN = [
    "llama3", "qwen2", "qwen2-nfc", "o200k", "tekken", "deepseek", "deepseek-coder", "deepseek-llm",
    "gpt2", "digits", "digit-runs", "olmo2", "neox", "falcon",
]  # fmt: skip
BYTE_LEVEL = [*PROVEN, "unproven"]
SENTENCEPIECE = ["unigram", "bpe-metaspace"]


def byte_level_bpe(kind: str, missing: str = "") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    regex = kind in ("gpt2", "digits", "digit-runs", "neox", "falcon")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated")
        for pattern in PATTERNS.get(kind.removesuffix("-nfc"), ())
    ]
    if kind == "olmo2":
        steps = [pre_tokenizers.Split(Regex(PATTERNS["llama3"][0]), "removed", invert=True)]
    if kind in ("digits", "deepseek-coder", "deepseek-llm"):
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if kind == "digit-runs":
        steps = [pre_tokenizers.Digits(individual_digits=False)]
    steps.append(level)
    if kind == "falcon":
        steps = [
            pre_tokenizers.Punctuation("contiguous"),
            level,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if kind.endswith("-nfc") or kind == "neox":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        min_frequency=1,
        initial_alphabet=sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(missing)),
        special_tokens=CONTROL,
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROSE + "     \t\t\n\n\n!!!///" * 3 + "éà e\u0301"], trainer)
    if kind.startswith("qwen2"):
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    if kind == "qwen2":
        tokenizer.add_tokens(["a b;c"])
    if kind == "neox":
        tokenizer.add_tokens([" " * n for n in range(24, 1, -1)])
    return tokenizer


def sentencepiece_like(kind: str) -> Tokenizer:
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
        )
        trainer = trainers.UnigramTrainer(
            vocab_size=120,
            special_tokens=["<unk>", *CONTROL],
            unk_token="<unk>",
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>", *CONTROL, *fallback], show_progress=False
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator([PROSE] * 3, trainer)
    return tokenizer


@cache
def reference(kind: str) -> Tokenizer:
    tokenizer = (sentencepiece_like if kind in SENTENCEPIECE else byte_level_bpe)(kind)
    tokenizer.encode_special_tokens = True
    return tokenizer


@cache
def small(kind: str) -> DocumentTokenizer:
    return DocumentTokenizer(reference(kind).to_str().encode(), kind, 24)


def ids_of(kind: str, text: str) -> list[int]:
    return reference(kind).encode(text, add_special_tokens=False).ids


SEGMENTS = [
    *CONTROL, "<tool_call>", "<tool_call>\u0338", "a b;c", "a b\u037ec", "<|", "|>", " ", "  ", " " * 60, "\n", "\r\n",
    "\n\n", "\n \n  ", "\t", "!\n", "\n/", "!\n/", "'", "'s", "'LL", "ſ", "don't", "a1b22", "12345",
    "a" * 70, "7" * 70, "!" * 70, "\n" * 70, "camelCaseXML's", "你好", "，", "。", "、", "か。", "・。", "\u3000", "\u00a0",
    "½", "²3", "ü", "  7", "= 5", "a  (", "\u061d", "\x04", "▁", "▁▁a",
    "\u2028", "\u0085", "\x0b", "\x0c", "\x1c", "\x00", "e\u0301", "e\u0327\u0301", "\u0301", "\u1df6\u0301", "\u1e4ec",
    "\u212a", "\uf900", "\U0001d15e", "각", "ᄀ\u1161", "👩‍👧🏽", "สวัสดี ", "дом ", "\ufeff", "\u200b", "\u180e", PROSE,
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(SEGMENTS) | st.text(max_size=6) | st.text("aZ 1'/!\n\t你。\u0301", max_size=8),
    max_size=24,
).map("".join)


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *SENTENCEPIECE])
def test_what_unicode_once_called_a_space_is_one_to_nobody(kind: str) -> None:
    for text in ("  \u180e", "\n\n\u180e", "a \u180e b", "1\u180e2", "\u180e" * 3, "x  \u180e" * 9):
        assert small(kind).encode(text).ids.tolist() == ids_of(kind, text), text


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *SENTENCEPIECE])
@settings(max_examples=examples(80), deadline=None)
@given(text=TEXTS)
def test_ids_are_those_of_the_whole_document(kind: str, text: str) -> None:
    document = small(kind).encode(text)
    assert document.ids.dtype == np.int32
    assert document.exact
    assert document.ids.tolist() == ids_of(kind, text)


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@settings(max_examples=examples(40), deadline=None)
@given(text=TEXTS)
def test_bytes_of_ids_are_the_document(kind: str, text: str) -> None:
    tokenizer = small(kind)
    text = normalizers.NFC().normalize_str(text) if tokenizer._nfc else text
    document = tokenizer.encode(text)
    assert tokenizer.decode(document.ids) == text.encode()
    assert document.text(0, len(document.ids)) == text
    assert len(text.encode()) >= tokenizer.min_bytes_for(len(document.ids))


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, *SENTENCEPIECE])
@settings(max_examples=examples(40), deadline=None)
@given(text=TEXTS, cuts=st.lists(st.floats(0, 1), max_size=4))
def test_ranges_partition_the_text(kind: str, text: str, cuts: list[float]) -> None:
    """A character split between two ranges is in neither; everything else is in one."""
    document = small(kind).encode(text)
    whole = document.data.decode()
    n = len(document.ids)
    bounds = sorted({0, n, *(int(cut * n) for cut in cuts)})
    parts = [document.text(start, stop) for start, stop in pairwise(bounds)]
    assert 0 <= len(whole) - len("".join(parts)) <= max(0, len(bounds) - 2)
    remaining = iter(whole)
    assert all(char in remaining for char in "".join(parts))
    if kind in BYTE_LEVEL:
        for (start, stop), part in zip(pairwise(bounds), parts, strict=True):
            exact = small(kind).decode(document.ids[start:stop])
            assert part == exact.decode("utf-8", "ignore")


@pytest.mark.parametrize("kind", PROVEN)
@settings(max_examples=examples(80), deadline=None)
@given(text=TEXTS)
def test_safe_cuts_are_boundaries_of_the_pre_tokenizer(kind: str, text: str) -> None:
    rule = small(kind)._rule
    assert rule is not None
    split = reference(kind).pre_tokenizer.pre_tokenize_str
    whole = [span for _, span in split(text)]
    data, cut = text.encode(), 0
    while (found := rule.first_cut(data, cut, len(data))) is not None:
        assert cut < found < len(data)
        cut = found
        k = len(data[:cut].decode())
        right = [(start + k, stop + k) for _, (start, stop) in split(text[k:])]
        assert [span for _, span in split(text[:k])] + right == whole


def test_forced_cut_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "REACH_BYTES", 8)
    text = "word " * 10 + "é" * 100 + " word" * 10
    document = small("llama3").encode(text)
    assert not document.exact
    assert document.text(0, len(document.ids)) == text
    assert small("llama3").encode("word " * 100).exact


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "bpe-metaspace"])
def test_control_tokens_in_text_are_text(kind: str) -> None:
    tokenizer = small(kind)
    control = [reference(kind).token_to_id(token) for token in CONTROL]
    document = tokenizer.encode(f"a {CONTROL[0]} b{CONTROL[1]}")
    assert len(document.ids) > 4
    assert not set(document.ids.tolist()) & set(control)


@pytest.mark.parametrize("kind", PROVEN)
def test_backend_and_rule_by_pattern(kind: str) -> None:
    assert small(kind).backend == "fastokens"
    assert small("unproven")._rule is None
    assert small("unigram").backend == "tokenizers"


def test_a_long_common_beginning_does_not_leak_between_documents() -> None:
    tokenizer = DocumentTokenizer(reference("unproven").to_str().encode(), "whole")
    for end in ("x", " ", "\n", "\tx", "  \n  y", ""):
        text = PROSE * 60 + " " * 700 + end
        assert tokenizer.encode(text).ids.tolist() == ids_of("unproven", text)


def edited(kind: str, edit: Callable[[dict], object]) -> DocumentTokenizer:
    spec = json.loads(reference(kind).to_str())
    edit(spec)
    return DocumentTokenizer(json.dumps(spec).encode(), kind)


def test_tokens_that_eat_their_surroundings_forbid_cuts() -> None:
    assert small("qwen2")._rule == PreTokenizerCuts(unbroken=(b"<tool_call>", b"a b;c"))
    assert edited("qwen2", lambda spec: spec["added_tokens"][-1].update(rstrip=True))._rule is None
    assert small("qwen2-nfc")._rule == PreTokenizerCuts(unbroken=(b"<tool_call>",))
    # U+037E turns into ";" under NFC, so that "a b;c" may arise where no bytes of it are.
    added = {**AddedToken("a b;c").__getstate__(), "id": small("qwen2-nfc").vocab_size}
    nfc = edited("qwen2-nfc", lambda spec: spec["added_tokens"].append(added))
    assert nfc._rule is None
    assert nfc.encode("a b\u037ec").ids.tolist() == [added["id"]]


@pytest.mark.parametrize(
    ("added", "cut"),
    [
        ({"content": "ab"}, True),
        ({"content": "日", "normalized": False}, True),
        ({"content": "日", "special": True}, True),  # not looked for in text
        ({"content": "日"}, False),
        ({"content": "K."}, False),  # U+212A becomes K, U+1FEF a grave accent
        ({"content": "x`"}, False),
        ({"content": "ab", "lstrip": True}, False),
        ({"content": "ab", "rstrip": True}, False),
        ({"content": "ab", "single_word": True}, False),
        ({"content": "ab", "single_word": True, "special": True}, True),
    ],
)
def test_which_added_tokens_forbid_cuts(added: dict, cut: bool) -> None:
    plain = {**AddedToken("", normalized=True).__getstate__(), "id": small("qwen2-nfc").vocab_size}
    tokenizer = edited("qwen2-nfc", lambda spec: spec["added_tokens"].append(plain | added))
    assert (tokenizer._rule is not None) == cut


def step(kind: str, **how: object) -> dict[str, object]:
    return {"type": kind, **how}


def last_step(spec: dict) -> dict:
    return spec["pre_tokenizer"]["pretokenizers"][-1]


def before(*steps: dict) -> Callable[[dict], object]:
    """Puts steps in front of those that are there."""
    return lambda spec: spec["pre_tokenizer"]["pretokenizers"].__setitem__(slice(0), steps)


WORDS = {"Regex": r"\p{L}+"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda spec: last_step(spec).update(add_prefix_space=True),
        lambda spec: spec["model"].update(end_of_word_suffix="</w>"),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"].reverse(),
        before(step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)),
        before(step("Whitespace")),
        before(step("Split", pattern=WORDS, behavior="Removed", invert=True)),
        before(step("Split", pattern={"String": "ca"}, behavior="Removed", invert=False)),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda spec: spec.update(normalizer=step("Lowercase")),
        lambda spec: spec.update(
            normalizer=step("Sequence", normalizers=[step("NFC"), step("Lowercase")])
        ),
    ],
)
def test_other_forms_go_the_slow_way(edit: Callable[[dict], object]) -> None:
    tokenizer = edited("llama3", edit)
    assert tokenizer.backend == "tokenizers" and tokenizer.min_bytes_for(100) == 0
    whole = Tokenizer.from_str(tokenizer._contents.decode())
    for text in (PROSE * 3, "a", " Cats"):
        document = tokenizer.encode(text)
        assert document.ids.tolist() == whole.encode(text, add_special_tokens=False).ids
        assert document.text(0, len(document.ids)) in (text, "")


@pytest.mark.parametrize("unknown", [{"unk_token": "a"}, {"byte_fallback": True}])
def test_a_vocabulary_that_lacks_bytes_and_has_something_for_them_goes_the_slow_way(
    unknown: dict,
) -> None:
    spec = json.loads(byte_level_bpe("llama3", MISSING).to_str())
    spec["model"].update(unknown)
    tokenizer = DocumentTokenizer(json.dumps(spec).encode(), "t")
    assert tokenizer.min_bytes_for(100) == 0
    whole = Tokenizer.from_str(json.dumps(spec))
    text = "cat\x04s and \x00"
    assert tokenizer.encode(text).ids.tolist() == whole.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "edit",
    [
        before(step("Split", pattern=WORDS, behavior="Isolated", invert=True)),
        before(step("Split", pattern=WORDS, behavior="MergedWithNext", invert=False)),
        before(step("Split", pattern={"String": "ca"}, behavior="Isolated", invert=False)),
        before(step("Punctuation", behavior="MergedWithPrevious")),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
        lambda spec: spec["pre_tokenizer"]["pretokenizers"][0].update(behavior="MergedWithNext"),
        lambda spec: spec.update(pre_tokenizer=last_step(spec)),
    ],
)
def test_no_cut_is_taken_for_proven_where_the_steps_are_not_known(
    edit: Callable[[dict], object],
) -> None:
    tokenizer = edited("llama3", edit)
    assert tokenizer._rule is None
    assert tokenizer.min_bytes_for(100) == 100  # of all these the bytes are those of the tokens
    whole = Tokenizer.from_str(tokenizer._contents.decode())
    document = tokenizer.encode(PROSE * 30)
    assert document.exact
    assert document.ids.tolist() == whole.encode(PROSE * 30, add_special_tokens=False).ids


def test_no_fewer_bytes_give_so_many_tokens_and_no_more_are_asked_for() -> None:
    """NFC makes U+1D160, four bytes, twelve; else a token holds a byte at least."""
    for kind, n_bytes in (("llama3", [0, 1, 10, 12]), ("qwen2-nfc", [0, 1, 4, 4])):
        assert [small(kind).min_bytes_for(n) for n in (0, 1, 10, 12)] == n_bytes
    assert small("unigram").min_bytes_for(10) == 0


def test_bytes_that_look_like_digits_are_not_merged_where_a_splitter_takes_them_for_such() -> None:
    """Falcon's splitter of digits sees `ü` as `Ã¼`, of which `¼` is a number: they stay two tokens."""
    letters = dict(zip("òóùüýþ", "²³¹¼½¾", strict=True))

    def merged(spec: dict) -> None:
        for digit in letters.values():
            spec["model"]["vocab"][f"Ã{digit}"] = len(spec["model"]["vocab"])
            spec["model"]["merges"].append(["Ã", digit])

    for kind, tokens in (("falcon", 2), ("gpt2", 1)):
        tokenizer = edited(kind, merged)
        whole = Tokenizer.from_str(tokenizer._contents.decode())
        assert tokenizer.backend == "fastokens"
        for letter in letters:
            for text in (letter, f"a {letter} b", f"naïve {letter}ber 12{letter}34 " * 9):
                ids = tokenizer.encode(text).ids.tolist()
                assert ids == whole.encode(text, add_special_tokens=False).ids
            assert len(tokenizer.encode(letter).ids) == tokens


def test_a_byte_level_step_splits_unless_it_says_that_it_does_not() -> None:
    """As `tokenizers` has it: older files do not tell."""

    def untold(spec: dict) -> None:
        for step in spec["pre_tokenizer"]["pretokenizers"]:
            del step["use_regex"]

    tokenizer = edited("gpt2", untold)
    assert tokenizer._rule == small("gpt2")._rule is not None
    assert tokenizer.encode(PROSE).ids.tolist() == ids_of("gpt2", PROSE)


def test_only_a_panic_of_rust_is_an_error_of_the_text() -> None:
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), tokenization._rust_errors("cannot"):
            raise kind
    panic = type("PanicException", (BaseException,), {})
    with (
        pytest.raises(ValueError, match=r"^cannot: it broke$"),
        tokenization._rust_errors("cannot"),
    ):
        raise panic("it broke")


# As in the byte alphabet: 0x04, 0xF1, 0xF2, 0x00. SmolLM2's vocabulary lacks such bytes.
MISSING = "\u0104ñò\u0100"


@cache
def lacking_kind(kind: str) -> tuple[DocumentTokenizer, Tokenizer]:
    whole = byte_level_bpe(kind, MISSING)
    whole.encode_special_tokens = True
    return DocumentTokenizer(whole.to_str().encode(), kind, 24), whole


@pytest.mark.parametrize("kind", ["digits", "llama3", "unproven", "qwen2-nfc", "falcon"])
@settings(max_examples=examples(60), deadline=None)
@given(text=TEXTS, drop=st.lists(st.sampled_from(["\x00", "\x04", "\U00045678"]), max_size=4))
def test_bytes_without_a_token_are_left_out_as_by_tokenizers(
    kind: str, text: str, drop: list[str]
) -> None:
    tokenizer, whole = lacking_kind(kind)
    text = text.join(drop) + text
    document = tokenizer.encode(text)
    assert document.ids.tolist() == whole.encode(text, add_special_tokens=False).ids
    if tokenizer._nfc:
        return
    # Nothing else is lost, and the text of a range is where its bytes are.
    held = text.encode().translate(None, b"\x00\x04\xf1\xf2")
    assert tokenizer.decode(document.ids) == held
    n = len(document.ids)
    assert document.data == text.encode()
    assert document.ends[-1] == (len(text.encode()) if n else 0)
    for i in range(n):
        span = document.data[document.begins[i] : document.ends[i + 1]]
        token = tokenizer.decode(document.ids[i : i + 1])
        assert span.translate(None, b"\x00\x04\xf1\xf2") == token
    assert document.text(0, n) == (text if n else "")


def test_only_what_holds_a_byte_without_a_token_goes_the_slow_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer, whole = lacking_kind("digits")
    assert tokenizer.backend == "fastokens"
    slow: list[str] = []

    def recording(reference: Tokenizer, text: str) -> np.ndarray:
        slow.append(text)
        return np.array(reference.encode(text, add_special_tokens=False).ids, np.int32)

    monkeypatch.setattr(tokenization, "_slow_ids", recording)
    assert tokenizer.encode("word " * 1000).exact
    assert tokenizer.encode(
        "дом, über ½ 👩 你好。" * 100
    ).exact  # only Falcon's splitter needs the slow way
    assert slow == []
    text = "word " * 1000 + "od\x04d" + " word" * 1000
    assert tokenizer.encode(text).ids.tolist() == whole.encode(text).ids
    assert slow == ["\x04d"]  # the end of a run of letters is a cut point


def test_saved_truncation_padding_and_dropout_are_left_out() -> None:
    stored = Tokenizer.from_str(reference("llama3").to_str())
    stored.enable_truncation(4)
    stored.enable_padding(length=64)
    stored.model.dropout = 0.5
    tokenizer = DocumentTokenizer(stored.to_str().encode(), "stored")
    assert tokenizer.encode(PROSE).ids.tolist() == ids_of("llama3", PROSE)
    assert tokenizer.fingerprint == edited("llama3", lambda spec: None).fingerprint


def test_fingerprint_follows_what_decides_the_ids() -> None:
    same = edited("llama3", lambda spec: spec.update(post_processor=None))
    other = edited("llama3", lambda spec: spec["model"]["merges"].pop())
    lower = edited("llama3", lambda spec: spec.update(normalizer={"type": "Lowercase"}))
    assert len({same.fingerprint, other.fingerprint, lower.fingerprint}) == 3
    assert same.fingerprint == edited("llama3", lambda spec: None).fingerprint


@pytest.mark.parametrize(
    ("kind", "cuts"), [("llama3", True), ("qwen2-nfc", True), ("unproven", False)]
)
def test_the_fingerprint_stays_what_it_is(kind: str, cuts: bool) -> None:
    """An output folder goes by it: SHA-256 of what decides the ids, as JSON with sorted keys."""
    spec = json.loads(reference(kind).to_str())
    deciding = [spec[name] for name in ("normalizer", "pre_tokenizer", "added_tokens", "model")]
    for size, tokenizer in (
        (24, small(kind)),
        (131_072, DocumentTokenizer(reference(kind).to_str().encode(), kind)),
    ):
        told = [*deciding, [size, 1_048_576, 2] if cuts else None]
        text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        assert tokenizer.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_bytes_that_no_text_holds_may_be_missing() -> None:
    """UTF-8 has no 0xC0, 0xC1 and 0xF5 to 0xFF: a vocabulary without them lacks nothing."""
    whole = byte_level_bpe("llama3", "ÀÁ" + "".join(map(chr, range(0xF5, 0x100))))
    spec = json.loads(whole.to_str())
    spec["model"]["unk_token"] = "a"
    tokenizer = DocumentTokenizer(json.dumps(spec).encode(), "t")
    assert (tokenizer.backend, tokenizer.min_bytes_for(100)) == ("fastokens", 100)


def test_the_fingerprint_is_of_the_cuts_where_there_are_any_and_not_of_the_name() -> None:
    for kind, differs in (("llama3", True), ("unigram", False), ("unproven", False)):
        contents = reference(kind).to_str().encode()
        one, other = (
            DocumentTokenizer(contents, name, size) for name, size in (("a", 24), ("b", 25))
        )
        assert (one.fingerprint != other.fingerprint) == differs
        assert one.fingerprint == DocumentTokenizer(contents, "c", 24).fingerprint
    for edit in (
        lambda spec: spec["added_tokens"].pop(),
        lambda spec: last_step(spec).update(trim_offsets=False),
        lambda spec: spec.update(pre_tokenizer=last_step(spec)),
    ):
        assert edited("llama3", edit).fingerprint != edited("llama3", lambda _: None).fingerprint


def test_bos_is_what_the_post_processor_puts_in_front() -> None:
    assert small("llama3").bos_token_id is None
    with_bos = Tokenizer.from_str(reference("llama3").to_str())
    with_bos.post_processor = processors.TemplateProcessing(
        single=f"{CONTROL[0]} $A {CONTROL[1]}", special_tokens=[(CONTROL[0], 0), (CONTROL[1], 1)]
    )
    tokenizer = DocumentTokenizer(with_bos.to_str().encode(), "bos")
    assert tokenizer.bos_token_id == 0
    assert tokenizer.encode("a").ids.tolist() == ids_of("llama3", "a")


def test_from_file_and_pickle_give_the_same_tokenizer(tmp_path) -> None:
    path = tmp_path / "tiny" / "tokenizer.json"
    path.parent.mkdir()
    reference("llama3").save(str(path))
    tokenizer = DocumentTokenizer.from_file(path)
    assert (tokenizer.name, tokenizer.vocab_size) == ("tiny", reference("llama3").get_vocab_size())
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(PROSE).ids.tolist() == tokenizer.encode(PROSE.encode()).ids.tolist()


def test_empty_document() -> None:
    for kind in ("llama3", "qwen2-nfc", "unigram"):
        document = small(kind).encode("")
        assert (document.ids.shape, document.exact, document.text(0, 0)) == ((0,), True, "")


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        small("llama3").encode("a\ud800")
    for kind in ("llama3", "unigram"):
        with pytest.raises(UnicodeDecodeError) as caught:
            small(kind).encode(b"word " * 20 + b"\xff")
        assert caught.value.start == 100


def test_ranges_and_ids_out_of_bounds_are_refused() -> None:
    document = small("llama3").encode("abc")
    for start, stop in ((-1, 0), (1, 0), (0, 4)):
        with pytest.raises(ValueError, match="token range"):
            document.text(start, stop)
    size = small("llama3").vocab_size
    for ids in ([-1], [size]):
        with pytest.raises(ValueError, match=f"0 to {size - 1}"):
            small("llama3").decode(ids)

    def leave_a_gap(spec: dict) -> None:
        vocab = spec["model"]["vocab"]
        vocab[max(vocab, key=vocab.get)] += 2

    with pytest.raises(ValueError, match=f"id {size} has no token"):
        edited("llama3", leave_a_gap).decode([size])
    with pytest.raises(ValueError, match=r"bad: not a tokenizer\.json"):
        DocumentTokenizer(b"[]", "bad")


def test_ids_are_decoded_in_any_number_and_of_any_kind() -> None:
    tokenizer = small("llama3")
    ids = tokenizer.encode(PROSE).ids
    assert tokenizer.decode(np.tile(ids, 3000)) == PROSE.encode() * 3000  # over 65,536 ids
    assert tokenizer.decode(ids.tolist()) == tokenizer.decode(ids.reshape(1, -1)) == PROSE.encode()
    assert tokenizer.decode([]) == b""
    assert tokenizer.decode([1, 0]) == (CONTROL[1] + CONTROL[0]).encode()

    def odd(spec: dict) -> None:
        spec["model"]["vocab"]["日"] = len(spec["model"]["vocab"])  # not in the byte alphabet

    assert edited("llama3", odd).decode([tokenizer.vocab_size]) == "日".encode()
    whole = small("unigram")
    assert whole.decode(whole.encode("The sailor's 3 cats").ids) == b"The sailor's 3 cats"


def test_an_added_token_beyond_the_vocabulary_is_refused() -> None:
    size = small("llama3").vocab_size
    added = {**AddedToken("zz").__getstate__(), "id": size + 1}
    message = (
        rf"added token 'zz' has id {size + 1}; with {size + 1} tokens, at most {size} is allowed"
    )
    with pytest.raises(ValueError, match=message):
        edited("llama3", lambda spec: spec["added_tokens"].append(added))
    added["id"] = size
    assert edited("llama3", lambda spec: spec["added_tokens"].append(added)).decode([size]) == b"zz"


def test_a_slow_tokenizer_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    small("llama3").warn_if_slow()
    assert small("llama3").slow_warning is None and not caplog.messages
    small("unigram").warn_if_slow()
    assert caplog.messages == [
        "tokenizer unigram: slow `tokenizers` is used, below 1 M tokens/s a core: neither a "
        "byte-level nor a sentencepiece-type BPE that is known"
    ]


def test_the_tokenizer_of_a_model_is_loaded_once_and_again_where_its_file_changed(tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((BUILTIN / "config.json").read_bytes())
    with pytest.raises(ValueError, match=rf"^model '{model}': {model} has no tokenizer\.json$"):
        load_tokenizer(str(model))
    reference("llama3").save(str(model / "tokenizer.json"))
    loaded = load_tokenizer(str(model))
    assert loaded.name == "model" and load_tokenizer(str(model)) is loaded
    assert loaded.fingerprint != small("llama3").fingerprint  # cut into larger pieces
    reference("qwen2").save(str(model / "tokenizer.json"))
    assert load_tokenizer(str(model)).encode(PROSE).ids.tolist() == ids_of("qwen2", PROSE)


class PanicException(BaseException):
    """As pyo3 names a Rust panic."""


@pytest.mark.parametrize("kind", ["llama3", "unigram"])
def test_a_panic_names_the_length_and_an_interrupt_passes(kind: str) -> None:
    class Broken:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def encode(self, *args: object, **kwargs: object) -> None:
            raise self.error

        encode_batch_flat = encode

    tokenizer = edited(kind, lambda spec: None)
    for error, raised in ((PanicException("boom"), ValueError), (KeyboardInterrupt(),) * 2):
        tokenizer._fast = tokenizer._reference = Broken(error)
        with pytest.raises(raised if isinstance(raised, type) else KeyboardInterrupt) as caught:
            tokenizer.encode("a" * 10)
    assert isinstance(caught.value, KeyboardInterrupt)
    tokenizer._fast = tokenizer._reference = Broken(PanicException("boom"))
    with pytest.raises(ValueError, match="document of 10 bytes: boom"):
        tokenizer.encode("a" * 10)


def test_fastokens_that_disagrees_or_cannot_load_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokenization, "_fast_ids", lambda fast, text: np.zeros(1, np.int32))
    with caplog.at_level(logging.WARNING, "longattn"):
        disagreeing = edited("llama3", lambda spec: None)
        assert not caplog.records  # a worker is silent; the driver says it, once
        disagreeing.warn_if_slow()
    assert disagreeing.backend == "tokenizers"
    assert "ids differ from `tokenizers`" in caplog.text
    assert len(caplog.records) == 1
    assert disagreeing.encode(PROSE * 3).ids.tolist() == ids_of("llama3", PROSE * 3)

    monkeypatch.setitem(sys.modules, "fastokens", None)
    without = edited("llama3", lambda spec: None)
    assert without.backend == "tokenizers"
    assert "cannot load" in (without.slow_because or "")


def test_one_thread(tmp_path) -> None:
    """A worker owns one core: encoding starts no thread beside it."""
    path = tmp_path / "tokenizer.json"
    reference("llama3").save(str(path))
    code = (
        "import os, sys; from longattn.windows.tokenizer import DocumentTokenizer as T\n"
        "t = T.from_file(sys.argv[1]); before = len(os.listdir('/proc/self/task'))\n"
        "t.encode('word word. ' * 200000); print(len(os.listdir('/proc/self/task')) - before)"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("counts threads in /proc")
    out = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    assert out.stdout.split() == [b"0"]
