"""Corruptions of every file that a run writes: what a disk, a hand or another program may do."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longattn.reports.verify import verify
from longattn.storage.digests import sealed
from longattn.storage.tables import METADATA_KEY, write_table

QUARANTINE_DECIDED = (
    "category",
    "source",
    "reason",
)  # position and detail only the corpus can tell


@dataclass(frozen=True)
class Corruption:
    name: str
    plant: Callable[[Path], None]


def corruptions(whole: Path) -> Iterator[Corruption]:
    """Every kind there is a file for in an output; `whole` is one, to look into."""
    for folder in ("labelled", "selected", "quarantine"):
        yield from _of_values(whole, folder)
        yield from _of_rows(folder)
        yield from _of_files(whole, folder)
    yield from _of_footers()
    for path in sorted((whole / "_longattn").glob("*.json")):
        yield from _of_record(path.name, json.loads(path.read_text()))
    yield from _of_markers(whole)
    yield from _of_report()


def missed_of(
    planted: Iterable[Corruption], whole: Path, output: Path, findings: int | None = None
) -> list[str]:
    """Names of those that `verify` has no finding for, or one of several lines; raises what it raises.

    findings: how many are waited for: the first one takes a third of the time of all.
    """
    missed = []
    for corruption in planted:
        corruption.plant(output)
        found = list(islice(verify(str(output)), findings))
        if not found or any(len(line.splitlines()) != 1 for line in found):
            missed.append(corruption.name)
        shutil.rmtree(output)
        shutil.copytree(whole, output)
    return missed


# --- Parquet ------------------------------------------------------------------------------------


def first(output: Path, folder: str) -> Path:
    return sorted((output / folder).rglob("*.parquet"))[0]


def rewritten(path: Path, change: Callable[[list[dict]], list[dict]], *, reseal: bool) -> None:
    """Write a file with other rows: with the footer it had, or with one that fits them."""
    with pq.ParquetFile(path) as parquet:
        footer, table = parquet.metadata.metadata[METADATA_KEY], parquet.read()
    rows = change(table.to_pylist())
    table = pa.Table.from_pylist(rows, table.schema.remove_metadata())
    if reseal:
        metadata = {k: v for k, v in json.loads(footer).items() if k != "checksum"}
        write_table(str(path), table, metadata)
    else:
        with pq.ParquetWriter(path, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({METADATA_KEY: footer})


def other(value):
    """Another value of the same kind."""
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    if isinstance(value, float):
        return value * 1.001 + 1e-5
    if isinstance(value, list):
        return [other(value[0]), *value[1:]]
    return value + 1


def _of_values(whole: Path, folder: str) -> Iterator[Corruption]:
    for column in pq.read_schema(first(whole, folder)).names:
        for what, value in (("another", other), ("null", lambda _: None)):
            for reseal in (False, True):
                if reseal and folder == "quarantine" and column not in QUARANTINE_DECIDED:
                    continue

                def change(rows, column=column, value=value):
                    rows[0][column] = value(rows[0][column])
                    return rows

                yield Corruption(
                    f"{folder}: {what} {column}" + ", digest renewed" * reseal,
                    lambda o, c=change, r=reseal: rewritten(first(o, folder), c, reseal=r),
                )


def _swapped(rows: list[dict]) -> list[dict]:
    """Values of two rows exchanged in the last column but those that are the same in both."""
    for column in ("ds", "lds", "reason"):
        if column in rows[0]:
            rows[0][column], rows[1][column] = rows[1][column], rows[0][column]
    return rows


def _of_rows(folder: str) -> Iterator[Corruption]:
    changes = {
        "a row lost": lambda rows: rows[1:],
        "the last row lost": lambda rows: rows[:-1],
        "a row twice": lambda rows: [*rows, rows[0]],
        "no row": lambda _: [],
        "values of two rows exchanged": _swapped,
    }
    for what, change in changes.items():
        for reseal in (False, True):
            if reseal and folder == "quarantine" and change is _swapped:
                continue  # only the corpus can tell
            yield Corruption(
                f"{folder}: {what}" + ", digest renewed" * reseal,
                lambda o, c=change, r=reseal: rewritten(first(o, folder), c, reseal=r),
            )


def _of_files(whole: Path, folder: str) -> Iterator[Corruption]:
    def change_bytes(change):
        def plant(output):
            path = first(output, folder)
            path.write_bytes(change(path.read_bytes()))

        return plant

    def foreign(output):
        path = first(output, folder)
        pq.write_table(pa.table({"x": [1]}), path.with_name("foreign.parquet"))

    def copied(output):
        path = first(output, folder)
        shutil.copy(path, path.with_name("0" * 32 + ".parquet"))

    yield Corruption(f"{folder}: a file lost", lambda o: first(o, folder).unlink())
    yield Corruption(f"{folder}: truncated", change_bytes(lambda data: data[:-9]))
    yield Corruption(f"{folder}: half of it", change_bytes(lambda data: data[: len(data) // 2]))
    yield Corruption(f"{folder}: empty", change_bytes(lambda _: b""))
    yield Corruption(f"{folder}: zeros", change_bytes(lambda data: bytes(len(data))))
    yield Corruption(f"{folder}: no Parquet", change_bytes(lambda _: b"PAR1 hello PAR1"))
    yield Corruption(f"{folder}: another program's", foreign)
    yield Corruption(
        f"{folder}: renamed",
        lambda o: first(o, folder).rename(first(o, folder).with_name("f" * 32 + ".parquet")),
    )
    if folder != "quarantine":
        yield Corruption(f"{folder}: copied", copied)
        yield Corruption(
            f"{folder}: in another category",
            lambda o: shutil.move(first(o, folder), o / folder / "code" / first(o, folder).name),
        )
        yield Corruption(f"{folder}: all lost", lambda o: shutil.rmtree(o / folder))


def _of_footers() -> Iterator[Corruption]:
    def with_footer(change, *, reseal):
        def plant(output):
            path = first(output, "labelled")
            with pq.ParquetFile(path) as parquet:
                footer, table = parquet.metadata.metadata[METADATA_KEY], parquet.read()
            stored = json.loads(footer)
            change(stored)
            table = table.replace_schema_metadata()
            with pq.ParquetWriter(path, table.schema) as writer:
                writer.write_table(table)
                told = json.dumps(sealed(stored) if reseal else stored)
                writer.add_key_value_metadata({METADATA_KEY: told})

        return plant

    def span(place, value):
        def change(stored):
            stored["runs"][0][place] = value(stored["runs"][0][place])

        return change

    changes = {
        "fingerprint": lambda s: s.update(fingerprint="0" * 32),
        "number of rows": lambda s: s.update(rows=s["rows"] + 1),
        "digest": lambda s: s.update(digest="0" * 32),
        "no digest": lambda s: s.pop("digest"),
        "split": span(0, other),
        "path": span(1, other),
        "rows of a split": span(2, other),
        "ids of a split": span(3, other),
        "documents of a split": span(4, other),
        "no splits": lambda s: s.pop("runs"),
    }
    for what, change in changes.items():
        for reseal in (False, True):
            name = f"footer: {what}" + ", checksum renewed" * reseal
            yield Corruption(name, with_footer(change, reseal=reseal))
    yield Corruption("footer: no checksum", with_footer(lambda s: s.pop("checksum"), reseal=False))
    yield Corruption(
        "footer: lost",
        lambda o: pq.write_table(
            pq.read_table(first(o, "labelled")).replace_schema_metadata(), first(o, "labelled")
        ),
    )


# --- JSON and HTML ------------------------------------------------------------------------------


def _paths(value, path=()):
    """Where the plain values of a JSON value are, the first of each list alone."""
    if isinstance(value, dict):
        for key in value:
            yield from _paths(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from _paths(value[0], (*path, 0))
    elif value is not None and not isinstance(value, list):
        yield path


def _put(value, path):
    for key in path[:-1]:
        value = value[key]
    old = value[path[-1]]
    value[path[-1]] = (not old) if isinstance(old, bool) else other(old)


UNDECIDED = {"rates.json"}  # a history: nothing else tells of it, its checksum and the report's do
UNDECIDED_PARTS = {
    "stages",
    "faults",
    "seconds",
    "output",
    "read",
    "done before",
    "config",
    "files",
}


def _of_record(name: str, value) -> Iterator[Corruption]:
    def edited(change, *, reseal):
        def plant(output):
            path = output / "_longattn" / name
            stored = json.loads(path.read_text())
            change(stored)
            path.write_text(json.dumps(sealed(stored) if reseal else stored))

        return plant

    for path in _paths(value):
        where = f"{name}: {'.'.join(map(str, path))}"
        yield Corruption(where, edited(lambda s, p=path: _put(s, p), reseal=False))
        if name not in UNDECIDED and not UNDECIDED_PARTS & {*path} and path != ("checksum",):
            renewed = edited(lambda s, p=path: _put(s, p), reseal=True)
            yield Corruption(f"{where}, checksum renewed", renewed)
    yield Corruption(f"{name}: no checksum", edited(lambda s: s.pop("checksum"), reseal=False))
    place = Path("_longattn", name)
    yield Corruption(
        f"{name}: half of it", lambda o: (o / place).write_text((o / place).read_text()[:40])
    )
    yield Corruption(f"{name}: a list", lambda o: (o / place).write_text("[1]"))
    yield Corruption(f"{name}: no text", lambda o: (o / place).write_bytes(b"\xff\xfe\x00"))
    yield Corruption(f"{name}: nested", lambda o: (o / place).write_text("[" * 100_000))
    if name != "run.json":  # without it no run has written
        yield Corruption(f"{name}: lost", lambda o: (o / place).unlink())


def _of_markers(whole: Path) -> Iterator[Corruption]:
    def marker(output):
        """The file with a marker that has windows and bad records."""
        files = sorted((output / "_longattn/splits").iterdir())
        return next(f for f in files if '"not_json"' in f.read_text())

    def edited(change, *, reseal):
        def plant(output):
            path = marker(output)
            values = json.loads(path.read_text())
            place = next(i for i, value in enumerate(values) if value["counts"]["bad"])
            change(values[place])
            values[place] = sealed(values[place]) if reseal else values[place]
            path.write_text(json.dumps(values))

        return plant

    value = next(v for v in json.loads(marker(whole).read_text()) if v["counts"]["bad"])
    for path in _paths(value):
        where = f"marker: {'.'.join(map(str, path))}"
        yield Corruption(where, edited(lambda s, p=path: _put(s, p), reseal=False))
        if path[-1] not in ("checksum", "generation", "seconds", "largest"):
            renewed = edited(lambda s, p=path: _put(s, p), reseal=True)
            yield Corruption(f"{where}, checksum renewed", renewed)
    waits = edited(lambda s: s.update(waits_for=["0" * 32]), reseal=True)
    yield Corruption("marker: it waits for an unknown split, checksum renewed", waits)
    yield Corruption("marker: lost", lambda o: marker(o).unlink())
    yield Corruption("marker: no list", lambda o: marker(o).write_text("{}"))
    yield Corruption("marker: no objects", lambda o: marker(o).write_text("[1]"))
    yield Corruption(
        "marker: half of it", lambda o: marker(o).write_bytes(marker(o).read_bytes()[:99])
    )


def _of_report() -> Iterator[Corruption]:
    def edited(change):
        def plant(output):
            path = output / "report.html"
            path.write_bytes(change(path.read_bytes()))

        return plant

    yield Corruption("report: a digit", edited(lambda page: page.replace(b"1", b"2", 1)))
    yield Corruption("report: half of it", edited(lambda page: page[: len(page) // 2]))
    yield Corruption("report: empty", edited(lambda _: b""))
    yield Corruption("report: lost", lambda o: (o / "report.html").unlink())
