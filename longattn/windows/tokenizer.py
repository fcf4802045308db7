"""Token ids of documents of any length: those of the `tokenizers` library, tens of times faster.

The ids come from fastokens where it agrees with `tokenizers`, on a byte-level BPE. A long document
is encoded in pieces, cut only where its pre-tokenizer is proven to put a boundary whatever stands
around, so that time and memory stay bounded and the ids are those of the whole. Text is never
interpreted: the name of a control token inside a document is plain text.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers

from longattn.models import model_folder

logger = logging.getLogger("longattn")

# Book text, Llama 3 vocabulary: pieces of 32 KB to 512 KB are equally fast, within the noise. A run
# of random letters costs 0.24 us/byte in pieces of 128 KB, 0.9 in pieces of 1 MB.
PIECE_BYTES = 128 * 1024
REACH_BYTES = 256 * 1024

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    _TEKKEN.replace(r"\p{M}]+|", r"\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1)
    .replace(r"\p{M}]*|", r"\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1)
    .replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
)
_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# The chains of pre-tokenizers for which the cut rule is proven (see `safe_cut`), and whether a
# newline is a cut point. GPT-2's is not: its `\s+(?!\S)` takes "\n\n" whole only at the very end.
_PROVEN_CHAINS: dict[tuple[str, ...], bool] = {
    (_LLAMA3,): True,
    (_QWEN2,): True,
    (_TEKKEN,): True,
    (_O200K,): True,
    _DEEPSEEK: True,
    ("gpt2",): False,
    ("digits", "gpt2"): False,
}

_ANYWHERE = (
    rb"[!-~](?=[ \t])"
    rb"|[A-Za-z](?=[\x00-&(-@\[-`{-\x7f])"
    rb"|[0-9](?=[\x00-/:-\x7f])"
    rb"|(?:[\xc3-\xdf][\x80-\xbf]|[\xe0\xe4-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3})(?=[ \t])"
    rb"|(?:[\xe5-\xe8][\x80-\xbf]{2}|\xe3(?:\x81[\x81-\xbf]|\x82[\x80-\x96\xa1-\xbf]|\x83[\x80-\xba]))"
    rb"(?=\xe3\x80[\x81\x82]|\xef\xbc\x8c)"
)
_NEWLINE = rb"|\n(?=[ \t]*(?:[!-.0-~\xc3-\xe0\xe4-\xf4]|\xe3[\x81-\x83]))"
_SAFE = re.compile(_ANYWHERE)
_SAFE_WITH_NEWLINES = re.compile(_ANYWHERE + _NEWLINE)


@dataclass(frozen=True)
class CutRule:
    """Where a document may be cut for one tokenizer."""

    newlines: bool = True
    """Whether a newline before text is a cut point."""
    unbroken: tuple[bytes, ...] = ()
    """Added tokens that still match inside text, and so must not be cut through."""


def safe_cut(data: bytes, target: int, reach: int, rule: CutRule | None = None) -> int | None:
    """First offset after `target`, at most `reach` bytes on, where cutting changes no ids.

    `data` is UTF-8, and the pre-tokenizer one of the proven chains. Cut points, and why: no
    alternative of those patterns matches across them, none looks back, and none looks ahead from
    their left side (only whitespace does, and there a newline has already decided).

    - a non-space before a blank: a blank only begins a match or follows whitespace;
    - an ASCII letter before an ASCII non-letter but `'` (GPT-4o takes `'s` with the word), an ASCII
      digit before an ASCII non-digit, a Chinese or Japanese letter before `、` `。` `，`: runs of
      letters and of digits end there in every alternative;
    - a newline before blanks (or none) and a non-space but `/`: the last newline of a run of
      whitespace ends its match, `\\s*[\\r\\n]+` or the `[\\r\\n/]*` after punctuation.

    No character after a cut composes with one before it, so they hold under NFC too. Characters
    whose class differs between Unicode versions, and multi-byte spaces, are not used.
    """
    rule = rule or CutRule()
    pattern = _SAFE_WITH_NEWLINES if rule.newlines else _SAFE
    for match in pattern.finditer(data, target, target + reach):
        cut = match.end()
        if not any(
            data.find(token, max(0, cut - len(token) + 1), cut + len(token) - 1) >= 0
            for token in rule.unbroken
        ):
            return cut
    return None


def pieces(
    data: bytes, piece_bytes: int, reach_bytes: int, rule: CutRule | None
) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, stop, exact) of the pieces of `data`; whole without a rule.

    `exact` is False where no safe cut point was in reach and the piece ends at the first whole
    character past `piece_bytes`.
    """
    start, barren = 0, 0  # up to `barren` there is known to be no cut point: search it only once
    while rule and len(data) - start > piece_bytes:
        target = start + piece_bytes
        stop = safe_cut(data, target, reach_bytes, rule) if target >= barren else None
        exact = stop is not None
        if stop is None:
            if target + reach_bytes >= len(data) and target >= barren:
                break
            barren = max(barren, target + reach_bytes)
            stop = target
            while stop < min(target + 3, len(data)) and data[stop] & 0xC0 == 0x80:
                stop += 1
        yield start, stop, exact
        start = stop
    if start < len(data):
        yield start, len(data), True


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """The ids of one document, and the text of any range of them."""

    ids: np.ndarray
    """int32 (n,): no BOS, no other special token added."""
    exact: bool
    """False where a forced cut may have changed ids."""
    data: bytes = field(repr=False)
    """UTF-8 of the document, as its tokenizer normalizes it where that is NFC."""
    begins: np.ndarray = field(repr=False)
    """int64 (n + 1,): the byte of `data` where the text of a range that starts at a token begins."""
    ends: np.ndarray = field(repr=False)
    """int64 (n + 1,): the byte of `data` where the text of a range that stops at a token ends."""

    def text(self, start: int, stop: int) -> str:
        """The exact text of tokens [start, stop), a character split at either end left out.

        Raises ValueError unless 0 <= start <= stop <= n.
        """
        if not 0 <= start <= stop <= len(self.ids):
            raise ValueError(
                f"token range [{start}, {stop}) is not inside a document of {len(self.ids)} tokens"
            )
        # The document is valid UTF-8, so that what "ignore" drops is the split characters.
        return self.data[self.begins[start] : self.ends[stop]].decode("utf-8", "ignore")


