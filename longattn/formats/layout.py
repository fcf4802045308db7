"""Which sequence goes where: parts of about one size, and the place of every piece in its part.

In order of category and file, or, shuffled, in an order over all categories that a hash of the seed and
each data_id decides: the same on any machine and whatever the layout of the selected files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from longattn.formats.part import Part
from longattn.formats.pieces import PieceTable
from longattn.selection.score_table import batches

_PLACED = """
CREATE TABLE placed (
    part INTEGER, token BIGINT, within INTEGER, name VARCHAR, category INTEGER,
    file INTEGER, row INTEGER, start INTEGER, length INTEGER
)
"""


@dataclass
class PlacedPart:
    """One part, and what it holds."""

    group: str
    number: int  # in its group
    tokens: int = 0
    sequences: int = 0


@dataclass
class Layout:
    """The table `placed`: pieces with `part` (an index of `parts`) and `token`, where each begins in it."""

    table: PieceTable
    shuffled: bool
    part_tokens: int
    """A part is full once it has as many."""
    parts: list[PlacedPart] = field(default_factory=list)
    digest: str = ""
    """Over the names, lengths and places of all pieces."""

    def __post_init__(self) -> None:
        order = "place, name, bin, within" if self.shuffled else "category_name, bin, within"
        names = ", ".join(f"({i}, '{name}')" for i, name in enumerate(self.table.categories))
        query = (
            f"SELECT pieces.* FROM pieces JOIN (VALUES {names}) AS named(category, category_name) "
            f"USING (category) ORDER BY {order}"
        )
        self.table.connection.execute(_PLACED)
        digest, end = xxhash.xxh3_128(), _End()
        for rows in batches(self.table.connection, query):
            for one in [rows] if self.shuffled else _by_category(rows):
                self._place(one, end, digest)
        self.digest = digest.hexdigest()

    def _place(self, rows: pa.Table, end: _End, digest: Any) -> None:
        """Add rows of one group to `placed`, from where the rows before ended."""
        category = int(rows["category"][0].as_py())
        group = "" if self.shuffled else self.table.categories[category]
        if not self.parts or self.parts[-1].group != group:
            end.tokens, end.share = 0, -1
        slot, within, length = (
            rows[name].to_numpy().astype(np.int64) for name in ("slot", "within", "length")
        )
        begins = within == 0
        before = end.tokens + np.cumsum(np.where(begins, slot, 0)) - slot  # tokens of the group
        share = before // self.part_tokens
        new = np.diff(share, prepend=end.share) != 0
        parts = len(self.parts) - 1 + np.cumsum(new)
        for begin in before[new].tolist():
            follows = bool(self.parts) and self.parts[-1].group == group
            number = self.parts[-1].number + 1 if follows else 0
            self.parts.append(PlacedPart(group, number))
            end.part_begins.append(begin)
        at = before - np.array(end.part_begins, np.int64)[parts] + within
        for part in np.unique(parts).tolist():
            own = (parts == part) & begins
            self.parts[part].tokens += int(slot[own].sum())
            self.parts[part].sequences += int(own.sum())
        end.tokens, end.share = int(before[-1] + slot[-1]), int(share[-1])
        columns = {
            "part": parts.astype(np.int32),
            "token": at,
            **{
                name: rows[name]
                for name in ("within", "name", "category", "file", "row", "start", "length")
            },
        }
        for array in (parts, at, length):
            digest.update(np.ascontiguousarray(array, "<i8").data)
        digest.update("\n".join(rows["name"].to_pylist()).encode())
        connection = self.table.connection
        connection.register("rows", pa.table(columns))
        connection.execute("INSERT INTO placed FROM rows")
        connection.unregister("rows")

    def pieces(self, first: int, last: int) -> Iterator[pa.Table]:
        """`file`, `row`, `start`, `length`, `part`, `token` of some parts, in order of file and row."""
        return batches(
            self.table.connection,
            "SELECT file, row, start, length, part, token FROM placed "
            f"WHERE part BETWEEN {first} AND {last} ORDER BY file, row, start",
        )

    def part(self, number: int, ids: NDArray[np.integer], *, padded: bool) -> Part:
        """What a format is handed of a part whose ids are these."""
        with self.table.connection.cursor() as own:  # a thread needs one of its own
            rows = own.sql(
                "SELECT token, within, name, category, length FROM placed "
                f"WHERE part = {number} ORDER BY token"
            ).to_arrow_table()
        at, within, length = (rows[name].to_numpy() for name in ("token", "within", "length"))
        begins = within == 0
        first = rows.filter(pa.array(begins))
        return Part(
            ids=ids,
            begins=np.append(at[begins], self.parts[number].tokens).astype(np.int64),
            documents=np.stack([at, at + length], axis=1).astype(np.int64),
            data_ids=first["name"].to_pylist(),
            categories=[self.table.categories[of] for of in first["category"].to_pylist()],
            padded=padded,
        )


@dataclass
class _End:
    """Where the rows before ended."""

    tokens: int = 0  # of the group
    share: int = -1
    part_begins: list[int] = field(default_factory=list)
    """The token of its group at which each part begins."""


def _by_category(rows: pa.Table) -> Iterator[pa.Table]:
    start = 0
    for _, of in groupby(rows["category"].to_pylist()):
        n = sum(1 for _ in of)
        yield rows.slice(start, n)
        start += n
