"""The last line of a page: which records it tells of, and a checksum of the page itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b

_SEAL = re.compile(rb"<!-- longattn((?: [A-Za-z0-9_./-]+=[0-9a-f]*)*) page=([0-9a-f]{32}) -->\n?")


def with_seal(page: str, of: Mapping[str, str]) -> str:
    """A page with its seal.

    Args:
        of: the checksum of each record it tells of, by the record's name.
    """
    body = page.rstrip("\n") + "\n"
    told = "".join(f" {name}={checksum}" for name, checksum in sorted(of.items()))
    return f"{body}<!-- longattn{told} page={_digest(body.encode(), told.encode())} -->\n"


def read_seal(page: bytes) -> dict[str, str]:
    """What records a page tells of, by name; raises ValueError where the page is not as it was written."""
    body, newline, last = page.rstrip(b"\n").rpartition(b"\n")
    match = _SEAL.fullmatch(last)
    if match is None:
        raise ValueError("damaged: it does not say what it tells of")
    if match[2].decode() != _digest(body + newline, match[1]):
        raise ValueError("damaged: it is not what its checksum was taken of")
    pairs = (pair.partition("=")[::2] for pair in match[1].decode().split())
    return dict(pairs)


def _digest(body: bytes, told: bytes) -> str:
    return blake2b(told + body, digest_size=16).hexdigest()
