"""What decides a score beside the window and its ids; all of it together makes a fingerprint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from longattn.config import Config
from longattn.text import without_secrets
from longattn.windows.tokenizer import load_tokenizer

if TYPE_CHECKING:  # not imported by workers that do not score: transformers takes them 4 s
    from longattn.scoring.checkpoint import Checkpoint


# Version of what a score means; a change of any number raises it. 2: keys are centred before they are
# rounded, and float32 on a GPU is three products of float16 parts.
DEFINITION = 2
KEYS = "centred"


@dataclass(frozen=True)
class ScoreParts:
    """Everything that decides a score, by value: two runs with equal parts give equal scores."""

    definition: int
    weights: str
    tokenizer: str
    window: int
    min_distances: tuple[int, ...]
    rope_theta: float | None
    bos: int | None
    dtype: str
    keys: str
    query_stride: int = 1

    @property
    def min_distance(self) -> int:
        """The paper's k in tokens; of several, the first."""
        return self.min_distances[0]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreParts:
        k = values["min_distance"]
        distances = tuple(k) if isinstance(k, list) else (k,)
        others = {name: value for name, value in values.items() if name != "min_distance"}
        return cls(min_distances=distances, **others)

    def to_dict(self) -> dict[str, Any]:
        """As `run.json` holds it: one distance as a number, a stride of 1 left out."""
        values = dict(vars(self))
        distances = list(values.pop("min_distances"))
        values["min_distance"] = distances if len(distances) > 1 else distances[0]
        if self.query_stride == 1:
            del values["query_stride"]
        return values

    @property
    def fingerprint(self) -> str:
        """32 hex digits over all parts."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ScoreSettings:
    """The settings that decide a score, beside the window."""

    model: str
    min_distance: int | tuple[int, ...] | None
    rope_theta: float | None
    add_bos: bool | None
    dtype: str | None
    query_stride: int = 1

    @classmethod
    def of(cls, config: Config) -> ScoreSettings:
        scorer = config.scorer
        return cls(
            scorer.model,
            config.min_distances,
            scorer.rope_theta,
            scorer.add_bos,
            scorer.dtype,
            scorer.query_stride,
        )

    def distances(self, window: int) -> list[int]:
        k = window // 4 if self.min_distance is None else self.min_distance
        return [k] if isinstance(k, int) else list(k)

    def parts(self, checkpoint: Checkpoint, window: int, dtype: str) -> ScoreParts:
        """All that decides the scores of windows of this length, computed in `dtype`."""
        return ScoreParts(
            definition=DEFINITION,
            weights=checkpoint.fingerprint(),
            tokenizer=load_tokenizer(self.model).fingerprint,
            window=window,
            min_distances=tuple(self.distances(window)),
            rope_theta=self.rope_theta,
            bos=self.bos(checkpoint),
            dtype=dtype,
            keys=KEYS,
            query_stride=self.query_stride,
        )

    def bos(self, checkpoint: Checkpoint) -> int | None:
        """The id put in front when scoring, or None.

        Raises ValueError where one is demanded and the checkpoint has none.
        """
        if self.add_bos is False:
            return None
        bos = load_tokenizer(self.model).bos_token_id
        if self.add_bos and bos is None:
            bos = checkpoint.config.bos_token_id
            if bos is None:
                raise ValueError(
                    f"scorer.add_bos: {without_secrets(self.model)} has no BOS token; null or "
                    "false is allowed"
                )
        return bos
