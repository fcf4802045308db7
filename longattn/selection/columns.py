"""The columns that a selection reads of each window, from labelled files and the score tables beside them.

A labelled file holds the first scores; each further score lies in `scores/<name>/`, in a file for each
labelled one, named as it is and with its rows (`data_id` is compared). Where heads are chosen, of the
first layer or of deeper ones, `ds` and `variance` become means over them, whose scores are stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longattn.config import Config
from longattn.corpus.columns import arrow_type
from longattn.selection.heads import mean_of_heads
from longattn.selection.kept_heads import Heads
from longattn.selection.table_heads import TableHeads, require_heads, table_heads
from longattn.settings.scores import single_values
from longattn.settings.selection import Select
from longattn.storage.files import filesystem, join
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import (
    EXTRA_SCORE_COLUMNS,
    LABELLED,
    file_metadata,
    open_parquet,
    readable,
)
from longattn.text import did_you_mean, without_secrets

NAMES = ("data_id", "category", "document_id", "token_start", "token_stop", "ds", "variance")
NAMING = {
    "data_id": ("VARCHAR", "data_id"),
    "document": ("UBIGINT", "hash(document)"),
    "document_check": ("UBIGINT", "hash('document ' || document)"),
    "start": ("BIGINT", "start"),
    "stop": ("BIGINT", "stop"),
}
"""What the database may have of a window beside scores: type, and SQL from `WindowNames`."""
OF_HEADS = ("ds_heads", "variance_heads")


@dataclass(frozen=True)
class Columns:
    """What a selection reads beside `NAMES`.

    Attributes:
        rank_by: `lds`, or the column that ranks.
        bounds: columns that windows are bounded by, `lds` and `rank_by` among them.
        tables: column -> the score table that has it; other columns are of labelled files.
        heads: of `ds` and `variance`, in every category or by category, or of deeper layers; None: all
            of the first layer, as they are stored.
        named: which of `NAMING` rank windows, so that the database has them of all of them, and not
            of the kept ones alone.
    """

    rank_by: str = "lds"
    bounds: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    heads: Heads | tuple[int, ...] | TableHeads | None = None
    named: tuple[str, ...] = ()

    def heads_of(self, category: str) -> tuple[int, ...] | None:
        """Places of the chosen heads of a category in the lists of scores; None: `ds`, `variance`."""
        if self.heads is None or isinstance(self.heads, tuple):
            return self.heads
        if isinstance(self.heads, TableHeads):
            return self.heads.places(category)
        return self.heads.get(category)

    def told_heads(self, category: str) -> str:
        """`heads 3, 9`, `head 3 of layer 7 of deep`; empty for all of the first layer."""
        if isinstance(self.heads, TableHeads):
            return self.heads.told(category)
        heads = self.heads_of(category) or ()
        return f"head{'s' * (len(heads) > 1)} {', '.join(map(str, heads))}" if heads else ""

    @property
    def lds_of_table(self) -> bool:
        """Whether LDS is of a score table, where some windows may have no value."""
        return isinstance(self.heads, TableHeads)

    @property
    def extra(self) -> dict[str, str]:
        """Columns of the bounds -> their names in the database, where neither `lds` nor `rank` is one."""
        others = [name for name in self.bounds if name not in ("lds", self.rank_by)]
        return {name: f"bound_{i}" for i, name in enumerate(others)}

    def in_sql(self, column: str) -> str:
        """What a column is called in the view `ranked`."""
        if column == "lds":
            return "lds"
        return "rank" if column == self.rank_by else self.extra[column]

    @property
    def in_database(self) -> dict[str, tuple[str, str]]:
        """Columns of the table `windows`: type, and SQL from the rows that are inserted."""
        of_scores = ["ds", "variance", *self.extra.values()]
        # With 22 bytes a window 20 M stay below a memory limit of 512 MB; with 28 they are spilled.
        return {
            "category": ("USMALLINT", "category"),
            "position": ("UINTEGER", "position"),
            **{name: ("DOUBLE", name) for name in of_scores},
            **({} if self.rank_by == "lds" else {"rank": ("DOUBLE", "rank")}),
            **{name: NAMING[name] for name in self.named},
        }

    @property
    def labelled(self) -> list[str]:
        """Columns to read of labelled files, beside `NAMES`."""
        wanted = {*self.extra, self.rank_by} - {"lds", *self.tables, *NAMES}
        first_layer = self.heads is not None and not self.lds_of_table
        return [*sorted(wanted), *(OF_HEADS if first_layer else ())]

    @property
    def _table_columns(self) -> dict[str, list[str]]:
        """Columns to read of each score table."""
        found: dict[str, set[str]] = {}
        for column, table in self.tables.items():
            found.setdefault(table, set()).add(column)
        if isinstance(self.heads, TableHeads):
            found.setdefault(self.heads.asked.score, set()).update(self.heads.columns)
        return {table: sorted(columns) for table, columns in sorted(found.items())}

    def of_rows(self, url: str, rows: pa.Table, metadata: dict[str, str] | None = None) -> pa.Table:
        """Rows of a labelled file as the database takes them: `NAMES`, `rank`, the columns of bounds.

        Args:
            url: of the labelled file.
            rows: all of its rows: `NAMES` and `labelled`.
            metadata: gets the fingerprint of each score table, by its name.

        Raises:
            ValueError: naming the file, what is no finite number, a column that ranks without a
                value, or a score table of other rows.
        """
        values = {name: rows[name] for name in rows.column_names}
        values |= self._of_tables(url, rows, metadata if metadata is not None else {})
        table = rows.select(NAMES)
        for name, column in self._by_heads(url, values).items():
            table = table.set_column(table.column_names.index(name), name, column)
        for name in ("ds", "variance"):
            if not np.isfinite(table[name].drop_null().to_numpy()).all() or (
                table[name].null_count and not self.lds_of_table
            ):
                raise ValueError(f"{url}: {name} must be finite")
        rank = pa.nulls(len(table), pa.float64())
        if self.rank_by != "lds":
            rank = values[self.rank_by]
            if (
                self.rank_by not in self.tables
                and pc.any(pc.is_null(rank, nan_is_null=True)).as_py()
            ):
                raise ValueError(f"select.rank_by: some windows have no {self.rank_by}: {url}")
            rank = _finite(url, self.rank_by, rank)
        table = table.append_column("rank", rank)
        for name, called in self.extra.items():
            table = table.append_column(called, _finite(url, name, values[name]))
        return table

    def _by_heads(self, url: str, values: Mapping[str, pa.ChunkedArray]) -> dict[str, pa.Array]:
        """`ds` and `variance` of the chosen heads, where some are; null where a window has no scores."""
        if self.heads is None or not len(values["category"]):
            return {}
        category = np.array(values["category"].to_pylist(), object)
        names = self.heads.columns if isinstance(self.heads, TableHeads) else OF_HEADS
        found = {}
        for name, of_heads in zip(("ds", "variance"), names, strict=True):
            scores = values[name].to_numpy().astype(np.float64)
            absent = np.zeros(len(scores), bool)
            for one in np.unique(category).tolist():
                heads = self.heads_of(one)
                if heads is None:
                    continue
                own = np.flatnonzero(category == one)
                lists = values[of_heads].take(pa.array(own)).combine_chunks()
                if self.lds_of_table:
                    there = lists.is_valid().to_numpy(zero_copy_only=False)
                    absent[own[~there]] = True
                    own, lists = own[there], lists.drop_null()
                if not len(own):
                    continue
                try:
                    scores[own] = mean_of_heads(_matrix(of_heads, lists), heads)
                except ValueError as error:
                    raise ValueError(f"select.heads: {error}: {url}") from None
            found[name] = pa.array(scores, mask=absent)
        return found

    def _of_tables(
        self, url: str, rows: pa.Table, metadata: dict[str, str]
    ) -> dict[str, pa.ChunkedArray]:
        found: dict[str, pa.ChunkedArray] = {}
        for name, columns in self._table_columns.items():
            other = _table_url(url, name)
            with open_parquet(other) as parquet:
                for column in {*columns} - {*parquet.schema_arrow.names}:
                    raise ValueError(f"select: {without_secrets(other)} has no column {column}")
                metadata[name] = str(file_metadata(parquet).get("fingerprint", ""))
                with readable(other):
                    table = parquet.read(columns=["data_id", *columns], use_threads=False)
            if table["data_id"].cast(pa.string()) != rows["data_id"].cast(pa.string()):
                raise ValueError(
                    f"{without_secrets(other)}: its rows are not those of the labelled file; remove "
                    "it, and `longattn score` makes it anew"
                )
            found |= {column: table[column] for column in columns}
        return found


def require_columns(
    folder: OutputFolder,
    select: Select,
    coming: Collection[str],
    others: Mapping[str, str] | None = None,
) -> None:
    """Refuse a column that no window will have, before anything is scored for it.

    Args:
        coming: columns of the score tables that will be computed, and that the corpus brings.
        others: columns that windows will have and that hold no numbers, with their types.

    Raises:
        ValueError: in one line, with the columns that there will be.
    """
    missing = [name for name in _elsewhere(select) if name not in coming]
    if not missing:
        return
    there = dict.fromkeys(["lds", *(of.name for of in LABELLED if _is_number(of.type)), *coming])
    for table in score_tables(folder):  # a joined one, and those of runs before
        for url in list(folder.score_files(table))[:1]:
            with open_parquet(url) as parquet:
                numbers = [of.name for of in parquet.schema_arrow if _is_number(of.type)]
                there |= dict.fromkeys(numbers)
    for name in missing:
        if name not in there and name in (others or {}):
            raise ValueError(
                f"{_setting(select, name)}: the column {name} is {(others or {})[name]}, not numbers; "
                f"allowed: {', '.join(there)}"
            )
        if name not in there:
            raise ValueError(
                f"{_setting(select, name)}: no window will have a column {name}"
                f"{did_you_mean(name, there)}; allowed: {', '.join(there)}"
            )


def coming_columns(config: Config) -> list[str]:
    """Single values that score tables of a config will have, and those that the corpus brings."""
    tables = [name for of in config.scores for name in single_values(of.kind, of.columns)]
    return [*tables, *(name for source in config.sources for name in source.columns)]


def require_selectable(config: Config, types: Mapping[str, str] | None = None) -> None:
    """Refuse what no selection of a config can be made by, before anything is scored for it.

    Args:
        types: of the columns that the corpus brings, as far as they are known.

    Raises:
        ValueError: in one line, a column that no window will have or that holds no numbers, or heads that no
            table will have.
    """
    folder, select = OutputFolder(config.output), config.select
    others = {
        name: kind for name, kind in (types or {}).items() if not _is_number(arrow_type(kind))
    }
    coming = [name for name in coming_columns(config) if name not in others]
    require_columns(folder, select, coming, others)
    if select.heads_of_score:
        require_heads(folder, select.heads_of_score, {of.name: of.kind for of in config.scores})


def _elsewhere(select: Select) -> list[str]:
    """The columns of a selection that are not every labelled file's."""
    asked = dict.fromkeys([select.rank_by, *select.bound_columns()])
    return [
        name
        for name in asked
        if name != "lds" and name not in LABELLED.names and not EXTRA_SCORE_COLUMNS.fullmatch(name)
    ]


