"""Further scores of windows: what decides their numbers, their columns, and what computes them.

A `FurtherScorer` takes windows of one length, as ids of the tokenizer that cut them and as text, and
gives the columns of one `Score` of the settings. A model with another tokenizer is given its own ids
of the same text.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from longattn.models import is_url, model_folder, require_reachable, whole_model
from longattn.settings.scores import Score, head_columns, single_values
from longattn.text import without_secrets
from longattn.windows.measures import GRAM, LEVEL, compression_ratio, repetition
from longattn.windows.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from longattn.scoring.layers import LayerScorer
    from longattn.scoring.loss_gap import LossGapScorer

Ids = NDArray[np.integer]
Columns = dict[str, list[Any]]
"""A value a window, None where there is none."""

DEFINITION = 1
"""Version of what these scores mean; a change of any number raises it."""
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
"""Of a model, where the settings name none."""
OWN_ROOM = 2  # a text's ids of another tokenizer, over the window's: room is made for so many


@dataclass(frozen=True)
class TableParts:
    """Everything that decides a score table beside the labelled windows, by value."""

    kind: str
    window: int
    settings: Mapping[str, Any]
    """Of the kind: `short`, or `layers` and `min_distance`, or what a user's file is."""
    where: list[dict[str, Any]] = field(default_factory=list)
    weights: str | None = None
    tokenizer: str | None = None
    """Of a model that has its own ids of the text; None where it takes those of the windows."""
    dtype: str | None = None
    definition: int = DEFINITION

    @property
    def fingerprint(self) -> str:
        """32 hex digits over all parts."""
        text = json.dumps(asdict(self), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def differences(self, other: TableParts) -> str:
        """`dtype: there 'float32', here 'bfloat16'` and the like, from other parts to these."""
        there, here = asdict(other), asdict(self)
        return ", ".join(
            f"{name}: there {there[name]!r}, here {here[name]!r}"
            for name in here
            if there[name] != here[name]
        )


def table_parts(
    score: Score, *, window: int, min_distance: int, tokenizer: str | None, dtype: str | None
) -> TableParts:
    """The parts of a score of windows; hashes the model's weights.

    Args:
        window: tokens of a window.
        min_distance: the paper's k, of the attention of layers.
        tokenizer: fingerprint of that which cut the windows; None where it is not known.
        dtype: of the model.

    Raises:
        ValueError: no such model, or one without weights or a tokenizer.
    """
    where = [bound.model_dump(mode="json", exclude_none=True) for bound in score.where]
    parts = TableParts(score.kind, window, {"level": LEVEL, "gram": GRAM}, where)
    if score.model is None:
        return parts
    require_reachable(score.model)
    own = load_tokenizer(score.model).fingerprint
    settings: dict[str, Any] = {"short": score.short_of(window)}
    if score.kind == "attention":
        layers = score.layers if score.layers == "all" else sorted(set(score.layers))
        settings = {"layers": layers, "min_distance": min_distance}
    return replace(
        parts,
        settings=settings,
        weights=weights_fingerprint(score.model),
        tokenizer=None if own == tokenizer else own,
        dtype=dtype,
    )


def weights_fingerprint(model: str) -> str:
    """32 hex digits over the config and every weight of a model: XXH3, some GB a second.

    Raises ValueError where there are none.
    """
    files_of_hub = ("*.safetensors", "*.json")
    folder = Path(whole_model(model)) if is_url(model) else model_folder(model, files_of_hub)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"model {without_secrets(model)!r}: no weights in safetensors in {folder}")
    digest = xxhash.xxh3_128()
    for path in [folder / "config.json", *files]:
        if not path.is_file():
            raise ValueError(f"model {model!r}: no {path.name} in {folder}")
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        _add_file(digest, path)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    step = 1 << 26
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start in range(0, len(data), step):
            digest.update(data[start : start + step])


def table_schema(columns: Sequence[str], scorer: FurtherScorer) -> pa.Schema:
    """data_id and the columns of a table; their metadata says whose ids were scored.

    Columns of layers and of heads are lists. Those of heads lie layer by layer, and the metadata has
    `shape`, layers and heads of each, and `layers`, their numbers, as JSON.

    Args:
        columns: of the score, as its record has them; tables of earlier versions have none of heads.
    """
    score, about = scorer.score, {}
    if scorer.parts.tokenizer is not None:
        about = {
            "ids": f"of the text, by the tokenizer of {Path(without_secrets(score.model or '')).name}"
        }
    layered = {}
    if scorer.layers:
        shape = [len(scorer.layers), scorer.heads]
        layered = {"shape": json.dumps(shape), "layers": json.dumps(scorer.layers)}
    single = single_values(score.kind, columns)
    fields = [
        pa.field(
            name,
            pa.float64() if name in single else pa.list_(pa.float64()),
            metadata=(about | layered if name in head_columns(score.name) else about) or None,
        )
        for name in columns
    ]
    return pa.schema([pa.field("data_id", pa.string()), *fields])


