"""Text for people: numbers, sizes, durations, and URLs without their secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

_USER = r"([A-Za-z][A-Za-z0-9+.-]*://)"
_S3 = r"(s3a?://)(?!arn:)"
# Control characters, line ends, and marks that turn the direction of writing: none of them may reach
# a terminal from a file's name.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# The parameter that is a signature -> those that come with it. X-Amz-* and X-Goog-* say it themselves.
_SIGNING = {
    "signature": ("awsaccesskeyid", "googleaccessid", "key-pair-id", "policy", "expires"),
    "sig": (
        *("sv", "ss", "srt", "sp", "se", "st", "spr", "sip", "sr", "si", "saoid", "suoid", "scid"),
        *("skoid", "sktid", "skt", "ske", "sks", "skv"),
    ),
}


def printable(text: str) -> str:
    """A text in one line, with `\\n`, `\\x1b` and the like for its control characters."""
    if text.isprintable():  # nearly every name, ten times as fast
        return text
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def without_secrets(text: str) -> str:
    """A printable text with `https://***@host/x?***` for each `https://user:secret@host/x?key=y`.

    A secret may hold a `/`, as those of S3 do. Of other schemes a `?` is part of the path, and stays.
    """
    text = printable(text)
    if "://" not in text:
        return text
    text = re.sub(_S3 + r"[^\s/:@]*:\S*@", r"\1***@", text)  # a bucket's name has no colon
    text = re.sub(_S3 + r"[^\s/:@]*:[^\s@]+", r"\1***", text)
    text = re.sub(_USER + r"[^\s/?#]*@", r"\1***@", text)
    text = re.sub(_USER + r"(?!arn:)[^\s/:@\[]+:(?!\d*(?:[/?#\s]|$))\S*@", r"\1***@", text)
    return re.sub(r"(https?://[^\s?#'\")]*)\?[^\s#'\")]+", r"\1?***", text)


def without_signature(url: str) -> str:
    """An `https://` URL without what a store signed it with, the same for one that is signed anew.

    Known are S3, Google, Azure and CloudFront; other parameters of a query, as `versionId`, stay.
    """
    before, mark, query = url.partition("?")
    if not query or not before.startswith(("http://", "https://")):
        return url
    query, hash_, fragment = query.partition("#")
    names = {part.partition("=")[0].lower() for part in query.split("&")}
    signing = {
        name for sign, others in _SIGNING.items() if sign in names for name in (sign, *others)
    }
    kept = [
        part
        for part in query.split("&")
        if (name := part.partition("=")[0].lower()) not in signing
        and not name.startswith(("x-amz-", "x-goog-"))
    ]
    return before + (mark + "&".join(kept) if kept else "") + hash_ + fragment


def lines_without_secrets(text: str) -> str:
    """The same of a text of several lines, which stay lines."""
    return "\n".join(map(without_secrets, text.splitlines()))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean x?`, of what there is the one that is most like a name; empty where none is."""
    by_folded = {one.lower(): one for one in names}
    close = get_close_matches(name.lower(), by_folded, n=1)
    return f"; did you mean {by_folded[close[0]]}?" if close else ""


def count(value: float | None) -> str:
    """`1234567` -> `1,234,567`; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def counted(number: int, one: str, several: str | None = None) -> str:
    """`1 window`, `2 windows`; `several` where it is not `one` and an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def counted_are(number: int, one: str) -> str:
    """`1 window is`, `2 windows are`."""
    return f"{counted(number, one)} {'is' if number == 1 else 'are'}"


def short(value: float | None) -> str:
    """`36123456789` -> `36.1 B`; a dash for None."""
    if value is None:
        return "–"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes, in powers of 1000: `13.8 GB`; a dash for None."""
    if value is None:
        return "–"
    text = short(value)
    return text.replace(" B", " G").replace("K", "k") + ("B" if " " in text else " B")


def share(part: float | None, whole: float | None = 1) -> str:
    """`12.3 %` of a whole; a dash where there is none."""
    return "–" if part is None or not whole else f"{100 * part / whole:.3g} %"


def digits(value: float | None) -> str:
    """Four significant digits; a dash for None."""
    return "–" if value is None else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """`8 s`, `12 min`, `3 h 20 min`, `4 d 2 h`; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.3g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
