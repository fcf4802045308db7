"""Token ids of documents of any length: those of the `tokenizers` library, tens of times faster.

The ids come from fastokens where it agrees with `tokenizers`: on byte-level BPE (GPT-2's kind) and
on sentencepiece-type BPE (Llama 2's). A long document is encoded in pieces, cut only where that is
proven to change no id (`cut_points`), so that time and memory stay bounded. Text is never
interpreted: the name of a control token inside a document is plain text.
"""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers

from longattn.models import is_url, model_folder
from longattn.text import without_secrets
from longattn.windows.byte_level_bpe import (
    TokenBytes,
    for_fastokens,
    is_byte_level,
    missing_bytes,
    odd_bytes,
)
from longattn.windows.cut_points import (
    FORCED_CUTS,
    PIECE_BYTES,
    REACH_BYTES,
    CutRule,
    isolated,
    pieces,
    pre_tokenizer_cuts,
)
from longattn.windows.growth import USUAL, require_usual_growth, worst_growth
from longattn.windows.sentencepiece_bpe import SentencePieceBPE
from longattn.windows.spec import Spec, normalizers

logger = logging.getLogger("longattn")

# White space up to Unicode 6.2: to fastokens in some chains, not to tokenizers.
_DISPUTED = "\u180e"


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
        slow_because: why the backend is "tokenizers", or None.
    """

    def __init__(self, contents: bytes, name: str, piece_bytes: int = PIECE_BYTES) -> None:
        """`contents` is a tokenizer.json. Raises ValueError where it cannot be loaded."""
        self.name = name
        self._contents = contents
        self._piece_bytes = piece_bytes
        spec = _read_spec(name, contents)
        try:
            self._growth = worst_growth(spec)
        except ValueError as error:
            raise ValueError(f"{name}: tokenizer.json is refused: {error}") from None
        reference = _load_reference(name, spec)
        sample = reference.encode("a", add_special_tokens=True)
        special = sample.special_tokens_mask[:1] == [1]
        self.bos_token_id: int | None = sample.ids[0] if special else None
        self.vocab_size = 1 + max(reference.get_vocab(with_added_tokens=True).values())

        self._bytes = TokenBytes(spec, self.vocab_size) if is_byte_level(spec) else None
        self._sentencepiece = SentencePieceBPE.read(spec, self.vocab_size)
        self._rule: CutRule | None = None
        self._nfc, self._missing, self._odd = False, b"", b""
        self._fast: Any = None
        self.slow_because: str | None = None
        if self._bytes is not None:
            self._nfc = normalizers(spec) == [{"type": "NFC"}]
            self._missing, self._odd = missing_bytes(spec), odd_bytes(spec)
            self._rule = pre_tokenizer_cuts(spec, self._nfc)
            self._load_fast(for_fastokens(spec), reference, spec)
        elif self._sentencepiece is not None:
            self._rule = self._sentencepiece.cuts
            self._load_fast(self._sentencepiece.for_fastokens(spec), reference, spec)
            if self._fast is None:
                self._sentencepiece = self._rule = None
        else:
            self.slow_because = "neither a byte-level nor a sentencepiece-type BPE that is known"
        deciding = [spec.get(k) for k in ("normalizer", "pre_tokenizer", "added_tokens", "model")]
        cuts = [piece_bytes, REACH_BYTES, FORCED_CUTS] if self._rule else None
        self.fingerprint = hashlib.sha256(
            orjson.dumps([*deciding, cuts], option=orjson.OPT_SORT_KEYS)
        ).hexdigest()
        self.backend = "tokenizers" if self._fast is None else "fastokens"
        # 25 MB and more that most actors never need: loaded again for the first text that does.
        self._reference: Any = reference if self._fast is None else None

    @classmethod
    def from_file(cls, tokenizer_json: str | Path) -> DocumentTokenizer:
        """Read a tokenizer.json. Raises OSError, and ValueError where it cannot be loaded."""
        path = Path(tokenizer_json)
        return cls(path.read_bytes(), path.resolve().parent.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return DocumentTokenizer, (self._contents, self.name, self._piece_bytes)

    @property
    def slow_warning(self) -> str | None:
        """One line where the backend is "tokenizers": what that means, and why it is."""
        if self.slow_because is None:
            return None
        return (
            f"tokenizer {self.name}: slow `tokenizers` is used, below 1 M tokens/s a core: "
            f"{self.slow_because}"
        )

    def warn_if_slow(self) -> None:
        """Log `slow_warning`: for the driver of a run, not for each worker."""
        if self.slow_warning:
            logger.warning("%s", self.slow_warning)

    def encode(self, text: str | bytes) -> TokenizedDocument:
        """Encode one document; no special token is added, and none in the text is interpreted.

        (A Unigram model whose vocabulary lists control tokens as pieces finds them in text all the
        same, as `tokenizers` does.)

        Raises UnicodeEncodeError for a lone surrogate, UnicodeDecodeError for bytes that are not
        UTF-8, ValueError with the length of the document for any failure of the tokenizer.
        """
        data = text.encode() if isinstance(text, str) else bytes(text)
        try:
            if self._bytes is not None:
                return self._encode_byte_level(data, self._bytes)
            known = self._sentencepiece
            if known is None or (known.whole and known.whole.search(data)):
                return self._encode_offsets(data)
            return self._encode_sentencepiece(data, known)
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
        if self._bytes is None:
            decoded: str = self._slow.decode(ids.tolist(), skip_special_tokens=False)
            return decoded.encode()
        lengths = self._bytes.lengths[ids]
        if not lengths.all():
            raise ValueError(f"id {ids[lengths == 0][0]} has no token in {self.name}")
        return self._bytes.decode(ids)

    def min_bytes_for(self, n_tokens: int) -> int:
        """No text of fewer UTF-8 bytes gives `n_tokens`; 0 where that is not provable."""
        if self._sentencepiece is not None:
            return self._sentencepiece.min_bytes_for(n_tokens)
        if self._bytes is None:
            return 0
        # NFC grows UTF-8 at most threefold: Unicode Standard Annex 15, section 9.
        return -(-n_tokens // 3) if self._nfc else n_tokens

    def _encode_byte_level(self, data: bytes, tokens: TokenBytes) -> TokenizedDocument:
        ids = [np.zeros(0, np.int32)]
        texts: list[bytes] = []
        exact = True
        for start, stop, safe in pieces(data, self._piece_bytes, REACH_BYTES, self._rule):
            exact &= safe
            for begin, end, odd in self._parts(data, start, stop):
                part = data[begin:end].decode()
                normal = not self._nfc or unicodedata.is_normalized("NFC", part)
                with _rust_errors(f"cannot tokenize a document of {len(data)} bytes"):
                    fast = self._fast is not None and normal and not odd and _DISPUTED not in part
                    ids.append(_fast_ids(self._fast, part) if fast else _slow_ids(self._slow, part))
                if self._nfc:
                    texts.append(data[begin:end] if normal else tokens.decode(ids[-1]))
        joined = np.concatenate(ids)
        data = b"".join(texts) if self._nfc else data
        offsets = np.zeros(len(joined) + 1, np.int64)
        np.cumsum(tokens.lengths[joined], out=offsets[1:])
        held = len(data.translate(None, self._missing)) if self._missing else len(data)
        _check_bytes(data, offsets[-1], held)
        if held < len(data):  # a byte without a token goes with the token before it
            lacks = np.isin(np.arange(256), list(self._missing))
            kept = np.flatnonzero(~lacks[np.frombuffer(data, np.uint8)])
            offsets = np.append(kept, len(data))[offsets]
            offsets[0] = 0
        return TokenizedDocument(joined, exact, data, offsets, offsets)

    def _parts(self, data: bytes, start: int, stop: int) -> Iterable[tuple[int, int, bool]]:
        """Split a piece so that what only `tokenizers` can encode is alone: `isolated`."""
        if self._fast is None or not self._odd:
            return [(start, stop, False)]
        piece = data[start:stop]
        if len(piece.translate(None, self._odd)) == len(piece):
            return [(start, stop, False)]
        if self._rule is None:
            return [(start, stop, True)]
        return isolated(data, self._odd, self._rule, start, stop)

    def _encode_sentencepiece(self, data: bytes, known: SentencePieceBPE) -> TokenizedDocument:
        ids = [np.zeros(0, np.int32)]
        exact = True
        for start, stop, safe in pieces(data, self._piece_bytes, REACH_BYTES, self._rule):
            exact &= safe
            piece = data[start:stop].decode()
            with _rust_errors(f"cannot tokenize a document of {len(data)} bytes"):
                ids.append(
                    _fast_ids(self._fast, piece if start else known.prefix_of(piece) + piece)
                )
        joined = np.concatenate(ids)
        offsets = known.offsets(data, joined)
        _check_bytes(data, offsets[-1], len(data))
        return TokenizedDocument(joined, exact, data, offsets, offsets)

    def _encode_offsets(self, data: bytes) -> TokenizedDocument:
        text = data.decode()
        with _rust_errors(f"cannot tokenize a document of {len(data)} bytes"):
            if self._growth > USUAL:
                require_usual_growth(self._slow.normalizer, text)
            encoding = self._slow.encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        starts = np.append(spans[:, 0], len(text))
        starts[0] = 0
        # Tokens of one character share its span: a range that starts inside leaves it out. What
        # lies between two spans (dropped by a normalizer) goes with the token before.
        begins = np.maximum(starts, np.concatenate([[0], spans[:, 1]]))
        is_start = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
        byte_of_character = np.append(np.flatnonzero(is_start), len(data))
        ids = np.array(encoding.ids, np.int32)
        return TokenizedDocument(
            ids, True, data, byte_of_character[begins], byte_of_character[starts]
        )

    @property
    def _slow(self) -> Any:
        if self._reference is None:
            self._reference = _load_reference(self.name, _read_spec(self.name, self._contents))
        return self._reference

    def _load_fast(self, spec: Spec, reference: tokenizers.Tokenizer, original: Spec) -> None:
        """Load fastokens from `spec`; leave it out where its ids on the probe texts differ."""
        # A worker owns one core. fastokens reads this once, when it first makes its threads.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        try:
            with _rust_errors("fastokens cannot load it"):
                import fastokens

                fast = fastokens.Tokenizer.from_json_str(orjson.dumps(spec).decode())
            with _rust_errors("fastokens fails"):
                for text in self._probes(original):
                    known = self._sentencepiece
                    shown = known.prefix_of(text) + text if known else text
                    if not np.array_equal(_fast_ids(fast, shown), _slow_ids(reference, text)):
                        raise ValueError("ids differ from `tokenizers`")
        except ValueError as error:
            self.slow_because = str(error)
        else:
            self._fast = fast

    def _probes(self, spec: Spec) -> list[str]:
        names = " ".join(added["content"] for added in (spec.get("added_tokens") or ())[:1024])
        # The last two begin alike: fastokens 0.3.2 kept splits of the text before, wrong at its end.
        texts = [_PROBE + names, *(_PROBE * 12 + " " * 700 + end for end in ("x" + _PROBE, "  \n"))]
        whole = self._sentencepiece and self._sentencepiece.whole
        for i, text in enumerate(texts):
            # Only what fastokens will be given.
            text = unicodedata.normalize("NFC", text) if self._bytes else text
            text = "".join(char for char in text if not {*char.encode()} & {*self._odd})
            texts[i] = whole.sub(b"", text.encode()).decode() if whole else text
        return texts


_PROBE = (
    "In 1984, they'd said: \"IT'S 12345.678%!\"\r\n\r\n\tdef f(x_1):\n        return x**2  # naïve café\n"
    " \n \t\n\n  ...!!!\n\n///\n/ \u00a0\u3000\u2028 你好，世界。こんにちは 안녕 Привет สวัสดี नमस्ते عربي "
    "👩‍👧🏽 e\u0327\u0301 ǅ ½ ٣ camelCaseXML's 'LL ſ İ \x00\x1c\x7f\ufeff\u200b\U000e0001 ▁ ▁▁a▁b "
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


def _read_spec(name: str, contents: bytes) -> Spec:
    """A tokenizer.json less what would lose, add or draw ids: truncation, padding, dropout."""
    try:
        spec: Spec = orjson.loads(contents)
        spec |= {"truncation": None, "padding": None}
        if "dropout" in spec["model"]:
            spec["model"]["dropout"] = None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name}: not a tokenizer.json: {error!r}") from error
    return spec


def _load_reference(name: str, spec: Spec) -> tokenizers.Tokenizer:
    with _rust_errors(f"{name}: cannot load tokenizer.json"):
        reference = tokenizers.Tokenizer.from_str(orjson.dumps(spec).decode())
    reference.encode_special_tokens = True
    return reference


def _check_bytes(data: bytes, got: int, expected: int) -> None:
    if got != expected:
        raise ValueError(f"document of {len(data)} bytes: its ids hold {got} bytes, not {expected}")


def load_tokenizer(model: str) -> DocumentTokenizer:
    """The tokenizer of a scoring model; raises ValueError where it has no tokenizer.json."""
    file = model_folder(model) / "tokenizer.json"
    if not file.is_file():
        where = "it" if is_url(model) else file.parent
        raise ValueError(f"model {without_secrets(model)!r}: {where} has no tokenizer.json")
    status = file.stat()
    return _load_file(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)  # a driver asks for it several times, and Gemma's takes 4 s to load
def _load_file(file: Path, _mtime_ns: int, _size: int) -> DocumentTokenizer:
    return DocumentTokenizer.from_file(file)
