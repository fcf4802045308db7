"""Ids of documents and windows: hashes of their text, the same on any machine."""

from __future__ import annotations

from hashlib import blake2b

from longattn.config import Sample


def hash_key(name: str) -> bytes:
    """16 bytes for a data_id, or for a document of a category (`category-document`)."""
    return blake2b(name.encode(), digest_size=16).digest()


def document_id(text: bytes) -> str:
    """Hex of a 128-bit BLAKE2b of the UTF-8 text."""
    return blake2b(text, digest_size=16).hexdigest()


def is_sampled(data_id: str, sample: Sample | None) -> bool:
    """Whether a window is in the sample: a hash of its id and the seed, so order plays no part."""
    if sample is None:
        return True
    digest = blake2b(f"{sample.seed}:{data_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < sample.fraction * 2**64
