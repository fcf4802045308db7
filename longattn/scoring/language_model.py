"""A whole causal language model, loaded to be run over windows of tokens, not to generate.

Any family that transformers loads from safetensors without remote code; bfloat16 on a GPU, float32 on
a CPU. Its hidden states are compared on loading with those of transformers' own eager attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging as transformers_logging

from longattn.models import errors_name_url, whole_model
from longattn.scoring.linear_attention import ATTENTION, BLOCK_ENTRIES, fused_backends
from longattn.text import first_line, without_secrets

Ids = NDArray[np.integer]

LOGIT_ROWS = 2048
"""Positions whose logits are held at a time: 1 GB in float32 at 128256 tokens."""
_DTYPES = {"cpu": ("float32", "float64"), "cuda": ("bfloat16", "float16", "float32")}
# Relative difference of hidden states from those of eager attention that loading accepts.
_TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
_CHECKED_TOKENS = 96
_KNOWN_LAYERS = {"full_attention", "sliding_attention", "linear_attention"}


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Transformers shows none for a block: of many actors each would draw its own into the log."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model on its device.

    Attributes:
        name: as it was asked for.
        model: transformers' own, in evaluation mode.
        device: where its weights are.
    """

    name: str
    model: Any
    device: torch.device

    @property
    def vocabulary(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        tokens: int,
        device: str | torch.device | None = None,
        dtype: str | None = None,
    ) -> LanguageModel:
        """Load a model that has room for so many tokens.

        Args:
            model: a local folder, a hub id or the URL of a folder on a store; its weights are
                safetensors.
            tokens: the most that one pass is given.
            device: "cpu" or "cuda[:i]"; a GPU if there is one by default.
            dtype: bfloat16 on a GPU and float32 on a CPU by default.

        Raises:
            ValueError: no such model, one that cannot be run truthfully, or one that does not fit.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type not in _DTYPES:
            raise ValueError(f"device {str(device)!r}: allowed: {', '.join(_DTYPES)}")
        allowed = _DTYPES[place.type]
        name = dtype or allowed[0]
        if name not in allowed:
            raise ValueError(f"dtype {name!r} on {place.type}: allowed: {', '.join(allowed)}")
        source, model = whole_model(model), without_secrets(model)
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            _require_known_attention(model, config)
            require_room(model, config, tokens, place, getattr(torch, name))
            with _no_progress_bars():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    source,
                    dtype=getattr(torch, name),
                    use_safetensors=True,
                    attn_implementation=ATTENTION,
                    trust_remote_code=False,
                )
        except (OSError, KeyError) as error:
            with errors_name_url(model, source):
                raise ValueError(f"causal model {model!r}: {first_line(error)}") from error
        return cls.checked(model, loaded.to(place).eval(), fused=place.type == "cuda")

    @classmethod
    def checked(cls, name: str, model: Any, *, fused: bool) -> LanguageModel:
        """Wrap a model, its layers fused where they can be, once it agrees with eager attention.

        Args:
            model: transformers' own, with attn_implementation ATTENTION, on its device.

        Raises:
            ValueError: its hidden states are not those of transformers' eager attention.
        """
        made = cls(name, model, model.device)
        own = made._eager_hidden()
        if fused:
            from longattn.scoring.fused_body import fuse

            fuse(model, lambda: made.hidden(made._checked_ids()))
        tolerance = _TOLERANCE[str(model.dtype).removeprefix("torch.")]
        off = float((made.hidden(made._checked_ids()).double() - own).norm() / own.norm())
        if not off <= tolerance:
            raise ValueError(
                f"causal model {name!r} is refused: its hidden states differ by {off:.1e} from "
                f"those of transformers' eager attention, allowed: {tolerance:g}"
            )
        return made

    def sent(self, ids_l: Ids) -> Tensor:
        """Ids of one window on the device, without waiting for it.

        Raises:
            ValueError: not (length,) integers, or one outside the vocabulary.
        """
        ids = np.asarray(ids_l)
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ValueError(f"a window of {ids.dtype}, shape {ids.shape}: allowed: (length,) ints")
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocabulary:
            raise ValueError(
                f"ids from {ids.min()} to {ids.max()}: allowed: 0 to {self.vocabulary - 1}"
            )
        sent = torch.from_numpy(ids.astype(np.int64))
        if self.device.type == "cuda":
            return sent.pin_memory().to(self.device, non_blocking=True)
        return sent

    @torch.inference_mode()
    def hidden(self, ids_bl: Tensor) -> Tensor:
        """Last hidden states, (batch, length, hidden), after the last norm."""
        with fused_backends(self.device):
            states = self.model.base_model(input_ids=ids_bl, use_cache=False).last_hidden_state
        return states  # type: ignore[no-any-return]

    @torch.inference_mode()
    def losses(self, hidden_rc: Tensor, targets_r: Tensor) -> Tensor:
        """Cross entropy of each target given the hidden state before it, nats, float32 or better.

        The logits are the model's own, with what its family does to them, a few rows at a time.
        """
        parts = [
            _cross_entropy(
                self.logits(hidden_rc[i : i + LOGIT_ROWS]), targets_r[i : i + LOGIT_ROWS]
            )
            for i in range(0, len(hidden_rc), LOGIT_ROWS)
        ]
        return torch.cat(parts)

    def logits(self, hidden_rc: Tensor) -> Tensor:
        """The model's own logits of some hidden states, (rows, vocabulary)."""
        model = self.model
        prefix = model.base_model_prefix
        body = getattr(model, prefix)
        setattr(model, prefix, _Given(hidden_rc[None]))
        try:
            logits = model(input_ids=None, use_cache=False).logits[0]
        finally:
            setattr(model, prefix, body)
        return logits  # type: ignore[no-any-return]

    def _checked_ids(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        ids_bl = torch.randint(self.vocabulary, (1, _CHECKED_TOKENS), generator=generator)
        return ids_bl.to(self.device)

    @torch.inference_mode()
    def _eager_hidden(self) -> Tensor:
        self.model.set_attn_implementation("eager")
        try:
            body = self.model.base_model
            states = body(input_ids=self._checked_ids(), use_cache=False).last_hidden_state
        finally:
            self.model.set_attn_implementation(ATTENTION)
        return states.double()  # type: ignore[no-any-return]


class _Given(nn.Module):
    """Stands for a model's body where its hidden states are known."""

    def __init__(self, hidden_blc: Tensor) -> None:
        super().__init__()
        self.hidden_blc = hidden_blc

    def forward(self, *args: Any, **options: Any) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden_blc)


