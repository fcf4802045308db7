"""Settings of a run: typed, keyword-only, read from YAML. Every default lives here, those of `select:`
in `settings/selection.py`, of `scores:` in `settings/scores.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from longattn.errors import ConfigError
from longattn.settings.base import Settings as Settings
from longattn.settings.base import check_category as check_category
from longattn.settings.mix import Mix as Mix
from longattn.settings.mix import MixLike as MixLike
from longattn.settings.numbers import (
    ByteSize,
    Count,
    Fraction,
    FractionOrZero,
    Pool,
    TokenLengths,
    WindowLength,
)
from longattn.settings.overrides import apply_overrides, read_mapping, read_yaml
from longattn.settings.paths import LocalOrURL, absolute_model, absolute_path, lasting
from longattn.settings.refusals import checked
from longattn.settings.scores import Score, score_faults
from longattn.settings.selection import Keep as Keep
from longattn.settings.selection import Select as Select
from longattn.text import without_secrets

SCORER_BATCH = {"cuda": 32, "cpu": 8}
"""Windows a scorer is handed at a time by default: a GPU pauses between two batches."""
CPU_BATCH_TOKENS = 1 << 15
"""On a CPU no more tokens together, or one window: each counts as scored within some seconds."""


class Sample(Settings):
    """A share of a category's windows, decided by a hash of `data_id` alone."""

    fraction: Fraction = Field(description="share of the windows, as in 0.1 or 10%")
    seed: int = Field(
        0, description="decides which; the same seed's larger share holds the smaller"
    )


class Source(Settings):
    """Raw documents of one category."""

    category: Annotated[str, AfterValidator(check_category)] = Field(
        description="name under which its windows are compared and kept"
    )
    path: LocalOrURL = Field(
        description="file, folder or glob; local (relative to where the command runs) or any "
        "fsspec URL"
    )
    text_column: str = Field(
        "content",
        min_length=1,
        description="column that holds the text; dots lead into nested ones, as in data.content",
    )
    columns: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="further columns, as [id, url], that each window carries into labelled and selected "
        "files, with one type in all files (longattn/corpus/columns.py)",
        examples=[["id", "url"]],
    )
    sample: Sample | None = Field(
        None,
        description="take only a share of the windows",
        examples=[{"fraction": "10%", "seed": 12}],
    )


class Window(Settings):
    tokens: WindowLength = Field(
        32768, description="window length in tokens; K and M are powers of two: 32K is 32768"
    )


class Scorer(Settings):
    model: Annotated[str, BeforeValidator(absolute_model)] = Field(
        "builtin",
        min_length=1,
        description="builtin, a local folder, a hub id owner/name, or a folder on s3:// or any fsspec "
        "URL, of which each machine keeps the tensors that scores need below LONGATTN_CACHE "
        "(~/.cache/longattn)",
    )
    min_distance: TokenLengths | None = Field(
        None,
        description="the paper's k, in tokens (8K is 8192); null: a quarter of the window. A list "
        "scores several "
        "from one Q K^T: the first is `ds`, `variance`, each other k in columns `ds_k<k>`, `variance_k<k>`",
    )
    query_stride: Count = Field(
        1,
        description="score every s-th row: an estimate, at 0.4 (4) to 0.2 (16) of the cost; 1: "
        "exact",
    )
    rope_theta: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="base of the rotary embedding; null: the checkpoint's own",
    )
    add_bos: bool | None = Field(
        None,
        description="a BOS token in front of each window; null: what the checkpoint's tokenizer "
        "does",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="number format of the products; null: float32 on a CPU, on a GPU the first of "
        "float16, bfloat16 and "
        "float32 (three float16 products) that keeps the scores of real text (DS within 1e-3, variance 1e-2)",
    )
    batch: Count | None = Field(
        None,
        description="windows handed to a scorer at a time; null: 32 on a GPU, up to 8 on a CPU, of 32K "
        "tokens together",
    )


class Workers(Settings):
    """Pools as [smallest, largest]; null: as large as the cluster is, or can grow to.

    The smallest pool is asked of a cluster at once, and scorers for all GPUs that are free. From there
    Ray Data doubles what it asks for, by up to 32 GPUs and 256 CPUs, every 10 s.
    """

    window: Pool = Field((1, None), description="smallest and largest pool of CPU window actors")
    score: Pool = Field((1, None), description="smallest and largest pool of scoring actors")
    gpus_per_scorer: float | None = Field(
        None,
        ge=0,
        description="0.5: two scorers share a GPU; null: 1 where the cluster has GPUs, else 0",
    )
    wait_seconds: float = Field(
        1800, gt=0, description="a run that finds no GPU for a scorer within this time stops"
    )


