"""A finished output with something broken in it, and what commands then say."""

import json
import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from typer.testing import CliRunner

from longattn.cli import app
from longattn.config import Config
from longattn.storage.digests import sealed
from longattn.storage.tables import METADATA_KEY

RECORDS = ("run", "samples", "columns", "hold", "rates", "summary", "selection")
COMMANDS = ("run", "select", "report", "verify")
# No JSON; JSON that is no object, or none of ours; and with a good checksum other values than ours.
CONTENTS = [
    b"", b"{", b"\xff", b"null", b"[]", b"3", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 50_000,
    json.dumps(sealed({"book": 3, "code": None})).encode(),
    json.dumps(sealed({"format": 2, "categories": [], "samples": 7, "select": {}})).encode(),
    json.dumps(sealed({"book": {"fraction": "x", "seed": -1}})).encode(),
    json.dumps({"token": "../../x", "takeovers": "x"}).encode(),
]  # fmt: skip
GONE: Any = object()
VALUES = (None, -1, 2**70, 1.5, "x", "\x1b[31m\nx", [], {}, [[]], float("nan"), GONE)


@contextmanager
def quiet_log() -> Iterator[None]:
    """What commands do to the log in the block is put back after it."""
    root, ours = logging.getLogger(), logging.getLogger("longattn")
    before, level = list(root.handlers), ours.level
    try:
        yield
    finally:
        root.handlers[:] = before
        ours.setLevel(level)


def complaints(settings: Config, output: Path, commands: tuple[str, ...], what: object) -> None:
    """Fails where a command on the output ends in a traceback, or with a status and not a line."""
    path = output.parent / "c.yaml"
    path.write_text(settings.model_copy(update={"output": str(output)}).to_yaml())
    for command in commands:
        arguments = [command, str(path), *(["--executor", "local"] if command == "run" else [])]
        with quiet_log():
            result = CliRunner().invoke(app, arguments)
        lines = [line for line in result.stderr.splitlines() if line.startswith("longattn: ")]
        lines += result.stdout.splitlines() if command == "verify" else []
        assert isinstance(result.exception, SystemExit | None), (command, what, result.exception)
        assert result.exit_code in (0, 1, 2), (command, what, result.exit_code)
        assert result.exit_code == 0 or lines, (command, what)
        assert all(line.isprintable() for line in lines), (command, what, lines)


def any_change(output: Path, random: random.Random) -> str:
    """Put another value into a record, a marker or a footer, with a good checksum; returns what."""
    kinds = [*(output / "_longattn").rglob("*.json"), *output.rglob("*.parquet")]
    file = random.choice(sorted(kinds))
    value = _footer(file) if file.suffix == ".parquet" else json.loads(file.read_text())
    if isinstance(value, dict):
        value.pop("checksum", None)
    place = random.choice([place for place in _places(value) if place])
    new = random.choice(VALUES)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    if new is GONE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    if isinstance(value, list):
        value = [sealed(one) if isinstance(one, dict) else one for one in value]
    else:
        value = sealed(value)
    if file.suffix == ".parquet":
        _write_footer(file, value)
    else:
        file.write_text(json.dumps(value))
    return f"{file.relative_to(output)} {place} {'gone' if new is GONE else repr(new)}"


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inner = value.items() if isinstance(value, dict) else ()
    inner = list(enumerate(value))[:3] if isinstance(value, list) else inner
    for key, one in inner:
        yield from _places(one, (*at, key))


def _footer(file: Path) -> Any:
    with pq.ParquetFile(file) as parquet:
        return json.loads(parquet.metadata.metadata[METADATA_KEY])


def _write_footer(file: Path, value: Any) -> None:
    table = pq.read_table(file, partitioning=None).replace_schema_metadata()
    with pq.ParquetWriter(file, table.schema) as parquet:
        parquet.write_table(table)
        parquet.add_key_value_metadata({METADATA_KEY: json.dumps(value).encode()})


def copied(settings: Config, folder: Path) -> Path:
    """A fresh copy of a finished output."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.copytree(settings.output, folder / "out")
    return folder / "out"