class FurtherScorer:
    """Computes one score of the settings, for windows of one length."""

    def __init__(
        self, score: Score, parts: TableParts, device: str | None = None, threads: int = 0
    ) -> None:
        """Load what the score needs.

        Args:
            device: "cpu" or "cuda"; a GPU if there is one by default.
            threads: of torch on a CPU; 0: torch's own number.

        Raises:
            ValueError: a model that is not there, cannot be run truthfully, or does not fit.
        """
        self.score, self.parts = score, parts
        self._encode: Callable[[str], Ids] | None = None
        self._gap: LossGapScorer | None = None
        self._layers: LayerScorer | None = None
        if score.model is None:
            return
        import torch  # with transformers 7 s, which measures do without

        from longattn.scoring.layers import LayerScorer
        from longattn.scoring.loss_gap import LossGapScorer

        if threads and device == "cpu":
            torch.set_num_threads(threads)
        if is_url(score.model) and weights_fingerprint(score.model) != parts.weights:
            raise ValueError(
                f"model {without_secrets(score.model)}: it changed since the run began; run again"
            )
        if parts.tokenizer is not None:
            own = load_tokenizer(score.model)
            self._encode = lambda text: own.encode(text.encode()).ids
        tokens = parts.window * (OWN_ROOM if self._encode else 1)
        if score.kind == "loss_gap":
            self._gap = LossGapScorer.from_pretrained(
                score.model,
                tokens=tokens,
                short=parts.settings["short"],
                device=device,
                dtype=parts.dtype,
            )
        else:
            self._layers = LayerScorer.from_pretrained(
                score.model, tokens=tokens, layers=score.layers, device=device, dtype=parts.dtype
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that it scores; none for other kinds than attention."""
        return self._layers.layers if self._layers else ()

    @property
    def heads(self) -> int:
        """Of each of its layers."""
        return self._layers.heads if self._layers else 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns of labelled files that it reads."""
        if self.score.model is None:
            return "content", "input_ids"
        return ("content",) if self._encode else ("input_ids",)

    def columns(self, windows: pa.Table) -> Columns:
        """Its columns for some windows, with the columns `inputs`."""
        texts: list[str] = windows["content"].to_pylist() if "content" in self.inputs else []
        ids = _ids(windows["input_ids"]) if "input_ids" in self.inputs else []
        if self._encode:
            ids = [self._encode(text) for text in texts]
        names = self.score.columns
        if self.score.model is None:
            ratios = [compression_ratio(text.encode()) for text in texts]
            return dict(zip(names, (ratios, [repetition(ids_l) for ids_l in ids]), strict=True))
        batch = self.score.batch
        parts = [self._some(ids[i : i + batch]) for i in range(0, len(ids), batch)]
        return {name: [value for part in parts for value in part[name]] for name in names}

    def _some(self, ids: Sequence[Ids]) -> Columns:
        names = self.score.columns
        if self._gap:
            gaps = self._gap.score(ids)
            of = (
                [None if np.isnan(v) else float(v) for v in x] for x in (gaps.mean, gaps.weighted)
            )
            return dict(zip(names, of, strict=True))
        assert self._layers is not None
        distance = self.parts.settings["min_distance"]
        enough = [len(ids_l) >= max(2, distance) for ids_l in ids]  # another tokenizer may need few
        scores = self._layers.score(
            [ids_l for ids_l, long in zip(ids, enough, strict=True) if long], distance
        )
        told_n = (*scores.means(), *scores.layer_means(), *scores.by_head())
        rows = zip(*(x.tolist() for x in told_n), strict=True)
        empty = (None,) * len(names)
        told = [next(rows) if long else empty for long in enough]
        return {name: [row[i] for row in told] for i, name in enumerate(names)}


def _ids(column: pa.ChunkedArray) -> list[Ids]:
    return [row.values.to_numpy() for chunk in column.chunks for row in chunk]