class DocumentTokenizer:
    """A tokenizer.json for whole documents. It pickles as the contents of its file.

    Attributes:
        name: the folder of the file.
        vocab_size: the largest id plus one, added tokens included.
        bos_token_id: the id that the post-processor puts in front of a text, or None. (With a
            tokenizer.json, transformers 5 reads nothing else: `add_bos_token` of
            tokenizer_config.json changes nothing.)
        fingerprint: hex SHA-256 of what decides the ids.
        backend: "fastokens" or "tokenizers".
    """

    def __init__(self, contents: bytes, name: str, piece_bytes: int = PIECE_BYTES) -> None:
        """`contents` is a tokenizer.json. Raises ValueError where it cannot be loaded."""
        self.name = name
        self._contents = contents
        self._piece_bytes = piece_bytes
        try:
            spec = orjson.loads(contents)
            # Stored truncation and padding would lose or add ids, dropout would draw them.
            spec |= {"truncation": None, "padding": None}
            if "dropout" in spec["model"]:
                spec["model"]["dropout"] = None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{name}: not a tokenizer.json: {error!r}") from error
        with _rust_errors(f"{name}: cannot load tokenizer.json"):
            reference = tokenizers.Tokenizer.from_str(orjson.dumps(spec).decode())
            reference.encode_special_tokens = True
            sample = reference.encode("a", add_special_tokens=True)
        special = sample.special_tokens_mask[:1] == [1]
        self.bos_token_id: int | None = sample.ids[0] if special else None
        self.vocab_size = 1 + max(reference.get_vocab(with_added_tokens=True).values())
        self._rule = _cut_rule(spec)
        deciding = [spec.get(k) for k in ("normalizer", "pre_tokenizer", "added_tokens", "model")]
        cuts = [piece_bytes, REACH_BYTES] if self._rule else None
        self.fingerprint = hashlib.sha256(
            orjson.dumps([*deciding, cuts], option=orjson.OPT_SORT_KEYS)
        ).hexdigest()

        self._nfc = _normalizers(spec) == [{"type": "NFC"}]
        self._byte_level = _is_byte_level(spec)
        self._fast: Any = None
        if self._byte_level:
            self._set_byte_table(spec)
            # fastokens only sees text that is NFC already: its tables are of a newer Unicode.
            self._fast = _load_fast(name, spec | {"normalizer": None, "post_processor": None})
        else:
            logger.warning("tokenizer %s: slow `tokenizers` is used: no byte-level BPE", name)
        if self._fast is not None and not self._agrees(reference, spec):
            self._fast = None
        self.backend = "tokenizers" if self._fast is None else "fastokens"
        # 25 MB that most actors never need: only for text that is not NFC, and without fastokens.
        self._reference: Any = reference if self._fast is None or self._nfc else None

    @classmethod
    def from_file(cls, tokenizer_json: str | Path) -> DocumentTokenizer:
        """Read a tokenizer.json. Raises OSError, and ValueError where it cannot be loaded."""
        path = Path(tokenizer_json)
        return cls(path.read_bytes(), path.resolve().parent.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return DocumentTokenizer, (self._contents, self.name, self._piece_bytes)

    def encode(self, text: str | bytes) -> TokenizedDocument:
        """Encode one document; no special token is added, and none in the text is interpreted.

        (A Unigram model whose vocabulary lists control tokens as pieces finds them in text all the
        same, as `tokenizers` does.)

        Raises UnicodeEncodeError for a lone surrogate, UnicodeDecodeError for bytes that are not
        UTF-8, ValueError with the length of the document for any failure of the tokenizer.
        """
        data = text.encode() if isinstance(text, str) else bytes(text)
        try:
            return self._encode_pieces(data) if self._byte_level else self._encode_offsets(data)
        except UnicodeDecodeError:
            data.decode()  # raises with the offset in the document, not in the piece
            raise

    def decode(self, ids: Any) -> bytes:
        """The bytes of `ids` (any ints): exact for byte-level BPE, else as `tokenizers` decodes.

        Raises ValueError for an id that has no token.
        """
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise ValueError(
                f"ids from {ids.min()} to {ids.max()}: {self.name} has 0 to {self.vocab_size - 1}"
            )
        if not self._byte_level:
            return self._reference.decode(ids.tolist(), skip_special_tokens=False).encode()
        if not self._lengths[ids].all():
            raise ValueError(f"id {ids[self._lengths[ids] == 0][0]} has no token in {self.name}")
        step = 1 << 16  # bounds the index arrays below: 8 bytes a byte of text
        return b"".join(self._bytes_of(ids[i : i + step]) for i in range(0, len(ids), step))

    def min_bytes_for(self, n_tokens: int) -> int:
        """No text of fewer UTF-8 bytes gives `n_tokens`; 0 where that is not provable."""
        if not self._byte_level:
            return 0
        # NFC grows UTF-8 at most threefold: Unicode Standard Annex 15, section 9.
        return -(-n_tokens // 3) if self._nfc else n_tokens

    def _encode_pieces(self, data: bytes) -> TokenizedDocument:
        ids = [np.zeros(0, np.int32)]
        texts: list[bytes] = []
        exact = True
        for start, stop, safe in pieces(data, self._piece_bytes, REACH_BYTES, self._rule):
            exact &= safe
            piece = data[start:stop].decode()
            normal = not self._nfc or unicodedata.is_normalized("NFC", piece)
            with _rust_errors(f"cannot tokenize a document of {len(data)} bytes"):
                fast = self._fast is not None and normal
                ids.append(
                    _fast_ids(self._fast, piece) if fast else _slow_ids(self._reference, piece)
                )
            if self._nfc:
                texts.append(data[start:stop] if normal else self.decode(ids[-1]))
        joined = np.concatenate(ids)
        data = b"".join(texts) if self._nfc else data
        offsets = np.zeros(len(joined) + 1, np.int64)
        np.cumsum(self._lengths[joined], out=offsets[1:])
        if offsets[-1] != len(data):
            raise ValueError(f"document of {len(data)} bytes: its ids hold {offsets[-1]} bytes")
        return TokenizedDocument(joined, exact, data, offsets, offsets)

    def _encode_offsets(self, data: bytes) -> TokenizedDocument:
        text = data.decode()
        with _rust_errors(f"cannot tokenize a document of {len(data)} bytes"):
            encoding = self._reference.encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        starts = np.append(spans[:, 0], len(text))
        starts[0] = 0
        # Tokens of one character share its span: a range that starts inside leaves it out. What
        # lies between two spans (dropped by a normalizer) goes with the token before.
        begins = np.maximum(starts, np.concatenate([[0], spans[:, 1]]))
        begins[-1] = len(text)
        is_start = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
        byte_of_character = np.append(np.flatnonzero(is_start), len(data))
        ids = np.array(encoding.ids, np.int32)
        return TokenizedDocument(
            ids, True, data, byte_of_character[begins], byte_of_character[starts]
        )

    def _set_byte_table(self, spec: dict[str, Any]) -> None:
        byte_of = _byte_alphabet()
        table = [b""] * self.vocab_size
        for token, index in spec["model"]["vocab"].items():
            try:
                table[index] = token.translate(byte_of).encode("latin-1")
            except UnicodeEncodeError:  # no text gives it: written without the byte alphabet
                table[index] = token.encode()
        for added in spec.get("added_tokens") or ():
            table[added["id"]] = added["content"].encode()
        self._lengths = np.array([len(token) for token in table], np.int32)
        self._starts = np.cumsum(self._lengths, dtype=np.int64) - self._lengths
        self._table = np.frombuffer(b"".join(table), np.uint8)

    def _bytes_of(self, ids: np.ndarray) -> bytes:
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths, dtype=np.int64)
        shift = np.repeat(self._starts[ids] - (ends - lengths), lengths)
        return self._table[shift + np.arange(len(shift))].tobytes()

    def _agrees(self, reference: tokenizers.Tokenizer, spec: dict[str, Any]) -> bool:
        """Whether fastokens gives the ids of `tokenizers` on the probe texts."""
        names = " ".join(added["content"] for added in (spec.get("added_tokens") or ())[:64])
        # The last two begin alike: fastokens 0.3.2 kept splits of the text before, wrong at its end.
        texts = [_PROBE + names, *(_PROBE * 12 + " " * 700 + end for end in ("x" + _PROBE, "  \n"))]
        try:
            with _rust_errors("fastokens fails"):
                for text in (unicodedata.normalize("NFC", text) for text in texts):
                    if not np.array_equal(_fast_ids(self._fast, text), _slow_ids(reference, text)):
                        raise ValueError("ids differ from `tokenizers`")
        except ValueError as error:
            logger.warning("tokenizer %s: slow `tokenizers` is used: %s", self.name, error)
            return False
        return True


_PROBE = (
    "In 1984, they'd said: \"IT'S 12345.678%!\"\r\n\r\n\tdef f(x_1):\n        return x**2  # naïve café\n"
    " \n \t\n\n  ...!!!\n\n///\n/ \u00a0\u3000\u2028 你好，世界。こんにちは 안녕 Привет สวัสดี नमस्ते عربي "
    "👩‍👧🏽 e\u0327\u0301 ǅ ½ ٣ camelCaseXML's 'LL ſ İ \x00\x1c\x7f\ufeff\u200b\U000e0001 "
) + " " * 40


def _fast_ids(fast: Any, text: str) -> np.ndarray:
    # One text a call runs on the calling thread; a batch of several is spread over all cores.
    return np.frombuffer(fast.encode_batch_flat([text], split_special_tokens=True)[0], np.int32)


def _slow_ids(reference: Any, text: str) -> np.ndarray:
    return np.array(reference.encode(text, add_special_tokens=False).ids, np.int32)


@contextmanager
def _rust_errors(what: str) -> Iterator[None]:
    """Turn any failure of a Rust library into a ValueError that says `what`.

    A panic arrives as pyo3's PanicException, a BaseException that `except Exception` lets pass.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {error}") from error


def _load_fast(name: str, spec: dict[str, Any]) -> Any:
    # A worker owns one core. fastokens reads this once, when it first makes its pool of threads.
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
    try:
        with _rust_errors("fastokens cannot load it"):
            import fastokens

            return fastokens.Tokenizer.from_json_str(orjson.dumps(spec).decode())
    except ValueError as error:
        logger.warning("tokenizer %s: slow `tokenizers` is used: %s", name, error)
        return None


def _normalizers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    normalizer = spec.get("normalizer")
    if not normalizer:
        return []
    return normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]


def _pre_tokenizers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    step = spec.get("pre_tokenizer") or {"type": None}
    return step["pretokenizers"] if step["type"] == "Sequence" else [step]


def _is_byte_level(spec: dict[str, Any]) -> bool:
    """Whether the bytes of a document are, in order, the bytes of its tokens."""
    model, last = spec["model"], _pre_tokenizers(spec)[-1]
    return (
        model["type"] == "BPE"
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and last["type"] == "ByteLevel"
        and not last["add_prefix_space"]
        and _normalizers(spec) in ([], [{"type": "NFC"}])
        and all(chr(char) in model["vocab"] for char in _byte_alphabet())
        and all(
            step["type"] == "Digits" or (step["type"] == "Split" and step["behavior"] != "Removed")
            for step in _pre_tokenizers(spec)[:-1]
        )
    )


def _cut_rule(spec: dict[str, Any]) -> CutRule | None:
    """The cut rule of a tokenizer, or None where none is proven for it."""
    if not _is_byte_level(spec):
        return None
    chain: list[str] = []
    *splits, last = _pre_tokenizers(spec)
    for step in splits:
        if step["type"] == "Digits":
            chain.append("digits")
        elif step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            chain.append(step["pattern"]["Regex"])
        else:
            return None
    if last.get("use_regex", True):
        chain.append("gpt2")
    matched = [added for added in spec.get("added_tokens") or () if not added["special"]]
    if tuple(chain) not in _PROVEN_CHAINS or any(
        added["lstrip"] or added["rstrip"] or added["single_word"] for added in matched
    ):
        return None
    # Under NFC, other characters may turn into these tokens, across a cut: `safe_cut` cannot see it.
    if _normalizers(spec) and any(
        added["normalized"]
        and (not added["content"].isascii() or set(added["content"]) & set("K;`"))
        for added in matched
    ):
        return None
    unbroken = tuple(added["content"].encode() for added in matched)
    return CutRule(newlines=_PROVEN_CHAINS[tuple(chain)], unbroken=unbroken)


def _byte_alphabet() -> dict[int, int]:
    """Code point -> byte of the alphabet in which byte-level BPE writes bytes (GPT-2's)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + i: b for i, b in enumerate(others)}


def load_tokenizer(model: str) -> DocumentTokenizer:
    """The tokenizer of a scoring model; raises ValueError where it has no tokenizer.json."""
    file = model_folder(model) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"model {model!r}: {file.parent} has no tokenizer.json")
    return DocumentTokenizer.from_file(file)
