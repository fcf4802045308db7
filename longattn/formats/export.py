"""An export: the selected windows as files of a trainer, in parts that each appear whole.

What goes where is decided first (`pieces.py`, `layout.py`), then written (`writing.py`). Killed and
started again, an export of the same windows in the same order writes only the parts that are missing;
of any other, it first removes what is there. `export.json` beside the files, written last, tells of
them, so what has none is not whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from longattn.config import Mix
from longattn.errors import ConfigError
from longattn.formats.layout import Layout
from longattn.formats.mix import apply_shares
from longattn.formats.part import Format, Group
from longattn.formats.pieces import PieceTable
from longattn.formats.registry import format_named
from longattn.formats.short_documents import Packing, insert_packed
from longattn.formats.writing import IdSettings, prefix_of, write_parts
from longattn.resume.shards import held
from longattn.selection.database import database, temporary_folder
from longattn.storage.digests import json_checksum
from longattn.storage.files import join, list_files, parallel, remove, sweep
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.storage.tables import own_files
from longattn.text import without_secrets

log = logging.getLogger("longattn")

SUMMARY = "export.json"


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is wanted."""

    vocab_size: int
    """Of the tokenizer that the ids are of."""
    window: int
    """Tokens of a window."""
    name: str | None = None
    """Of the selection."""
    format: str = "megatron"
    shuffle: int | None = None
    """The seed of an order over all categories; None: in order of category and file."""
    mix: Mix | None = None
    """The share of each category, and what else is packed; None: all that is selected."""
    model: str = "builtin"
    """Whose tokenizer the documents of a mix are tokenized with."""
    memory: int = 10**9
    """Bytes of the tables that the layout is made in; what outgrows them goes to the temporary folder."""
    part_bytes: int | None = None
    """Bytes of ids of a part; None: as the format has it."""


def export(output: str, wanted: Export) -> list[str]:
    """Write `<output>/selected` as `<output>/<format>`; returns what the trainer is given.

    A selection with a name is written as `<output>/<format>-<name>`.

    Raises:
        ConfigError: no such format.
        ValueError: nothing was selected, or an id outside the vocabulary.
        HeldError: another run is at work in the folder.
    """
    format, folder = format_named(wanted.format), OutputFolder(output)
    urls = own_files(folder.selected_files(wanted.name))
    if not urls:
        raise ValueError(f"{folder.selection(wanted.name)}: no selected windows to export")
    dtype, mix = format.dtype(wanted.vocab_size), wanted.mix
    pad_token = mix.pad_token if mix else 0
    if pad_token >= wanted.vocab_size:
        raise ConfigError(f"pad_token {pad_token}: the vocabulary has 0 to {wanted.vocab_size - 1}")
    with (
        held(output),
        database(wanted.memory) as connection,
        temporary_folder() as scratch,
    ):
        place = folder.export(format.name, wanted.name)
        sweep(place)
        table = PieceTable(connection, wanted.shuffle or 0)
        table.insert_windows(urls)
        if mix is not None:
            packing = Packing(wanted.model, wanted.window, format.padded, scratch)
            for source in mix.packed:
                if source.category in table.categories:
                    raise ConfigError(f"packed: category {source.category!r} is a selected one")
                insert_packed(table, source, packing)
            apply_shares(table, mix)
        part_tokens = max(1, (wanted.part_bytes or format.part_bytes) // dtype.itemsize)
        layout = Layout(table, wanted.shuffle is not None, part_tokens)
        if not layout.parts:
            raise ValueError(f"{without_secrets(output)}: the mix holds no window")
        facts = {"shuffle": wanted.shuffle, "mix": _told(mix) if mix else None}
        files = _Files(place, folder.record(f"export-{place.rpartition('/')[2]}"), format, layout)
        files.write(IdSettings(dtype, wanted.vocab_size, pad_token), facts)
        log.info(
            "%s is read so: %s",
            format.name,
            format.reading.replace("{dtype}", f'"{dtype.str}"'),
        )
        return format.outputs(place, files.groups())


def _told(mix: Mix) -> dict[str, Any]:
    """A mix as it is stored: without passwords."""
    values = mix.model_dump(mode="json", exclude_none=True)
    for source in values["packed"]:
        source["path"] = without_secrets(source["path"])
    return values


@dataclass(frozen=True)
class _Files:
    """The files of one export."""

    place: str
    """The folder they are in."""
    record: str
    """Where it is kept of which windows, in which order, the parts are."""
    format: Format
    layout: Layout

    def write(self, ids: IdSettings, facts: Mapping[str, Any]) -> None:
        """Make all of them appear that are not there."""
        format, layout, place = self.format, self.layout, self.place
        plan = {
            "format": format.name,
            "dtype": ids.dtype.str,
            "vocab_size": ids.vocab_size,
            "layout": layout.digest,
            "selected": layout.table.digests,
            **facts,
        }
        try:
            begun = read_record(self.record)
        except ValueError:  # damaged: what is there is of no plan that is known
            begun = None
        if begun != plan:
            self._clear()
            write_record(self.record, plan)
        suffixes = list(format.suffixes)
        if layout.table.padding() and format.mask_suffix:
            suffixes.insert(-1, format.mask_suffix)
        there = list_files(place, "")
        missing = [
            part
            for part in range(len(layout.parts))
            if not all(prefix_of(layout, part, format, place) + s in there for s in suffixes)
        ]
        summary, groups = join(place, SUMMARY), self.groups()
        indices = [format.index_url(place, group) for group in groups if format.index]
        if not missing and summary in there and there.keys() >= set(indices):
            log.info("%s: all of it is there", without_secrets(place))
            return
        if summary in there:
            remove(summary)
        write_parts(layout, missing, format, place, ids)
        for group in groups if format.index else []:
            format.write_index(place, group)
        write_record(summary, {**plan, "plan": json_checksum(plan), **self._figures()})

    def groups(self) -> list[Group]:
        """Parts that a trainer is given together."""
        found = []
        numbered = enumerate(self.layout.parts)
        for name, parts in groupby(numbered, key=lambda part: part[1].group):
            of = list(parts)
            prefixes = [prefix_of(self.layout, i, self.format, self.place) for i, _ in of]
            found.append(Group(name, prefixes, [part.sequences for _, part in of]))
        return found

    def _clear(self) -> None:
        """Remove the files of an earlier export, first what says that they are whole."""
        format, place = self.format, self.place
        suffixes = [*reversed(format.suffixes), *filter(None, [format.mask_suffix])]
        there = list_files(place, "")
        for name in (SUMMARY, format.index):
            if name:
                parallel(remove, [url for url in there if url.endswith("/" + name)])
        for suffix in suffixes:
            parallel(remove, [url for url in there if url.endswith(suffix)])

    def _figures(self) -> dict[str, Any]:
        layout = self.layout
        totals = layout.table.totals()
        tokens = sum(of for _, _, of in totals.values())
        return {
            "parts": len(layout.parts),
            "tokens": tokens,
            "padding": layout.table.padding(),
            "categories": {
                name: {"sequences": n, "documents": m, "tokens": of, "share": of / max(1, tokens)}
                for name, (n, m, of) in sorted(totals.items())
            },
        }
