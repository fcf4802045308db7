r"""Where a long document may be cut so that its pieces give the token ids of the whole.

A piece is encoded on its own, so that time and memory stay bounded. A cut is safe where the
tokenizer is proven to put a boundary between two tokens whatever stands around it. Two proofs:

- `PreTokenizerCuts`: a pre-tokenizer splits there. No alternative of its patterns matches across
  the cut, none looks back, and none looks ahead from the left side of it.
- `MergeCuts`: there is no pre-tokenizer, but no merge of the BPE joins those two characters.

No character after a cut composes with one before it, so that cuts hold under NFC too. Characters
whose class differs between versions of Unicode, and multi-byte spaces, are not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from longattn.windows.spec import Spec, Step, pre_tokenizers

# Book text, Llama 3 vocabulary: pieces of 32 KB to 512 KB are equally fast, within the noise. A run
# of random letters costs 0.2 us/byte in pieces of 128 KB, 0.45 in pieces of 1 MB, 0.8 of 4 MB.
PIECE_BYTES = 128 * 1024
REACH_BYTES = 1024 * 1024
# Part of the fingerprint of a tokenizer: changes with where forced cuts fall.
FORCED_CUTS = 2

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    TEKKEN.replace(r"\p{M}]+|", r"\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1)
    .replace(r"\p{M}]*|", r"\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1)
    .replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
    r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", "digits")
# Every character is in a match: to remove what does not match removes nothing.
_TOTAL = frozenset({LLAMA3, QWEN2, TEKKEN, O200K})

_LETTER = rb"[A-Za-z](?=[\x00-&(-@\[-`{-\x7f])"
_CJK = (
    rb"(?:[\xe5-\xe8][\x80-\xbf]{2}|\xe3(?:\x81[\x81-\xbf]|\x82[\x80-\x96\xa1-\xbf]|\x83[\x80-\xba]))"
    rb"(?=\xe3\x80[\x81\x82]|\xef\xbc\x8c)"
)
_ANYWHERE = (
    rb"[!-~](?=[ \t])|" + _LETTER + rb"|[0-9](?=[\x00-/:-\x7f])"
    rb"|(?:[\xc3-\xdf][\x80-\xbf]|[\xe0\xe4-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})(?=[ \t])"
    rb"|" + _CJK
)
_NEWLINE = rb"|\n(?=[ \t]*(?:[!-.0-~\xc3-\xe0\xe4-\xf4]|\xe3[\x81-\x83]))"
# - A non-space before a blank: a blank only begins a match or follows whitespace.
# - An ASCII letter before an ASCII non-letter but `'` (GPT-4o takes `'s` with the word), an ASCII
#   digit before an ASCII non-digit, a Chinese or Japanese letter before `、` `。` `，`: runs of
#   letters and of digits end there in every alternative.
SAFE = re.compile(_ANYWHERE)
# - A newline before blanks (or none) and a non-space but `/`: the last newline of a run of
#   whitespace ends its match, `\s*[\r\n]+` or the `[\r\n/]*` after punctuation. Not with GPT-2's
#   pattern: its `\s+(?!\S)` takes "\n\n" whole only at the very end.
SAFE_WITH_NEWLINES = re.compile(_ANYWHERE + _NEWLINE)
# The first step alone, whatever steps follow, since they see its parts one by one:
# - [\r\n] as a part of its own: after each newline.
AFTER_NEWLINE = re.compile(rb"\n")
# - punctuation as parts of their own: between ASCII punctuation and other ASCII, either way.
AROUND_PUNCTUATION = re.compile(
    rb"[!-/:-@\[-`{-~](?=[\x00- 0-9A-Za-z\x7f])|[\x00- 0-9A-Za-z\x7f](?=[!-/:-@\[-`{-~])"
)
# DeepSeek Coder: also where its run of letters or of \p{P} ends, before a blank or other ASCII, and
# after a digit (each is a part of its own). `=` and other symbols are not \p{P}: "= 5" has one part
# "= ".
_CODER = re.compile(
    rb"\n|[0-9](?=[\x00-\x7f])|[A-Za-z](?=[\x00-@\[-`{-\x7f])|[!-#%-*,-/:;?@\[-\]_{}](?=[ \t])|"
    + _CJK
)
_PROVEN_CHAINS: dict[tuple[str, ...], re.Pattern[bytes]] = {
    (LLAMA3,): SAFE_WITH_NEWLINES,
    (QWEN2,): SAFE_WITH_NEWLINES,
    (TEKKEN,): SAFE_WITH_NEWLINES,
    (O200K,): SAFE_WITH_NEWLINES,
    DEEPSEEK_V3: SAFE_WITH_NEWLINES,
    DEEPSEEK_CODER: _CODER,
    ("gpt2",): SAFE,
    ("digits", "gpt2"): SAFE,
    ("digit runs", "gpt2"): SAFE,
}
_PROVEN_FIRST_STEPS = {
    r"[\r\n]": AFTER_NEWLINE,
    "punctuation": AROUND_PUNCTUATION,
}


class CutRule(Protocol):
    """Where a document may be cut for one tokenizer."""

    def first_cut(self, data: bytes, start: int, stop: int) -> int | None:
        """First offset after `start` where cutting changes no ids, as data[start:stop] tells.

        `data` is valid UTF-8; `start` may be inside a character.
        """
        ...


@dataclass(frozen=True)
class PreTokenizerCuts:
    """Cuts where a pre-tokenizer is proven to split."""

    pattern: re.Pattern[bytes] = SAFE_WITH_NEWLINES
    """Matches end at cut points."""
    unbroken: tuple[bytes, ...] = ()
    """Added tokens that still match inside text, and so must not be cut through."""

    def first_cut(self, data: bytes, start: int, stop: int) -> int | None:
        for match in self.pattern.finditer(data, start, stop):
            cut = match.end()
            if cut < len(data) and not any(
                data.find(token, max(0, cut - len(token) + 1), cut + len(token) - 1) >= 0
                for token in self.unbroken
            ):
                return cut
        return None


@dataclass(frozen=True)
class MergeCuts:
    """Cuts between two characters that no merge of a BPE joins, and no added token holds.

    A token that spans a place is the result of a merge there: of a token that ends with the
    character before it and one that begins with the character after it. BPE on either side goes on
    as if the other were not there.
    """

    joined: frozenset[str]
    """Pairs of neighbouring characters, a space written as U+2581."""

    def first_cut(self, data: bytes, start: int, stop: int) -> int | None:
        while start < stop and data[start] & 0xC0 == 0x80:
            start += 1
        step = 256  # the first cut is mostly a few characters away
        while start < stop:
            text = data[start : min(start + step, stop)].decode("utf-8", "ignore")
            shown = text.replace(" ", "▁")
            for i, (left, right) in enumerate(pairwise(shown), 1):
                if left + right not in self.joined:
                    return start + len(text[:i].encode())
            if start + step >= stop:
                break
            start += len(text[:-1].encode())
            step = 1 << 14
        return None


def pieces(
    data: bytes, piece_bytes: int, reach_bytes: int, rule: CutRule | None
) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, stop, exact) of the pieces of `data`; whole without a rule.

    A piece ends at the first safe cut point past `piece_bytes`, or, with `exact` False, at the
    first whole character there where none is within `reach_bytes`.
    """
    start, searched = 0, 0  # no cut point between the last target and `searched`
    while rule and len(data) - start > piece_bytes:
        target = start + piece_bytes
        end = min(target + max(reach_bytes, 4), len(data))
        # Again a few bytes before `searched`: a cut point is told by what stands behind it.
        stop = rule.first_cut(data, max(target, searched - 16), end)
        exact = stop is not None
        if stop is None:
            if end == len(data):
                break
            searched, stop = end, target
            while data[stop] & 0xC0 == 0x80:
                stop += 1
        yield start, stop, exact
        start = stop
    if start < len(data):
        yield start, len(data), True