class Config(Settings):
    """One run. `Config.from_yaml(path)` reads it; `--set a.b=c` and `overrides` change any field."""

    sources: tuple[Source, ...] = Field(
        min_length=1, description="where the documents are; several sources may have one category"
    )
    output: Annotated[LocalOrURL, AfterValidator(lasting)] = Field(
        description="folder for the results; local or any fsspec URL"
    )
    window: Window = Field(Window(), description="what a document is cut into")
    scorer: Scorer = Field(Scorer(), description="the model that scores, and how")
    select: Select = Field(Select(), description="which windows are kept")
    scores: tuple[Score, ...] = Field(
        (),
        description="further scores of the labelled windows, computed in this order",
        examples=[
            [
                {"name": "text", "kind": "measures"},
                {"name": "gap", "kind": "loss_gap", "model": "HuggingFaceTB/SmolLM2-135M"},
            ]
        ],
    )
    workers: Workers = Field(Workers(), description="how much of a cluster is used")
    max_bad_fraction: FractionOrZero = Field(
        0.01,
        description="bad records over records (once 1000), or bytes after a broken place over all "
        "bytes (of 1 GiB or more), that stop a run",
    )
    max_record_bytes: ByteSize = Field(
        512 * 2**20, description="a larger record is quarantined; 512M is binary, 512MB decimal"
    )
    file_bytes: ByteSize = Field(
        512 * 2**20, description="aimed size of a selected Parquet file; 1G is binary, 1GB decimal"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))
        return self

    def _faults(self) -> Iterator[str]:
        """What of the settings does not go together, a line each."""
        distances, stride = self.min_distances, self.scorer.query_stride
        if max(distances) > self.window.tokens:
            yield f"scorer.min_distance {max(distances)} is over window.tokens {self.window.tokens}"
        if len(set(distances)) < len(distances):
            yield f"scorer.min_distance {list(distances)} names one twice"
        if stride > max(1, self.window.tokens - max(distances)):
            yield f"scorer.query_stride {stride} is over the rows that see far"
        samples: dict[str, Sample | None] = {}
        for source in self.sources:
            if samples.setdefault(source.category, source.sample) != source.sample:
                yield (
                    f"sources of category {source.category!r} have different sample settings; "
                    "a category has one"
                )
        carried = dict.fromkeys(name for source in self.sources for name in source.columns)
        yield from score_faults(self.scores, self.window.tokens, carried)
        named = {source.category for source in self.sources}
        for category in self.select.categories.keys() - named:
            yield (
                f"select.categories: no source has the category {category!r}; there are: "
                f"{', '.join(sorted(named))}"
            )
        if self.select.name in named:
            yield f"select.name {self.select.name!r} is a category, whose folder it would share"

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
        return checked(cls, values, where)

    @classmethod
    def of(cls, value: ConfigLike, overrides: Sequence[str] = ()) -> Config:
        """The settings that `value` is or names, with `a.b=value` overrides.

        Args:
            value: a Config, a mapping, the path or URL of a YAML file, or the output folder of an
                earlier run, which holds its settings.
            overrides: as `--set` takes them.

        Raises:
            ConfigError: one line that names the file, the field and what is allowed.
        """
        if isinstance(value, Config):
            if not overrides:
                return value
            values: dict[str, Any] = value.model_dump(exclude_unset=True)
            for name in ("sources", "scores"):
                values[name] = [dict(section) for section in values.get(name, ())]
        elif isinstance(value, Mapping):
            values = deepcopy(dict(value))
        elif not isinstance(value, (str, Path)):
            raise ConfigError(
                f"config: a path, a mapping or a Config is required, not {type(value).__name__}"
            )
        elif is_config_file(value):
            return cls.from_yaml(value, overrides)
        else:
            values = _stored_settings(str(absolute_path(value)))
        apply_overrides(values, overrides)
        return cls.parse(values, str(value) if isinstance(value, (str, Path)) else "config")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Config:
        """Read YAML from a local path or fsspec URL, apply `a.b=value` overrides, check.

        Raises ConfigError in one line that names the file, the field and what is allowed.
        """
        values = read_mapping(path, "a mapping with `sources` and `output`")
        apply_overrides(values, overrides)
        return cls.parse(values, without_secrets(str(path)))

    def to_yaml(self) -> str:
        """The settings as YAML, with user names and passwords in URLs masked."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with user names and passwords in URLs masked."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["output"] = without_secrets(values["output"])
        if "scorer" in values:
            values["scorer"]["model"] = without_secrets(values["scorer"]["model"])
        for score in values.get("scores", []):
            if "model" in score:
                score["model"] = without_secrets(score["model"])
        for source in values["sources"]:
            source["path"] = without_secrets(source["path"])
        return values


ConfigLike = Config | Mapping[str, Any] | str | Path


def output_of(value: ConfigLike) -> str:
    """The output folder that `value` is, or that the config names which it is or names.

    Raises ConfigError, one line, for what is neither.
    """
    if isinstance(value, (str, Path)) and not is_config_file(value):
        return str(absolute_path(value))
    return Config.of(value).output


def is_config_file(value: str | Path) -> bool:
    """Whether a path or URL is to be read as YAML; else it is a folder. By its name if it is not there."""
    path = Path(str(absolute_path(value)))
    if path.exists():
        return not path.is_dir()
    return path.suffix.lower() in (".yaml", ".yml", ".json")


def _stored_settings(output: str) -> dict[str, Any]:
    """The settings with which a run wrote into a folder, and the folder itself as output."""
    from longattn.storage.files import filesystem
    from longattn.storage.output_folder import OutputFolder
    from longattn.storage.records import read_record

    shown = without_secrets(output)
    record = read_record(OutputFolder(output).record("run"))
    if record is None:
        if OutputFolder(output).labelled_files():
            raise ConfigError(
                f"{shown}: its windows were written without a run, so it holds no settings; give a config "
                "whose output it is"
            )
        fs, path = filesystem(output)
        if not fs.exists(path):
            raise ConfigError(
                f"{shown}: there is no such config, and no such output folder of a run"
            )
        raise ConfigError(f"{shown}: neither a config nor the output folder of a run")
    text = str(record.get("config") or "")
    if not text:
        raise ConfigError(f"{shown}: what wrote it had no config; give one")
    if "://***@" in text:
        raise ConfigError(f"{shown}: its stored config lacks a password; give the config itself")
    try:
        settings = read_yaml(text)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"{shown}: its stored config is not YAML: {why}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{shown}: its stored config is no mapping")
    return {**settings, "output": output}
