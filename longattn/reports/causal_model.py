"""What a whole causal language model says of a window: the dear baselines of an evaluation.

The loss gap is how much better the model predicts with all of the window before it than with a short
context, as LongFilter and LongWanjuan use it. The far attention of every layer is what LADM goes by,
here without its spans: DS as the first layer has it, meant over all layers and heads.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longattn.scoring.language_model import LanguageModel
from longattn.scoring.layers import LayerScorer
from longattn.text import without_secrets
from longattn.windows.tokenizer import load_tokenizer


class CausalModel:
    """A causal language model whose tokenizer is that of the scorer.

    Args:
        model: a local folder, a hub id or the URL of a folder on a store; its weights are safetensors.
        tokenizer: fingerprint of the scorer's tokenizer, for the pairs must be of the same tokens.
        tokens: of the longest window.

    Raises:
        ValueError: another tokenizer, or as `LayerScorer.from_pretrained`.
    """

    def __init__(self, model: str, tokenizer: str, tokens: int) -> None:
        if load_tokenizer(model).fingerprint != tokenizer:
            shown = without_secrets(model)
            raise ValueError(f"causal model {shown!r}: its tokenizer is not that of the scorer")
        self.layers = LayerScorer.from_pretrained(model, tokens=tokens)

    @property
    def model(self) -> LanguageModel:
        return self.layers.model

    @torch.inference_mode()
    def scores(self, window_l: NDArray[np.integer], min_distance: int) -> tuple[float, float]:
        """Loss gap, in nats a token, and DS over all layers, of one window.

        The gap is over the later halves of consecutive parts of `min_distance` tokens, 2 or more, the
        first part left out: there the short context, the part alone, holds half of `min_distance` or
        more.
        """
        ids_l = self.model.sent(window_l)
        parts, half = len(ids_l) // min_distance, min_distance // 2
        full_lc, scores = self.layers.with_hidden(ids_l, min_distance)
        ids_pl = ids_l[: parts * min_distance].view(parts, min_distance)[1:]
        full_plc = full_lc[min_distance - 1 : parts * min_distance - 1].unflatten(
            0, (parts - 1, min_distance)
        )
        full_r = self._losses(full_plc[:, half:], ids_pl[:, half:])
        short_plc = self.model.hidden(ids_pl)
        short_r = self._losses(short_plc[:, half - 1 : -1], ids_pl[:, half:])
        return float((short_r - full_r).mean()), float(scores.ds.mean())

    def _losses(self, before_plc: Tensor, targets_pl: Tensor) -> Tensor:
        """Cross entropy of each target given the hidden state before it."""
        return self.model.losses(before_plc.flatten(0, 1), targets_pl.flatten())
