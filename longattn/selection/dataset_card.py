"""The card of a selection: `README.md` of the output folder, by which Hugging Face `datasets` loads it.

`datasets.load_dataset(<output>)` gives the selected windows of all categories, `load_dataset(<output>,
"<category>")` those of one; pushed to the hub, the page is what people read first. It is written anew with
each selection. The lines of its head that only its owner can know (`license` and the like) stay as they
are; a `README.md` of somebody else's is left alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import yaml

from longattn.resume.fingerprint import RunRecord, read_run_record
from longattn.selection.selection_record import CategorySelection, SelectionRecord
from longattn.settings.selection import Bound, Select
from longattn.storage.digests import json_checksum
from longattn.storage.files import parallel, read_bytes, write_bytes
from longattn.storage.output_folder import OutputFolder, category_of
from longattn.storage.page_seal import read_seal, with_seal
from longattn.storage.tables import open_parquet
from longattn.text import count, digits, without_secrets

log = logging.getLogger("longattn")

MARK = "<!-- Written by longattn with each selection"
OWNERS = re.compile(r"^(?:license|license_name|license_link|language|pretty_name):.*\n", re.M)
"""Lines of the head that are the owner's."""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # ten times as fast where it is there
_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}
_PLAIN = re.compile(
    r"u?int(8|16|32|64)|float(16|32|64)|(large_)?(string|binary)|bool|date32"
)  # types whose names `datasets` shares with Arrow
_BODY = """
{mark}; only license, license_name, license_link, language and
pretty_name above it stay. -->

# Long-context windows

{what}

| category | windows | kept | tokens | tokens, each once | DS, mean of all windows | LDS from |
|---|---|---|---|---|---|---|
{rows}

Kept are {keep}, best first by {rank}: {settings}.{report}

```python
from datasets import load_dataset

folder = "path/of/this/folder"
windows = load_dataset(folder, split="train", streaming=True)  # of one category: folder, "{first}"
```

Columns: `input_ids` are the tokens of a window, `content` its text, `data_id` its name, `document_id`,
`token_start` and `token_stop` where it lies in its document, `source` the file that holds that; `ds`
(dependency strength) is the share of attention that goes far, `variance` how unevenly, `lds` the score
of both within the category, `ds_heads` and `variance_heads` the same of each head, and `recurrence`,
`recurrence_rarity`, `recurrence_pairs` what counting repeated tokens tells. The texts keep the licences of
their sources: state them in the head of this page.
"""


def write_card(output: str, selection: SelectionRecord) -> None:
    """Write the card of a selection into its output folder, unless it is there."""
    url = OutputFolder(output).card
    there = read_bytes(url)
    if there is not None and not is_own_card(there):
        log.warning("%s was not written by longattn: left alone", without_secrets(url))
        return
    page = with_seal(_card(output, selection), {"selection": json_checksum(selection.to_dict())})
    head, body = page.split("\n---\n", 1)
    kept = "".join(OWNERS.findall(_head(there or b"")))
    text = f"{head}\n{kept}---\n{body}".encode()
    if text != there:
        write_bytes(url, text)


def is_own_card(page: bytes) -> bool:
    """Whether a `README.md` is a card, be it damaged."""
    return MARK.encode() in page or b"<!-- longattn selection=" in page


def read_card(page: bytes) -> dict[str, str]:
    """The checksum of the selection that a card tells of; ValueError where it is not as it was written."""
    head = _head(page)
    return read_seal(OWNERS.sub("", head).encode() + page.removeprefix(head.encode()))


def _head(page: bytes) -> str:
    """The YAML at the top of a page; of what has none, or is no text, nothing."""
    text = page.decode("utf-8", "ignore")
    head, end, _ = text.partition("\n---\n")
    return head + "\n" if end and head.startswith("---\n") and text.encode() == page else ""