def _setting(select: Select, column: str) -> str:
    """The setting that asks for a column."""
    if column == select.rank_by:
        return "select.rank_by"
    of_categories = (
        (f"select.categories.{name}.where", own.where or ())
        for name, own in select.categories.items()
    )
    return next(
        f"{setting}.{i}.column"
        for setting, bounds in (("select.where", select.where), *of_categories)
        for i, bound in enumerate(bounds)
        if bound.column == column
    )


def columns_of(
    folder: OutputFolder, select: Select, urls: Collection[str], heads: Heads | None
) -> Columns:
    """Find the columns that a selection reads.

    Args:
        folder: the output.
        select: the settings.
        urls: of the labelled files.
        heads: chosen by `auto`, by category; else None.

    Raises:
        ValueError: a column that is nowhere, in two score tables, or in one that lacks files; heads
            that the tables have not.
    """
    bounds = select.bound_columns()
    elsewhere = _elsewhere(select)
    settings = {name: _setting(select, name) for name in elsewhere}
    tables = _tables_of(folder, settings, urls) if elsewhere else {}
    chosen: Heads | tuple[int, ...] | TableHeads | None = heads
    if isinstance(select.heads, tuple):
        chosen = select.heads
    elif select.heads_of_score:
        of_score = select.heads_of_score
        chosen = table_heads(folder, of_score, heads)
        _require_files(of_score.score, folder.score_files(of_score.score), urls)
    named: tuple[str, ...] = ()
    if select.overlap == "prefer_distinct" or select.per_document:
        named = tuple(NAMING)
    elif select.counts_tokens():
        named = ("start", "stop")
    return Columns(select.rank_by, bounds, tables, chosen, named)


