"""Self-contained HTML pages: one file that opens anywhere, asks for nothing, and runs no foreign code.

`render` is all there is to call. A page is a Jinja template that extends `base.html`; its figures are
drawn in the browser by Observable Plot, which lies in the page, from data that lies there too.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from longattn import __version__
from longattn.text import count, digits, duration, share, short, size

PAGES = files("longattn").joinpath("reports", "pages")
SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "figures.js")


def render(template: str, *, script: str, data: Any, **context: Any) -> str:
    """A whole page as text.

    Args:
        template: its file in longattn/reports/pages, which extends `base.html`. Every value is escaped.
        script: its script there, run after the libraries and `figures.js`.
        data: what the script reads by `pageData()`: JSON, records as objects, arrays of NumPy packed
            by `packed`.
        context: values of the template; `title` is one.
    """
    scripts = [PAGES.joinpath(name).read_text("utf-8") for name in (*SCRIPTS, script)]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    policy = [
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{value}'" for value in hashes),
        "style-src 'unsafe-inline'",  # figures set colours and sizes as attributes
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return (
        _environment()
        .get_template(template)
        .render(
            policy="; ".join(policy),
            style=Markup(PAGES.joinpath("style.css").read_text("utf-8")),
            scripts=[Markup(text) for text in scripts],
            data=_json(data),
            version=__version__,
            **context,
        )
    )


def packed(array: Any) -> dict[str, str]:
    """A NumPy array of float32, int32 or uint8 for `unpacked` of figures.js: 1.3 bytes a byte."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.name, "base64": base64.b64encode(little.tobytes()).decode()}


def _json(data: Any) -> Markup:
    """JSON in which no text can end the script element that holds it."""
    text = json.dumps(
        data, ensure_ascii=True, separators=(",", ":"), allow_nan=False, default=asdict
    )
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache  # with its compiled templates, half the time of a small run's end
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("longattn", "reports/pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        {f.__name__: f for f in (count, short, size, share, digits, duration)}
    )
    return environment
