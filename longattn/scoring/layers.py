"""Dependency strength and variance of any layers of a language model, by the attention it runs with.

The paper scores the first layer alone, whose queries and keys are tables over the vocabulary. Those of
a deeper layer depend on the whole text, so the model is run, up to the last layer named and no
further; each named layer's DS and variance are as `statistics` defines them. Layers with a sliding
window have no far attention and are refused; soft-capped scores are taken as they are capped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longattn.scoring.language_model import Ids, LanguageModel
from longattn.scoring.linear_attention import Attended, capped_probabilities, observed
from longattn.scoring.statistics import attention_sums, statistics_from_sums

_BLOCK_ROWS = 1024  # rows of one head whose capped probabilities are held at a time


@dataclass(frozen=True)
class LayerScores:
    """Statistics of some windows.

    Attributes:
        layers: indices of the layers, ascending.
        ds: (windows, layers, heads) dependency strength, float64.
        variance: (windows, layers, heads) variance of far attention, float64.
    """

    layers: tuple[int, ...]
    ds: NDArray[np.float64]
    variance: NDArray[np.float64]

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """DS and variance, (windows,) each: means over layers and heads."""
        return self.ds.mean((1, 2)), self.variance.mean((1, 2))

    def layer_means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """DS and variance, (windows, layers) each: means over heads."""
        return self.ds.mean(2), self.variance.mean(2)

    def by_head(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """DS and variance, (windows, layers x heads) each, layer by layer."""
        rows, heads = len(self.ds), self.ds.shape[1] * self.ds.shape[2]
        return self.ds.reshape(rows, heads), self.variance.reshape(rows, heads)


class LayerScorer:
    """DS and variance of windows by some layers of one causal language model.

    Example:
        scorer = LayerScorer.from_pretrained("folder/of/a/model", tokens=8192, layers=[3, 7])
        scores = scorer.score([ids], min_distance=2048)
        scores.ds[0].mean(1)                                # of each layer

    Raises:
        ValueError: a layer that the model has not, or whose attention does not look far; layers of
            different numbers of heads.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int] | Literal["all"]) -> None:
        self.model = model
        modules = attention_modules(model)
        heads = _far_heads(model, modules)
        far = list(heads)
        chosen = far if layers == "all" else sorted(set(layers))
        if not chosen or not set(chosen) <= set(far):
            raise ValueError(
                f"layers {list(layers) if layers != 'all' else layers} of causal model {model.name!r}: "
                f"allowed: those with full attention, {_ranges(far) or 'of which it has none'}"
            )
        if len({heads[layer] for layer in chosen}) > 1:
            raise ValueError(
                f"causal model {model.name!r}: layers of different numbers of heads, "
                f"{', '.join(f'{layer}: {heads[layer]}' for layer in chosen)}; name those of one number"
            )
        self.layers, self.heads = tuple(chosen), heads[chosen[0]]
        self._modules = [modules[i] for i in self.layers]

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        tokens: int,
        layers: Sequence[int] | Literal["all"] = "all",
        device: str | torch.device | None = None,
        dtype: str | None = None,
    ) -> LayerScorer:
        """Load a model for windows of so many tokens.

        Raises:
            ValueError: as the class, or as `LanguageModel.from_pretrained`.
        """
        loaded = LanguageModel.from_pretrained(model, tokens=tokens, device=device, dtype=dtype)
        return cls(loaded, layers)

    @torch.inference_mode()
    def score(self, windows: Sequence[Ids], min_distance: int) -> LayerScores:
        """Statistics of each window; the same bits whatever else is in the batch.

        Args:
            windows: (length,) integer ids of the model's tokenizer each, at least 2.
            min_distance: the paper's k, in tokens, 1 to the shortest window's length.

        Raises:
            ValueError: an id outside the vocabulary, or a distance outside what is allowed.
        """
        lengths = [len(ids_l) for ids_l in windows]
        if not 1 <= min_distance <= min(lengths, default=min_distance):
            raise ValueError(
                f"min_distance {min_distance}: allowed: 1 to the shortest window's length, "
                f"{min(lengths, default=0)}"
            )
        # Nothing waits for the device until all windows are under way.
        sums = [self._sums(self.model.sent(ids_l), min_distance) for ids_l in windows]
        if not sums:
            return LayerScores(self.layers, *np.zeros((2, 0, len(self.layers), self.heads)))
        s_n2mh = torch.stack(sums).cpu()
        told = [
            statistics_from_sums(s1_mh, s2_mh, length)
            for (s1_mh, s2_mh), length in zip(s_n2mh, lengths, strict=True)
        ]
        ds, variance = (torch.stack(values).numpy() for values in zip(*told, strict=True))
        return LayerScores(self.layers, ds, variance)

    @torch.inference_mode()
    def with_hidden(self, ids_l: Tensor, min_distance: int) -> tuple[Tensor, LayerScores]:
        """Last hidden states of one window, (length, hidden), and its statistics, of one pass."""
        sums: list[Tensor] = []
        hidden = _run(
            self.model,
            self._modules,
            lambda attended: sums.append(torch.stack(_far_sums(attended, min_distance))),
            ids_l,
        )
        assert hidden is not None
        s1_mh, s2_mh = torch.stack(sums, 1).cpu()
        ds, variance = statistics_from_sums(s1_mh, s2_mh, len(ids_l))
        return hidden[0], LayerScores(self.layers, ds[None].numpy(), variance[None].numpy())

    def _sums(self, ids_l: Tensor, min_distance: int) -> Tensor:
        """S1 and S2, (2, layers, heads)."""
        sums: list[Tensor] = []

        def observe(attended: Attended) -> None:
            sums.append(torch.stack(_far_sums(attended, min_distance)))
            if len(sums) == len(self._modules):
                raise _LastLayerSeen

        _run(self.model, self._modules, observe, ids_l)
        return torch.stack(sums, 1)


