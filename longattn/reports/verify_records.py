"""What `verify` checks of the JSON records, the quarantine and the report."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from longattn.config import Select
from longattn.corpus.counts import Counts
from longattn.corpus.records import Reason
from longattn.reports.verify_rows import WindowTables, footer_findings
from longattn.resume.markers import IdSet, Marker, digest_of, read_markers
from longattn.resume.origin import Origin
from longattn.resume.remaining import labelled_files, mixture_remark, windows_by_processor
from longattn.selection.dataset_card import is_own_card, read_card
from longattn.storage.digests import CHECKSUM, json_checksum, row_digest
from longattn.storage.files import list_files, read_bytes, read_json
from longattn.storage.output_folder import OutputFolder
from longattn.storage.page_seal import read_seal
from longattn.storage.records import read_record
from longattn.storage.tables import QUARANTINE, file_metadata, is_own_file, open_parquet

log = logging.getLogger("longattn")
COUNTED = (
    "records",
    "documents",
    "too_short",
    "duplicates",
    "inexact",
    "sampled_out",
    "tokens",
    "bytes",
    "lost_bytes",
)
SEVERAL = {Reason.UNREADABLE, Reason.TRUNCATED_ARCHIVE}  # one row stands for many records


class RecordChecks:
    """The records of an output, read once, and what is checked of them."""

    def __init__(self, folder: OutputFolder, origin: Origin) -> None:
        self.folder, self.origin = folder, origin
        self.markers: dict[str, Marker] = {}
        self.samples: dict[str, Any] | None = None
        self.summary: dict[str, Any] | None = None
        self.selections: dict[str | None, tuple[Select, dict[str, Any]]] = {}
        """Settings and record of each selection, by its name."""
        self.broken: set[str] = set()
        """URLs of records that could not be read."""

    @property
    def inexact(self) -> set[str]:
        """Categories with documents whose ids a forced cut may have changed."""
        return {marker.category for marker in self.markers.values() if marker.counts.inexact}

    def read(self) -> Iterator[str]:
        """Read them; findings on those that are not what was written."""
        damaged: dict[str, str] = {}
        self.markers = read_markers(self.folder.url, damaged)
        yield from (f"{url}: {why}" for url, why in damaged.items())
        self.broken |= damaged.keys()
        for url in list_files(self.folder.markers, ".json"):
            if url not in damaged and any(CHECKSUM not in value for value in read_json(url)):
                yield f"{url}: a marker without its checksum"
        selections = {self.folder.selection_record(name): name for name in self.folder.selections()}
        for url in [
            *(
                self.folder.record(n)
                for n in ("run", "samples", "shards", "summary", "rates", "heads", "check")
            ),
            *selections,
        ]:
            name = url.rpartition("/")[2].removesuffix(".json") if url not in selections else ""
            try:
                value = read_record(url)
                if value is not None and CHECKSUM not in read_json(url):
                    raise ValueError(f"{url}: it has lost its checksum")
            except ValueError as error:
                yield str(error)
                self.broken.add(url)
                continue
            if name in ("samples", "summary"):
                setattr(self, name, value)
            if url in selections and value is not None:
                yield from self._selection(url, selections[url], value)
            if value is None and name in ("samples", "summary") and self.origin.is_run:
                lacks = "its run is not finished" if name == "summary" else "a run writes one"
                yield f"{self.folder.url}: no {name}: {lacks}"
            for category, share in (value or {}).items() if name == "samples" else ():
                if share.get("fraction") == 1 and share.get("seed") != 0:
                    yield f"{url}: category {category}: a seed, though it is not sampled"
            if name == "run" and value and value.get("fingerprint") != self.origin.fingerprint:
                yield f"{url}: its fingerprint is not that of its parts"
        yield from self._settings()

    def _selection(self, url: str, name: str | None, value: dict[str, Any]) -> Iterator[str]:
        """Take the record of a selection, where it is one."""
        try:
            select = Select.check(value["select"], "select")
        except (KeyError, ValueError) as error:
            yield f"{url}: damaged: {error}"
            self.broken.add(url)
            return
        if select.name != name:
            yield f"{url}: it tells of a selection named {select.name}"
        self.selections[name] = select, value

    def _settings(self) -> Iterator[str]:
        """Whether the settings of run.json are those that its parts tell of."""
        config, parts = self.origin.config, self.origin.parts
        if config is None or parts is None:
            return
        for what, told, part in (
            ("window.tokens", config.window.tokens, parts.window),
            ("scorer.min_distance", tuple(config.min_distances), parts.min_distances),
            ("scorer.rope_theta", config.scorer.rope_theta, parts.rope_theta),
            ("scorer.query_stride", config.scorer.query_stride, parts.query_stride),
            ("scorer.dtype", config.scorer.dtype or parts.dtype, parts.dtype),
        ):
            if told != part:
                yield f"{self.folder.record('run')}: {what} {told} in its config, {part} in its parts"

    def ledger(self, tables: WindowTables) -> Iterator[str]:
        """Markers against the footers of labelled files."""
        under: dict[str, IdSet] = defaultdict(IdSet)
        rows = 0
        files = labelled_files(self.folder.url)
        by_processor = windows_by_processor(file for file in files if not file.damage)
        if remark := mixture_remark(by_processor):  # no fault of what is stored
            log.warning("%s", remark)
        told = (self.summary or {}).get("scored_on", by_processor)
        if told != by_processor:
            yield (
                f"{self.folder.record('summary')}: scored on {told}, the footers of labelled files say "
                f"{by_processor}"
            )
        for file in files:
            if file.foreign:
                continue
            rows += file.rows
            for span in file.row_spans:
                under[span.split].merge(span.rows, span.ids)
                marker = self.markers.get(span.split)
                if marker and marker.path != span.path:
                    yield f"{file.url}: rows of {span.path}, whose marker tells of {marker.path}"
        for marker in self.markers.values():
            given = under[marker.split]
            if (given.count, given.hex) != (marker.windows, marker.ids):
                same = given.count == marker.windows
                what = "other windows" if same else f"{given.count} windows"
                yield f"{marker.path}: its marker tells of {marker.windows} windows, labelled are {what}"
            for other in sorted({*marker.waits_for} - self.markers.keys()):
                yield f"{marker.path}: its marker waits for a split that was not read: {other}"
        read = tables.counts("labelled").total()
        if rows != read:
            yield f"{self.folder.url}: footers tell of {rows} rows, read were {read}"

    def summary_counts(self, tables: WindowTables) -> Iterator[str]:
        """What the summary counts against the markers and the labelled rows."""
        if self.summary is None:
            return
        url, labelled = self.folder.record("summary"), tables.counts("labelled")
        others = set(self.summary.get("other_splits", []))
        listed = [m for m in self.markers.values() if m.split not in others]
        totals: dict[str, Counts] = defaultdict(Counts)
        for marker in listed:
            totals[marker.category].add(marker.counts)
        told = self.summary["categories"]
        for category in sorted({*told, *totals, *labelled}):
            here = told.get(category, {})
            copies = here.get("duplicate_rows", 0)
            if here.get("windows", 0) + copies != labelled[category]:
                yield (
                    f"{url}: category {category} has {labelled[category]} labelled windows, "
                    f"the summary tells of {here.get('windows', 0)}"
                )
            if category not in totals:
                continue
            counts = totals[category]
            for name in COUNTED:
                if here.get(name) != getattr(counts, name):
                    yield (
                        f"{url}: category {category}: {name} {here.get(name)}, "
                        f"its markers add up to {getattr(counts, name)}"
                    )
            bad = {reason: n for reason, n in counts.bad.items() if n}
            if here.get("quarantine") != bad:
                yield f"{url}: category {category}: quarantine {here.get('quarantine')}, markers {bad}"
        if self.summary.get("markers") != digest_of(listed):
            yield f"{url}: it is of other markers than those that are there"
        if self.summary.get("samples") != json_checksum(self.samples):
            yield f"{url}: it is of another samples.json"
        if self.summary["splits"]["all"] != len(listed):
            yield f"{url}: {self.summary['splits']['all']} splits, there are {len(listed)} markers"
        if self.summary["fingerprint"] != self.origin.fingerprint:
            yield f"{url}: fingerprint {self.summary['fingerprint']}, not {self.origin.fingerprint}"

    def quarantine(self) -> Iterator[str]:
        """Quarantine files against their digests and the markers."""
        there: dict[str, Counter[str]] = defaultdict(Counter)
        for url in list_files(self.folder.quarantine, ".parquet"):
            try:
                yield from self._quarantined(url, there)
            except Exception as error:  # noqa: BLE001 - broken files make readers raise anything
                yield f"{url}: cannot be read: {type(error).__name__}: {str(error)[:200]}"
        for marker in self.markers.values():
            found = there[marker.split]
            for reason in sorted({*found, *marker.counts.bad}):
                rows, records = found[reason], marker.counts.bad[reason]
                fits = 0 < rows <= records if reason in SEVERAL else rows == records
                if not fits:
                    yield (
                        f"{marker.path}: its marker tells of {records} bad records ({reason}), "
                        f"in quarantine are {rows}"
                    )

    def _quarantined(self, url: str, there: dict[str, Counter[str]]) -> Iterator[str]:
        name = url.rpartition("/")[2]
        with open_parquet(url) as parquet:
            if not is_own_file(parquet):
                yield f"{url}: not written by longattn"
                return
            metadata, table = file_metadata(parquet), parquet.read().replace_schema_metadata()
            yield from (f"{url}: {f.partition(' ')[2]}" for f in footer_findings(parquet, metadata))
        split = str(metadata.get("split"))
        if table.schema != QUARANTINE:
            yield f"{url}: columns {table.column_names}, not {QUARANTINE.names}, or other types"
            return
        if row_digest(table).hex != metadata.get("digest"):
            yield f"{url}: its rows are not those its footer tells of"
        if name.rpartition("-")[0] != split:
            yield f"{url}: its footer tells of split {split}"
        marker = self.markers.get(split)
        if marker is None:
            return
        there[split].update(table["reason"].to_pylist())
        for column, wanted in (("category", marker.category), ("source", marker.path)):
            if set(table[column].to_pylist()) - {wanted}:
                yield f"{url}: {column} is not that of its split, {wanted}"

    def report(self) -> Iterator[str]:
        """Whether the report is whole, and tells of the records that are there."""
        url = self.folder.report
        page = read_bytes(url)
        if page is None:
            if self.selections and self.origin.is_run:
                yield f"{url}: not there; `longattn report` writes it"
            return
        yield from self._told(url, page, read_seal, "longattn report")

    def card(self) -> Iterator[str]:
        """Whether the card is whole, and tells of the selection that is there; a `README.md` may be none."""
        url = self.folder.card
        page = read_bytes(url)
        if page is not None and is_own_card(page):
            yield from self._told(url, page, read_card, "longattn select")

    def _told(
        self, url: str, page: bytes, read: Callable[[bytes], dict[str, str]], command: str
    ) -> Iterator[str]:
        """Whether a page is whole, and tells of the records that are there."""
        try:
            told = read(page)
        except ValueError as error:
            yield f"{url}: {error}; `{command}` writes it anew"
            return
        for name, checksum in told.items():
            path = self.folder.record(name)
            if path not in self.broken and json_checksum(read_record(path)) != checksum:
                yield f"{url}: it tells of another {name}.json; `{command}` writes it anew"
