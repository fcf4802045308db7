"""What was selected, and by which settings: `selection.json`, which `select` writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from longattn.config import Select
from longattn.selection.columns import Columns, columns_of
from longattn.selection.kept_heads import Heads, heads_of, heads_record
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record
from longattn.text import without_secrets


@dataclass(frozen=True)
class CategorySelection:
    """What was kept of one category."""

    windows: int
    duplicate_rows: int  # rows whose data_id another row has too; counted, used once
    kept: int
    kept_tokens: int
    unique_tokens: int  # of the kept, each token of a document once
    ds_mean: float
    ds_std: float
    du_mean: float
    du_std: float
    lds_threshold: float | None  # lowest LDS of the windows kept; None when none is
    threshold: float | None  # the same of what the windows are ranked by
    out: dict[str, int] = field(default_factory=dict)  # what each bound alone takes out

    def to_dict(self) -> dict[str, Any]:
        """Without `out` where nothing bounds the windows."""
        return {key: value for key, value in asdict(self).items() if key != "out" or value}


@dataclass(frozen=True)
class SelectionRecord:
    """A selection: what decided it, its files, and its figures by category."""

    select: Select
    heads: Heads | None
    """By category, where `auto` chose them."""
    files: Sequence[str] = ()
    categories: Mapping[str, CategorySelection] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: OutputFolder, name: str | None) -> SelectionRecord | None:
        """The record of a selection by its name; None where it was not made.

        Raises ValueError, one line, where it is not what `select` writes.
        """
        url = folder.selection_record(name)
        stored = read_record(url)
        if stored is None:
            return None
        try:
            return cls(
                Select.check(stored["select"], "select"),
                heads_of(stored["heads"]) if "heads" in stored else None,
                stored["files"],
                {of: _category(figures) for of, figures in stored["categories"].items()},
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"{without_secrets(url)}: damaged, or of another version ({why}); `longattn select` "
                "writes it anew"
            ) from None

    def rule(self) -> dict[str, Any]:
        """What decided it, as the footers of its files have it, too."""
        rule: dict[str, Any] = {"select": self.select.record()}
        if self.heads is not None:
            rule["heads"] = heads_record(self.heads)
        return rule

    def to_dict(self) -> dict[str, Any]:
        categories = {name: of.to_dict() for name, of in self.categories.items()}
        return {**self.rule(), "files": self.files, "categories": categories}

    def columns(self, folder: OutputFolder, labelled: Collection[str]) -> Columns:
        """The columns that it was made of."""
        return columns_of(folder, self.select, labelled, self.heads)


def _category(figures: Mapping[str, Any]) -> CategorySelection:
    known = {of.name for of in fields(CategorySelection)} & figures.keys()
    return CategorySelection(**{name: figures[name] for name in known})
