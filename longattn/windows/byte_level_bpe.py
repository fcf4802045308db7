"""Byte-level BPE (GPT-2's kind): which bytes a token stands for, and how to tell fastokens.

The bytes of a document are, in order, the bytes of its tokens. Some vocabularies lack tokens of
rare bytes (SmolLM2: 21); `tokenizers` leaves those bytes out.
"""

from __future__ import annotations

import numpy as np

from longattn.windows.cut_points import chain
from longattn.windows.spec import Spec, Step, normalizers, pre_tokenizers

FALCON = ("punctuation", "gpt2", "digit runs", "[0-9][0-9][0-9]")

_CONTRACTION = "'s|'t|'re|'ve|'m|'ll|'d"
_WORD, _OTHER, _BLANK = r" ?\p{L}+", r" ?[^\s\p{L}\p{N}]+", r"\s+(?!\S)|\s+"
# Chains that fastokens cannot load, or runs at 4 M tokens/s, as one pattern that it runs at 10 and
# more. A step sees each part that earlier steps made as a whole text, so that `\s+(?!\S)` takes all
# blanks in front of a part that an earlier step has split off.
_ONE_PATTERN = {
    ("digits", "gpt2"): rf"\p{{N}}|{_CONTRACTION}|{_WORD}|{_OTHER}|\s+(?=\p{{N}})|{_BLANK}",
    ("digit runs", "gpt2"): rf"\p{{N}}+|{_CONTRACTION}|{_WORD}|{_OTHER}|\s+(?=\p{{N}})|{_BLANK}",
    # A blank before a digit joins it in GPT-2's pattern and is then split off by "digit runs".
    FALCON: (
        r"[!-/:-@\[-`{-~\p{P}]+|[0-9]{1,3}| (?=[0-9])"
        rf"|{_WORD}| ?(?:(?![0-9])\p{{N}})+| ?(?:(?![!-~\p{{P}}])[^\s\p{{L}}\p{{N}}])+"
        rf"|\s+(?=[!-/:-@\[-`{{-~\p{{P}}])|{_BLANK}"
    ),
}
# Falcon's "digit runs" looks at bytes written as characters, of which six are digits (`²³¹¼½¾`): it
# splits characters that hold those bytes (`ü`, `о`), and no pattern over text can. The other bytes
# begin 90 characters that its "punctuation" and `\p{P}` class by different versions of Unicode.
_FALCON_ODD = bytes([0xB2, 0xB3, 0xB9, 0xBC, 0xBD, 0xBE, 0xD8, 0xE0, 0xE1, *range(0xF0, 0xF5)])


def byte_alphabet() -> dict[int, int]:
    """Code point -> byte of the alphabet in which byte-level BPE writes bytes (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + i: b for i, b in enumerate(others)}


def is_byte_level(spec: Spec) -> bool:
    """Whether the bytes of a document, less `missing_bytes`, are the bytes of its tokens."""
    model, steps = spec["model"], pre_tokenizers(spec)
    levels = [step for step in steps if step["type"] == "ByteLevel"]
    return (
        model["type"] == "BPE"
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and len(levels) == 1
        and not levels[0]["add_prefix_space"]
        and (steps[-1] == levels[0] or chain(spec) == FALCON)
        and normalizers(spec) in ([], [{"type": "NFC"}])
        and (not missing_bytes(spec) or not (model.get("unk_token") or model.get("byte_fallback")))
        and (chain(spec) is not None or not any(map(_may_drop, steps)))
    )


def _may_drop(step: Step) -> bool:
    keeps = step["type"] in ("Digits", "ByteLevel") or (
        step["type"] in ("Split", "Punctuation") and step["behavior"] != "Removed"
    )
    return not keeps


def missing_bytes(spec: Spec) -> bytes:
    """The bytes of UTF-8 that have no token: `tokenizers` leaves them out of the text."""
    vocab = spec["model"]["vocab"]
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    alphabet = byte_alphabet().items()
    return bytes(sorted(b for char, b in alphabet if chr(char) not in vocab and b not in never))


def odd_bytes(spec: Spec) -> bytes:
    """Bytes that only `tokenizers` treats as `tokenizers` does: what holds them is left to it."""
    return bytes({*missing_bytes(spec), *(_FALCON_ODD if chain(spec) == FALCON else b"")})


def for_fastokens(spec: Spec) -> Spec:
    """The same tokenizer for text in NFC without `odd_bytes`, as fastokens loads and runs it best.

    It only sees text that is NFC already: its tables are of a newer Unicode.
    """
    spec = spec | {"normalizer": None, "post_processor": None}
    pattern = _ONE_PATTERN.get(chain(spec) or ())
    if pattern is None:
        return spec
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [split, level | {"use_regex": False}]
    return spec | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


class TokenBytes:
    """The bytes of each id.

    Attributes:
        lengths: int32 (vocab_size,), 0 where an id has no token.
    """

    def __init__(self, spec: Spec, vocab_size: int) -> None:
        byte_of = byte_alphabet()
        table = [b""] * vocab_size
        for token, index in spec["model"]["vocab"].items():
            try:
                table[index] = token.translate(byte_of).encode("latin-1")
            except UnicodeEncodeError:  # no text gives it: written without the byte alphabet
                table[index] = token.encode()
        for added in spec.get("added_tokens") or ():
            if added["id"] >= vocab_size:  # `tokenizers` gives it another
                raise ValueError(
                    f"added token {added['content']!r} has id {added['id']}; "
                    f"with {vocab_size} tokens, at most {vocab_size - 1} is allowed"
                )
            table[added["id"]] = added["content"].encode()
        self.lengths = np.array([len(token) for token in table], np.int32)
        self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        self._table = np.frombuffer(b"".join(table), np.uint8)

    def decode(self, ids: np.ndarray) -> bytes:
        step = 1 << 16  # bounds the index arrays below: 8 bytes a byte of text
        return b"".join(self._bytes_of(ids[i : i + step]) for i in range(0, len(ids), step))

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths, dtype=np.int64)
        shift = np.repeat(self._starts[ids] - (ends - lengths), lengths)
        return self._table[shift + np.arange(len(shift))].tobytes()
