"""Self-contained HTML pages: one file that opens anywhere, asks for nothing, and runs no foreign code.

`render` is all there is to call. A page is a Jinja template that extends `base.html`; its figures are
drawn in the browser by Observable Plot, which lies in the page, from data that lies there too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from longattn import __version__

SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "figures.js")


def render(template: str, *, script: str, data: Any, **context: Any) -> str:
    """A whole page as text.

    Args:
        template: its file in longattn/pages, which extends `base.html`. Every value is escaped.
        script: its script there, run after the libraries and `figures.js`.
        data: what the script reads by `pageData()`: JSON, arrays of NumPy packed by `packed`.
        context: values of the template; `title` is one.
    """
    scripts = [files(__name__).joinpath(name).read_text("utf-8") for name in (*SCRIPTS, script)]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = [
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{value}'" for value in hashes),
        "style-src 'unsafe-inline'",  # figures set colours and sizes as attributes
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return _environment().get_template(template).render(
        policy="; ".join(policy),
        style=Markup(files(__name__).joinpath("style.css").read_text("utf-8")),
        scripts=[Markup(text) for text in scripts],
        data=_json(data),
        version=__version__,
        **context,
    )  # fmt: skip


def packed(array: Any) -> dict[str, str]:
    """A NumPy array of float32, int32 or uint8 for `unpacked` of figures.js: 1.3 bytes a byte."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}


def _json(data: Any) -> Markup:
    """JSON in which no text can end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def count(value: float | None) -> str:
    """`1234567` -> `1,234,567`; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


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


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("longattn", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {f.__name__: f for f in (count, short, size, share, digits, duration)}
    )
    return environment