def _cross_entropy(logits_rv: Tensor, targets_r: Tensor) -> Tensor:
    if logits_rv.is_cuda:
        from longattn.scoring import body_kernel

        return body_kernel.cross_entropy(logits_rv, targets_r)
    logits_rv = logits_rv.to(torch.promote_types(logits_rv.dtype, torch.float32))
    target_r = logits_rv.gather(1, targets_r[:, None])[:, 0]
    return logits_rv.logsumexp(1) - target_r


def _require_known_attention(model: str, config: PretrainedConfig) -> None:
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds <= _KNOWN_LAYERS:
        raise ValueError(
            f"causal model {model!r} ({config.model_type}) is refused: it has layers of "
            f"{min(kinds - _KNOWN_LAYERS)}; allowed: {', '.join(sorted(_KNOWN_LAYERS))}"
        )


# --- memory --------------------------------------------------------------------------------------


def require_room(
    model: str, config: PretrainedConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise ValueError, with both sizes, where weights and activations exceed the free memory."""
    weights = _weight_bytes(config, dtype)
    logits = 2 * LOGIT_ROWS * config.vocab_size * 4 + tokens * config.hidden_size * dtype.itemsize
    window = max(tokens * _token_bytes(config, dtype), logits)
    if getattr(config, "attn_logit_softcapping", None):
        window += 4 * BLOCK_ENTRIES * 4
    free = _free_bytes(device)
    if free is not None and weights + window > free:
        raise ValueError(
            f"causal model {model!r} does not fit: {weights / 2**30:.1f} GiB of weights and "
            f"{window / 2**30:.1f} GiB for {tokens} tokens, {free / 2**30:.1f} GiB free on "
            f"{device}"
        )


def _weight_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    return int(sum(p.numel() for p in empty.parameters())) * dtype.itemsize


def _token_bytes(config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Of one token, while a layer runs: residual and norms, q, k, v, and the MLP's three.

    On an H100, for 49152 tokens: 5.4 GiB of an 8B shape where this says 6.4, 0.64 of SmolLM2's for 0.80.
    """
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    values = 5 * config.hidden_size + dim * (heads + 2 * groups) + 3 * inner
    return int(values * dtype.itemsize)


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    told = Path("/proc/meminfo")
    if not told.is_file():
        return None
    fields = dict(line.split(":", 1) for line in told.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024