class _LastLayerSeen(Exception):  # noqa: N818
    """Ends a pass where nothing after it is needed."""


def attention_modules(model: LanguageModel) -> list[Any]:
    """The attention of each layer. Raises ValueError where a family is built otherwise."""
    try:
        return [layer.self_attn for layer in model.model.base_model.layers]
    except AttributeError as error:
        raise ValueError(
            f"causal model {model.name!r} is refused: {type(model.model).__name__} is not built "
            f"of layers with attention: {error}"
        ) from error


def _run(
    model: LanguageModel, modules: Sequence[Any], observe: Callable[[Attended], None], ids_l: Tensor
) -> Tensor | None:
    """The last hidden states; None where `observe` has ended the pass."""
    with ExitStack() as stack, suppress(_LastLayerSeen):
        for module in modules:
            stack.enter_context(observed(module, observe))
        return model.hidden(ids_l[None])
    return None


@torch.inference_mode()
def _far_heads(model: LanguageModel, modules: Sequence[Any]) -> dict[int, int]:
    """Heads of each layer whose attention looks at all before it, as a run of a few tokens tells."""
    seen: list[Attended] = []
    _run(model, modules, seen.append, torch.arange(4, device=model.device))
    if len(seen) != len(modules):
        raise ValueError(
            f"causal model {model.name!r} is refused: {len(seen)} of its {len(modules)} layers "
            "attend by queries and keys"
        )
    return {
        i: attended.q_bhld.shape[1]
        for i, attended in enumerate(seen)
        if attended.sliding_window is None
    }


def _far_sums(attended: Attended, min_distance: int) -> tuple[Tensor, Tensor]:
    """S1 and S2 of each head of window 0, (heads,) float64 each.

    Of the keys their mean is taken first: softmax does not change, and rounding does less where keys
    share a large part (Qwen2's biases).
    """
    if attended.softcap is not None:
        return _capped_sums(attended, min_distance)
    dtype = torch.promote_types(attended.k_bgld.dtype, torch.float32)
    k_bgld = attended.k_bgld[:1].to(dtype)
    k_bgld = (k_bgld - k_bgld.mean(2, keepdim=True)).to(attended.k_bgld.dtype)
    q_bhrd = attended.q_bhld[:1, :, min_distance:]
    if q_bhrd.device.type == "cpu":
        s1_hk, s2_hk = attention_sums(q_bhrd[0], k_bgld[0], [min_distance], attended.scaling)
        return s1_hk[:, 0], s2_hk[:, 0]
    from longattn.scoring import triton_kernel

    first_b = torch.full((1,), min_distance, dtype=torch.int32, device=q_bhrd.device)
    q_bhrd = (q_bhrd.to(dtype) * (attended.scaling * math.log2(math.e))).to(k_bgld.dtype)
    s1_bhk, s2_bhk = triton_kernel.attention_sums(
        q_bhrd, k_bgld, [min_distance], first_b, reference=True
    )
    return s1_bhk[0, :, 0], s2_bhk[0, :, 0]


def _capped_sums(attended: Attended, min_distance: int) -> tuple[Tensor, Tensor]:
    _, heads, length, _ = attended.q_bhld.shape
    s1_h, s2_h = torch.zeros(2, heads, dtype=torch.float64, device=attended.q_bhld.device)
    for head in range(heads):
        for start in range(min_distance, length, _BLOCK_ROWS):
            p_rl = capped_probabilities(attended, start, min(start + _BLOCK_ROWS, length), head)
            far_rl = p_rl.tril(start - min_distance)
            s1_h[head] += far_rl.sum(1).double().sum()
            s2_h[head] += far_rl.square().sum(1).double().sum()
    return s1_h, s2_h


def _ranges(numbers: Sequence[int]) -> str:
    """0 to 3, 5, 7: what a list of ascending numbers holds."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
