"""Loss gap: how much better a language model predicts a window's tokens with all of it before them.

For position i >= S (`short`) of a window, gap(i) = loss(x_i | the last S' tokens) - loss(x_i | all before),
in nats, S <= S' < 2 S. The short losses are of chunks of 2 S tokens that overlap by half, of which the
second half is scored. For i < 2 S the short context is all there is, and the gap is 0 without a pass.
    mean      the mean of gap(i) over i >= S
    weighted  the mean of gap(i) * p(x_i | all before), as LongFilter weighs it (arXiv 2510.25804)
One pass over the window and one over its chunks: at S = L/8 about 2.2 times the window's own pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longattn.scoring.language_model import Ids, LanguageModel

_CHUNK_TOKENS = 65536  # of the chunks that run as one batch


@dataclass(frozen=True)
class LossGaps:
    """Gaps of some windows, (windows,) each, float64, in nats a token; NaN for windows of 2 S or less."""

    mean: NDArray[np.float64]
    weighted: NDArray[np.float64]


class LossGapScorer:
    """Loss gaps of windows by one causal language model.

    Example:
        scorer = LossGapScorer.from_pretrained("folder/of/a/model", tokens=32768, short=4096)
        gaps = scorer.score([ids])
        gaps.mean[0], gaps.weighted[0]
    """

    def __init__(self, model: LanguageModel, short: int) -> None:
        if short < 1:
            raise ValueError(f"short {short}: allowed: 1 or more")
        self.model, self.short = model, short

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        tokens: int,
        short: int,
        device: str | torch.device | None = None,
        dtype: str | None = None,
    ) -> LossGapScorer:
        """Load a model for windows of so many tokens and a short context of `short`.

        Raises:
            ValueError: `short` not below half of `tokens`, or as `LanguageModel.from_pretrained`.
        """
        if not 1 <= short < tokens / 2:
            raise ValueError(
                f"short {short}: allowed: 1 to {(tokens - 1) // 2}, less than half of the window "
                f"of {tokens} tokens"
            )
        at_once = max(tokens, 2 * short * len(_groups(tokens, short)[0]))
        return cls(
            LanguageModel.from_pretrained(model, tokens=at_once, device=device, dtype=dtype), short
        )

    @torch.inference_mode()
    def score(self, windows: Sequence[Ids]) -> LossGaps:
        """Gaps of each window; the same bits whatever else is in the batch, since each runs alone.

        Args:
            windows: (length,) integer ids of the model's own tokenizer each, of any lengths.

        Raises:
            ValueError: an id outside the model's vocabulary.
        """
        # Nothing waits for the device until all windows are under way.
        sums = [self._sums(self.model.sent(ids_l)) for ids_l in windows]
        told = torch.stack(sums).cpu().numpy() if sums else np.empty((0, 2))
        return LossGaps(told[:, 0], told[:, 1])

    @torch.inference_mode()
    def token_gaps(self, ids_l: Ids) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """gap(i) and p(x_i | all before) of positions i = 2 S .. L - 1 of one window."""
        gap_r, loss_r = self._gaps(self.model.sent(ids_l))
        return gap_r.cpu().numpy(), (-loss_r).exp().cpu().numpy()

    def _sums(self, ids_l: Tensor) -> Tensor:
        positions = len(ids_l) - self.short
        if len(ids_l) <= 2 * self.short:
            return torch.full((2,), float("nan"), dtype=torch.float64, device=self.model.device)
        gap_r, loss_r = self._gaps(ids_l)
        return torch.stack([gap_r.sum(), (gap_r * (-loss_r).exp()).sum()]) / positions

    def _gaps(self, ids_l: Tensor) -> tuple[Tensor, Tensor]:
        """gap(i) and loss(x_i | all before) for i >= 2 S, float64."""
        short, model = self.short, self.model
        full_lc = model.hidden(ids_l[None])[0]
        full_r = model.losses(full_lc[2 * short - 1 : -1], ids_l[2 * short :])
        del full_lc
        groups = _groups(len(ids_l), short)
        short_r = torch.cat([self._chunk_losses(ids_l, starts) for starts in groups])
        full_r = full_r.double()
        return short_r[: len(full_r)].double() - full_r, full_r

    def _chunk_losses(self, ids_l: Tensor, starts: range) -> Tensor:
        """Losses of the second halves of chunks of 2 S; what the window lacks is filled with id 0."""
        short = self.short
        missing = max(0, starts[-1] + 2 * short - len(ids_l))
        padded = torch.nn.functional.pad(ids_l[starts[0] :], (0, missing))
        chunk_bl = padded.unfold(0, 2 * short, short)[: len(starts)]
        hidden_bsc = self.model.hidden(chunk_bl)[:, short - 1 : -1]
        return self.model.losses(hidden_bsc.flatten(0, 1), chunk_bl[:, short:].flatten())


def _groups(length: int, short: int) -> list[range]:
    """Starts of the chunks that run as one batch: a function of the length alone.

    A chunk starts at each multiple of S with a token to score for which it is not all before it.
    """
    starts = range(short, length - short, short)
    size = max(1, _CHUNK_TOKENS // (2 * short))
    return [starts[i : i + size] for i in range(0, len(starts), size)]