def _tables_of(
    folder: OutputFolder, settings: Mapping[str, str], urls: Collection[str]
) -> dict[str, str]:
    """The score table of each column that labelled files lack; `settings` asked for them."""
    with open_parquet(next(iter(urls))) as parquet:
        labelled = parquet.schema_arrow
    missing = [name for name in settings if name not in labelled.names]
    if not missing:
        return {}
    schemas, files = {}, {}
    for table in score_tables(folder):
        files[table] = folder.score_files(table)
        if files[table]:
            with open_parquet(next(iter(files[table]))) as parquet:
                schemas[table] = parquet.schema_arrow
    found = {}
    for name in missing:
        having = [table for table, schema in schemas.items() if name in schema.names]
        if not having:
            numbers = [
                of.name
                for schema in (labelled, *schemas.values())
                for of in schema
                if _is_number(of.type)
            ]
            there = list(dict.fromkeys(["lds", *numbers]))
            raise ValueError(
                f"{settings[name]}: {without_secrets(folder.url)} has no column {name} in labelled/ or "
                f"scores/{did_you_mean(name, there)}; there are: {', '.join(there)}"
            )
        if len(having) > 1:
            raise ValueError(
                f"select: the column {name} is in scores/{' and scores/'.join(having)}"
            )
        found[name] = having[0]
    for table in {*found.values()}:
        _require_files(table, files[table], urls)
    return found