def isolated(
    data: bytes, odd: bytes, rule: CutRule, start: int, stop: int
) -> Iterator[tuple[int, int, bool]]:
    """Split data[start:stop] at safe cut points into (start, stop, whether it holds an odd byte).

    Each odd byte is in a part as small as the cut points nearby allow.
    """
    find = re.compile(b"[" + re.escape(odd) + b"]").search
    match = find(data, start, stop)
    while match:
        left, low = start, max(start, match.start() - 256)
        while (cut := rule.first_cut(data, low, match.start() + 1)) and cut <= match.start():
            left = low = cut
        right = rule.first_cut(data, match.end() - 1, stop) or stop
        if left > start:
            yield start, left, False
        yield left, right, True
        start, match = right, find(data, right, stop)
    if start < stop:
        yield start, stop, False


def chain(spec: Spec) -> tuple[str, ...] | None:
    """The steps by which a byte-level pre-tokenizer splits; None where one is unknown."""
    names = []
    for step in pre_tokenizers(spec):
        kind, behavior = step["type"], step.get("behavior")
        if kind == "Digits":
            names.append("digits" if step["individual_digits"] else "digit runs")
        elif kind == "Punctuation" and behavior in ("Isolated", "Contiguous"):
            names.append("punctuation")
        elif kind == "ByteLevel":
            names += ["gpt2"] if step.get("use_regex", True) else []
        elif kind == "Split" and "Regex" in step["pattern"]:
            regex = step["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n")
            if (behavior, step["invert"]) != ("Isolated", False) and not (
                (behavior, step["invert"]) == ("Removed", True) and regex in _TOTAL
            ):
                return None
            names.append(regex)
        else:
            return None
    return tuple(names)


def pre_tokenizer_cuts(spec: Spec, nfc: bool) -> PreTokenizerCuts | None:
    """The cut rule of a byte-level tokenizer, or None where none is proven for it."""
    names = chain(spec)
    if not names:
        return None
    pattern = _PROVEN_CHAINS.get(names) or _PROVEN_FIRST_STEPS.get(names[0])
    matched = matched_tokens(spec)
    if pattern is None or any(map(eats_surroundings, matched)):
        return None
    # Under NFC, other characters may turn into these tokens, across a cut that cannot see it.
    if nfc and any(
        added["normalized"]
        and (not added["content"].isascii() or set(added["content"]) & set("K;`"))
        for added in matched
    ):
        return None
    return PreTokenizerCuts(pattern, tuple(added["content"].encode() for added in matched))


def merge_cuts(joined: set[str], matched: Iterable[Step], split: bool) -> MergeCuts:
    """The cut rule of a BPE without pre-tokenizer, or with one that splits before each U+2581.

    Args:
        joined: of each merge, the last character of its left and the first of its right token.
        matched: the added tokens that are found in text.
        split: whether there is such a pre-tokenizer.
    """
    if split:
        joined = {pair for pair in joined if pair[1] != "▁"}
    for added in matched:
        joined |= {a + b for a, b in pairwise(added["content"].replace(" ", "▁"))}
    return MergeCuts(frozenset(joined))


def matched_tokens(spec: Spec) -> list[Step]:
    """The added tokens that are found in text: special ones are not."""
    return [added for added in spec.get("added_tokens") or () if not added["special"]]


def eats_surroundings(added: Step) -> bool:
    """Whether what stands around an added token decides about it, or goes into it."""
    return bool(added["lstrip"] or added["rstrip"] or added["single_word"])
