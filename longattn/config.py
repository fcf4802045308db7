"""Settings of a run: typed, keyword-only, read from YAML. Every default lives here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from longattn.errors import ConfigError
from longattn.text import without_secrets

SCORER_BATCH = {"cuda": 32, "cpu": 8}
"""Windows a scorer is handed at a time by default: a GPU pauses between two batches."""


def _count(value: Any) -> Any:
    """`1.5B`, `200K`, `3e9` or a plain number -> int."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE]\+?[0-9]+)?)\s*([KMGBT]?)\s*", value)
        if match:
            scale = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
            return round(float(match[1]) * scale[match[2]])
    return round(value) if isinstance(value, float) else value


def check_category(value: Any) -> str:
    """Raises ValueError for a name that is no folder of its own below the output."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", value):
        raise ValueError(
            "a category names a folder: 1 to 64 of A-Z a-z 0-9 _ . -, not starting with . - or _"
        )
    return value


def _range(value: Any) -> Any:
    if isinstance(value, int):
        value = (value, value)
    match value:
        case [int(smallest), int(largest)] if smallest > largest:
            raise ValueError("the first number is the smallest pool, the second the largest")
    return value


Count = Annotated[int, BeforeValidator(_count), Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Pool = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)] | None], BeforeValidator(_range)
]


Distances = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, int) else value),
    Field(min_length=1),
]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Sample(Settings):
    """A share of a category's windows, decided by a hash of `data_id` alone."""

    fraction: Fraction
    seed: int = 0


class Source(Settings):
    """Raw documents of one category."""

    category: Annotated[str, AfterValidator(check_category)] = Field(
        description="name under which its windows are compared and kept"
    )
    path: str = Field(min_length=1, description="file, folder or glob; local or any fsspec URL")
    text_column: str = Field("content", min_length=1, description="column that holds the text")
    sample: Sample | None = Field(None, description="take only a share of the windows")


class Window(Settings):
    tokens: int = Field(32768, ge=16, description="window length in tokens")


class Scorer(Settings):
    model: str = Field("builtin", min_length=1, description="builtin, a local folder, or a hub id")
    min_distance: Distances | None = Field(
        None,
        description="the paper's k, in tokens; null: a quarter of the window. A list scores several "
        "from one Q K^T: the first is `ds`, `variance`, each other k in columns `ds_k<k>`, `variance_k<k>`",
    )
    query_stride: int = Field(
        1,
        ge=1,
        description="score every s-th row: an estimate, at 0.4 (4) to 0.2 (16) of the cost; 1: exact",
    )
    rope_theta: float | None = Field(None, gt=0, description="null: the checkpoint's own")
    add_bos: bool | None = Field(None, description="null: what the checkpoint's tokenizer does")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="of the products; null: bfloat16 on a GPU, float32 on a CPU. float16 errs a tenth as much "
        "as bfloat16 at the same speed; a model that leaves its range is refused",
    )
    batch: int | None = Field(
        None,
        ge=1,
        description="windows handed to a scorer at a time; null: 32 on a GPU, 8 on a CPU",
    )


class Keep(Settings):
    """How much of each category is kept: exactly one of the three."""

    fraction: Fraction | None = None
    tokens: Count | None = None
    count: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Keep:
        if sum(v is not None for v in (self.fraction, self.tokens, self.count)) != 1:
            raise ValueError("exactly one of fraction, tokens, count")
        return self


class Select(Settings):
    alpha: float = Field(0.5, ge=0, allow_inf_nan=False, description="weight of DU in LDS (Eq. 8)")
    standardize: Literal["zscore", "minmax"] = "zscore"
    rank_by: Literal["lds", "recurrence", "recurrence_rarity", "recurrence_pairs"] = Field(
        "lds", description="the paper's LDS, or a far recurrence (longattn/windows/recurrence.py)"
    )
    overlap: Literal["allow", "prefer_distinct"] = Field(
        "allow",
        description="prefer_distinct: windows that share tokens with kept ones count for less (longattn/overlap.py)",
    )
    keep: Keep = Keep(fraction=0.5)
    second_pass: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of windows scored with scorer.query_stride: score those near the threshold exactly, "
        "until exact scores of all, with LDS standardised as a drawn sample tells, would select others with "
        "this probability only (longattn/second_pass.py)",
    )

    @model_validator(mode="after")
    def _by_lds(self) -> Select:
        other = (self.standardize, self.rank_by, self.overlap) != ("zscore", "lds", "allow")
        if self.second_pass is not None and other:
            raise ValueError("second_pass goes with zscore, rank_by lds and overlap allow alone")
        return self