def _card(output: str, selection: SelectionRecord) -> str:
    select = selection.select
    folder, record = OutputFolder(output), read_run_record(output)
    patterns, schemas = {}, {}
    for place, of in groupby(selection.files, key=lambda url: url.rpartition("/")[0]):
        files = list(of)
        name = category_of(files[0])
        patterns[name] = f"{place.removeprefix(folder.url.rstrip('/') + '/')}/*.parquet"
        schemas[name] = parallel(_schema, files)
    first = next(iter(patterns), "")
    body = _BODY.format(
        mark=MARK,
        what=_what(record),
        rows="\n".join(_row(name, of) for name, of in sorted(selection.categories.items())),
        keep=select.keep,
        rank="LDS" if select.rank_by == "lds" else f"`{select.rank_by}`",
        settings=", ".join(f"`{told}`" for told in _settings(select)),
        report="" if record is None else " What was kept and why: [report.html](report.html).",
        first=first,
    )
    return f"---\n{_yaml(patterns, schemas)}---\n{body}"


def _settings(select: Select) -> Iterator[str]:
    """The settings of a selection as people say them; those that ask for nothing are left out."""
    if select.name:
        yield f"name: {select.name}"
    yield f"alpha: {select.alpha:g}"
    yield f"standardize: {select.standardize}"
    heads = select.heads
    yield f"heads: {', '.join(map(str, heads)) if isinstance(heads, tuple) else heads}"
    yield f"rank_by: {select.rank_by}"
    if select.where:
        yield f"where: {_bounds(select.where)}"
    yield f"overlap: {select.overlap}"
    if select.per_document:
        yield f"per_document: at most {select.per_document:,}"
    for name, own in sorted(select.categories.items()):
        parts = []
        if own.keep:
            parts.append(f"keep {own.keep}".removesuffix(" of each category"))
        if own.where is not None:
            parts.append(f"where {_bounds(own.where) or 'nothing is bounded'}")
        if parts:
            yield f"{name}: {', '.join(parts)}"


def _bounds(bounds: Sequence[Bound]) -> str:
    return " and ".join(map(str, bounds))


def _what(record: RunRecord | None) -> str:
    text = (
        "Windows of long documents whose far ends depend on each other, selected by "
        "[LongAttn](https://arxiv.org/abs/2502.16860): token-level attention of the first layer of a "
        "language model."
    )
    if record is None:
        return text
    parts = record.parts
    distances = ", ".join(map(count, parts.min_distances))
    return (
        f"{text} A window has {count(parts.window)} tokens of the tokenizer of "
        f"`{without_secrets(record.model).rstrip('/').rpartition('/')[2]}`, which scored it; far is "
        f"{distances} tokens or more. Fingerprint of the scores: `{record.fingerprint}`."
    )


def _row(name: str, of: CategorySelection) -> str:
    counts = map(count, (of.windows, of.kept, of.kept_tokens, of.unique_tokens))
    cells = [name, *counts, digits(of.ds_mean), digits(of.lds_threshold)]
    return "| " + " | ".join(cells) + " |"


def _yaml(patterns: Mapping[str, str], schemas: Mapping[str, Sequence[pa.Schema]]) -> str:
    """Configs and features: one a category, and all of them by default."""
    every = next(name for name in ("all", "default", "everything") if name not in patterns)
    configs: list[dict[str, Any]] = []
    infos: list[dict[str, Any]] = []
    if patterns:
        files = list(patterns.values())
        configs.append({"config_name": every, "data_files": files, "default": True})
        infos += _info(every, [schema for of in schemas.values() for schema in of])
    for name, pattern in patterns.items():
        configs.append({"config_name": name, "data_files": pattern})
        infos += _info(name, schemas[name])
    head: dict[str, Any] = {
        "task_categories": ["text-generation"],
        "tags": ["long-context", "longattn"],
    }
    if configs:
        head |= {"configs": configs}
    if infos:
        head |= {"dataset_info": infos}
    return str(yaml.dump(head, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=1000))


def _info(name: str, schemas: Iterable[pa.Schema]) -> list[dict[str, Any]]:
    """The features of a config, what some of its files lack among them; none of an uncommon type."""
    fields = {field.name: field.type for schema in schemas for field in schema}
    features = [_feature(column, kind) for column, kind in fields.items()]
    if None in features:
        return []
    return [{"config_name": name, "features": features}]


def _feature(name: str, kind: pa.DataType) -> dict[str, Any] | None:
    of = kind.value_type if pa.types.is_list(kind) else kind
    told = _NAMES.get(str(of), str(of))
    if not _PLAIN.fullmatch(told):
        return None
    return {"name": name, "list" if pa.types.is_list(kind) else "dtype": told}


def _schema(url: str) -> pa.Schema:
    with open_parquet(url) as parquet:
        return parquet.schema_arrow