def _require_files(table: str, files: Collection[str], urls: Collection[str]) -> None:
    lacking = {_table_url(url, table) for url in urls} - {*files}
    if lacking:
        raise ValueError(
            f"select: scores/{table} lacks {len(lacking)} of {len(urls)} files; `longattn score` "
            "computes them"
        )


def score_tables(folder: OutputFolder) -> list[str]:
    """Names of the score tables of an output, sorted."""
    fs, path = filesystem(join(folder.url, "scores"))
    if not fs.exists(path):
        return []
    names = [
        entry["name"].rstrip("/")
        for entry in fs.ls(path, detail=True)
        if entry["type"] == "directory"
    ]
    return sorted(name.rpartition("/")[2] for name in names)


def _table_url(labelled: str, table: str) -> str:
    """Of the file of a score table that is beside a labelled file."""
    root, _, rest = labelled.rpartition("/labelled/")
    return join(OutputFolder(root).score_table(table), rest)


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    )


def _finite(url: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as doubles; raises ValueError for what is no finite number. Nulls stay."""
    if not _is_number(column.type):
        raise ValueError(f"select: {url}: the column {name} is {column.type}, not numbers")
    try:
        column = column.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"select: {url}: the column {name} fits no double: {error}") from None
    if not pc.all(pc.is_finite(column.drop_null()), min_count=0).as_py():
        raise ValueError(f"{url}: {name} must be finite")
    return column


def _matrix(name: str, lists: pa.ListArray) -> np.ndarray:
    """Scores by head, (windows, heads). Raises ValueError where some are not there."""
    if lists.null_count or lists.values.null_count:
        raise ValueError(f"some windows have no {name}")
    values = lists.flatten().to_numpy()
    if len(values) % len(lists) or len(pc.unique(pc.list_value_length(lists))) > 1:
        raise ValueError("windows have different numbers of heads")
    return np.asarray(values.reshape(len(lists), -1), np.float64)