class Workers(Settings):
    """Pools as [smallest, largest]; null: as large as the cluster is, or can grow to.

    The smallest pool is asked of a cluster at once, and scorers for all GPUs that are free. From there
    Ray Data doubles what it asks for, by up to 32 GPUs and 256 CPUs, every 10 s.
    """

    window: Pool = Field((1, None), description="smallest and largest pool of CPU window actors")
    score: Pool = Field((1, None), description="smallest and largest pool of scoring actors")
    gpus_per_scorer: float | None = Field(
        None, ge=0, description="null: 1 where the cluster has GPUs, else 0"
    )
    wait_seconds: float = Field(
        1800, gt=0, description="a run that finds no GPU for a scorer within this time stops"
    )
    select: Literal["auto", "local", "ray"] = Field(
        "auto", description="where to select; auto: on Ray where score columns outgrow the machine"
    )


class Config(Settings):
    """One run. `Config.from_yaml(path)` reads it; `--set a.b=c` and `overrides` change any field."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    output: str = Field(min_length=1, description="folder, local or any fsspec URL")
    window: Window = Window()
    scorer: Scorer = Scorer()
    select: Select = Select()
    workers: Workers = Workers()
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="bad records over records (once 1000), or bytes after a broken place over all "
        "bytes (of 1 GiB or more), that stop a run",
    )
    max_record_bytes: Count = Field(512 * 2**20, description="a larger record is quarantined")
    file_bytes: Count = Field(512 * 2**20, description="aimed size of a selected Parquet file")

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        distances, stride = self.min_distances, self.scorer.query_stride
        if max(distances) > self.window.tokens:
            raise ValueError(
                f"scorer.min_distance {max(distances)} is over window.tokens {self.window.tokens}"
            )
        if len(set(distances)) < len(distances):
            raise ValueError(f"scorer.min_distance {list(distances)} names one twice")
        if stride > max(1, self.window.tokens - max(distances)):
            raise ValueError(f"scorer.query_stride {stride} is over the rows that see far")
        if self.select.second_pass is not None and stride == 1:
            raise ValueError("select.second_pass is for a scorer.query_stride over 1: all is exact")
        samples: dict[str, Sample | None] = {}
        for source in self.sources:
            if samples.setdefault(source.category, source.sample) != source.sample:
                raise ValueError(
                    f"sources of category {source.category!r} have different sample settings; "
                    "a category has one"
                )
        return self

    @property
    def min_distance(self) -> int:
        """The paper's k in tokens; of several, the first."""
        return self.min_distances[0]

    @property
    def min_distances(self) -> tuple[int, ...]:
        return self.scorer.min_distance or (self.window.tokens // 4,)

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "config") -> Config:
        """Check plain values; raises ConfigError, one line."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "config"
            given = first["input"] if first["type"] != "missing" else "nothing"
            shown = "" if isinstance(given, (dict, Settings)) else f" (given: {given!r:.120})"
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{where}: {field}: {message}{shown}") from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Config:
        """Read YAML from a local path or fsspec URL, apply `a.b=value` overrides, check.

        Raises ConfigError in one line that names the file, the field and what is allowed.
        """
        try:
            with fsspec.open(str(path), "rt", encoding="utf-8") as file:
                values = yaml.safe_load(file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read as a config: {error}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a mapping with `sources` and `output` is wanted")
        for override in overrides:
            _override(values, override)
        return cls.parse(values, str(path))

    def to_yaml(self) -> str:
        """The settings as YAML, with user names and passwords in URLs masked."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["output"] = without_secrets(values["output"])
        for source in values["sources"]:
            source["path"] = without_secrets(source["path"])
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def parse_count(name: str, text: str) -> int:
    """`200M` -> 200000000; raises ConfigError naming `name`."""
    try:
        return TypeAdapter(Count).validate_python(text)
    except ValidationError:
        raise ConfigError(f"{name} {text}: a positive number, as in 200M, is wanted") from None


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override}: field=value is wanted, as in select.alpha=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not YAML") from None
    if parts[:2] == ["select", "keep"] and len(parts) == 3:  # one of three: the new one replaces
        parts, value = parts[:2], {parts[2]: value}
    node: Any = values
    for i, part in enumerate(parts):
        where = ".".join(parts[: i + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"--set {override}: {where}: an index from 0 to {len(node) - 1} is wanted"
                )
            key: Any = int(part)
        elif isinstance(node, dict):
            key = part
        else:
            raise ConfigError(f"--set {override}: {where}: the value above it has no fields")
        if i == len(parts) - 1:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
