"""What decides a score beside the window and its ids; its parts make the fingerprint of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longattn.windows.tokenizer import load_tokenizer

if TYPE_CHECKING:  # not imported by workers that do not score: transformers takes them 4 s
    from longattn.scoring.checkpoint import Checkpoint


DEFINITION = 1  # version of what a score means; a change of any number raises it


@dataclass(frozen=True)
class ScoreSettings:
    """What decides a score, beside the window."""

    model: str
    min_distance: int | tuple[int, ...] | None
    rope_theta: float | None
    add_bos: bool | None
    dtype: str | None
    query_stride: int = 1

    def distances(self, window: int) -> list[int]:
        k = window // 4 if self.min_distance is None else self.min_distance
        return [k] if isinstance(k, int) else list(k)

    def parts(self, checkpoint: Checkpoint, window: int, dtype: str) -> dict[str, Any]:
        """Everything that goes into the fingerprint of the scores."""
        distances = self.distances(window)
        parts = {
            "definition": DEFINITION,
            "weights": checkpoint.fingerprint(),
            "tokenizer": load_tokenizer(self.model).fingerprint,
            "window": window,
            "min_distance": distances if len(distances) > 1 else distances[0],
            "rope_theta": self.rope_theta,
            "bos": self.bos(checkpoint),
            "dtype": dtype,
        }
        return parts if self.query_stride == 1 else {**parts, "query_stride": self.query_stride}

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
                    f"scorer.add_bos: {self.model} has no BOS token; null or false is allowed"
                )
        return bos
