"""Sentencepiece-type BPE: Llama 2, Mistral, TinyLlama, Yi, Phi-3, Gemma.

There is no pre-tokenizer: the whole text, each space written as U+2581, is one word to the BPE, and
a character without a token becomes the tokens of its bytes. Some put one U+2581 in front of the
text. `SentencePieceBPE.read` recognises what transformers writes of these, in four forms; anything
else goes the slow way of `tokenizers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from longattn.windows.cut_points import (
    MergeCuts,
    eats_surroundings,
    matched_tokens,
    merge_cuts,
)
from longattn.windows.spec import Spec, Step, normalizers, pre_tokenizers

SPACE = "▁"
_SPACE = SPACE.encode()
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_SPLIT_SPACE = {  # Gemma's: does nothing, since no space is left
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_SPLIT = {
    "type": "Split",
    "pattern": {"String": SPACE},
    "behavior": "MergedWithNext",
    "invert": False,
}
_MOST_WHOLE = 64  # each is looked for in each document


@dataclass(frozen=True, eq=False)
class SentencePieceBPE:
    """What decides the ids of one tokenizer of this kind, beside vocabulary and merges."""

    prefix: str
    """"always" (U+2581 in front of a text), "unless blank" (unless it starts with one) or "never"."""
    split: bool
    """Whether the text is split before each U+2581."""
    cuts: MergeCuts
    """Where a document may be cut."""
    whole: re.Pattern[bytes] | None
    """Added tokens whose neighbourhood counts: a document that holds one goes the slow way."""
    lengths: np.ndarray
    """int32 (2, vocab_size): bytes of each id, U+2581 taken for one byte and for three."""

    @classmethod
    def read(cls, spec: Spec, vocab_size: int) -> SentencePieceBPE | None:
        """None where `spec`, a tokenizer.json, is not one of the known forms."""
        model, steps = spec["model"], pre_tokenizers(spec)
        form = _form(normalizers(spec), steps)
        if model["type"] != "BPE" or not model.get("byte_fallback") or form is None:
            return None
        vocab, byte_tokens = model["vocab"], {f"<0x{byte:02X}>" for byte in range(256)}
        if (
            SPACE not in vocab
            or not byte_tokens <= vocab.keys()
            or model.get("ignore_merges")
            or model.get("continuing_subword_prefix")
            or model.get("end_of_word_suffix")
        ):
            return None
        joined = set()
        for left, right in _pairs(model["merges"]):
            # A byte token that is merged, or that merges give, would not tell of one byte.
            if left in byte_tokens or right in byte_tokens or left + right in byte_tokens:
                return None
            joined.add(left[-1] + right[0])
        prefix, split = form
        matched = matched_tokens(spec)
        # An added token begins a new text, which gets a prefix of its own.
        whole = [t for t in matched if prefix != "never" or t["normalized"] or eats_surroundings(t)]
        if len(whole) > _MOST_WHOLE or any({" ", SPACE} & set(t["content"]) for t in whole):
            return None
        found = "|".join(re.escape(added["content"]) for added in whole)
        return cls(
            prefix,
            split,
            merge_cuts(joined, [added for added in matched if added not in whole], split),
            re.compile(found.encode()) if whole else None,
            _lengths(spec, vocab_size, byte_tokens),
        )

    def for_fastokens(self, spec: Spec) -> Spec:
        """The same tokenizer, less the prefix, in terms that fastokens knows."""
        steps = {"normalizer": _REPLACE, "pre_tokenizer": _SPLIT if self.split else None}
        return spec | steps | {"post_processor": None}

    def prefix_of(self, text: str) -> str:
        """What the tokenizer puts in front of a document."""
        if not text or self.prefix == "never":
            return ""
        return "" if self.prefix == "unless blank" and text.startswith((" ", SPACE)) else SPACE

    def min_bytes_for(self, n_tokens: int) -> int:
        """No text of fewer UTF-8 bytes gives `n_tokens`."""
        # Beside a prefix, each token holds a byte. With `whole` tokens, each text between two of
        # them may have a prefix: 3 tokens for 2 bytes.
        return max(0, n_tokens - 1) if self.whole is None else n_tokens // 2

    def offsets(self, data: bytes, ids: np.ndarray) -> np.ndarray:
        """int64 (n + 1,): the byte of `data` where each token begins, and the end of the last."""
        literal = _SPACE in data
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(self.lengths[int(literal)][ids], out=offsets[1:])
        if self.prefix_of(data[:4].decode("utf-8", "ignore")):
            offsets[1:] -= 3 if literal else 1
        if literal:  # offsets are in a text whose spaces take 3 bytes
            spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x20)
            offsets -= 2 * np.searchsorted(spaces + 2 * np.arange(len(spaces)), offsets)
        return offsets


def _form(normal: list[Step], steps: list[Step]) -> tuple[str, bool] | None:
    if normal == [_PREPEND, _REPLACE] and not steps:
        return "always", False
    if normal == [_REPLACE] and steps in ([], [_SPLIT_SPACE]):
        return "never", False
    if not normal and len(steps) == 1 and steps[0]["type"] == "Metaspace":
        step = steps[0]
        if step["replacement"] == SPACE and "prepend_scheme" in step:
            prefix = "never" if step["prepend_scheme"] == "never" else "unless blank"
            return prefix, step.get("split", True)
    return None


def _pairs(merges: list[Any]) -> Iterator[tuple[str, str]]:
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _lengths(spec: Spec, vocab_size: int, byte_tokens: set[str]) -> np.ndarray:
    lengths = np.zeros((2, vocab_size), np.int32)
    for token, index in spec["model"]["vocab"].items():
        size = 1 if token in byte_tokens else len(token.encode())
        lengths[:, index] = size - 2 * token.count(SPACE), size
    for added in spec.get("added_tokens") or ():
        if added["content"] not in spec["model"]["vocab"]:
            size = len(added["content"].encode())
            lengths[:, added["id"]] = size, size + 2 * added["content"].count(" ")
    return lengths
