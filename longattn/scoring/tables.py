"""Queries and keys of every token of a vocabulary, before rotation.

Layer 0 sees only a token's identity, so its q and k are two tables over the vocabulary, and the
projections of a window become a gather. They are made by transformers' own model, one layer of it,
with the rotation replaced by the identity and the attention by a function that keeps q and k: no
code here belongs to a family of models. 128256 tokens of Llama-3.1-8B take 1.3 GB in 16 bits.

Keys are centred. Softmax does not change when one vector is taken from all rotated keys of a head,
and some models (Qwen2, by its key biases) have keys that share a part a hundred times larger than
what tells them apart, which rounding would spend its digits on. So the tables hold keys less the mean
key of the vocabulary, and from rotated keys the mean of it over the positions is taken, in float32.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModel, PretrainedConfig

from longattn.scoring.checkpoint import EMBEDDING, Checkpoint
from longattn.text import first_line

# Tokens projected at a time: 8B-shaped, their float32 activations and embedding are 0.3 GB.
_CHUNK = 4096
_CENTRE_BLOCKS, _CENTRE_ROWS = 16, 256  # the rows of the embedding that the mean key is taken from
_KEEP = "longattn_keep_qk"


@dataclass(frozen=True)
class Tables:
    """A scoring model's first layer, as far as attention probabilities need it.

    Attributes:
        q_vhd: (vocabulary, heads, dim) queries before rotation, on the scoring device.
        k_vgd: (vocabulary, kv_heads, dim) keys before rotation, less `centre_gd`.
        centre_gd: (kv_heads, dim) mean key before rotation, float32 or better.
        scaling: the factor on q . k before softmax.
        model: one layer of the transformers model; its embedding is empty.
        rotate: the family's own (q, k, cos, sin) -> (q, k).
    """

    q_vhd: Tensor
    k_vgd: Tensor
    centre_gd: Tensor
    scaling: float
    model: Any
    rotate: Callable[..., tuple[Tensor, Tensor]]

    def rotated(self, ids_l: Tensor, positions_l: Tensor) -> tuple[Tensor, Tensor]:
        """`rotated_exactly`, rounded to the tables' dtype."""
        q_hld, k_gld = self.rotated_exactly(ids_l, positions_l)
        return q_hld.to(self.q_vhd.dtype).contiguous(), k_gld.to(self.q_vhd.dtype).contiguous()

    def rotated_exactly(self, ids_l: Tensor, positions_l: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated q_hld and k_gld of the tokens `ids_l` at `positions_l`, less `shift_gd` of these.

        In float32, or in float64 for tables in float64.
        """
        dtype = torch.promote_types(self.q_vhd.dtype, torch.float32)
        q = self.q_vhd[ids_l].to(dtype).transpose(0, 1)[None]
        k = (self.k_vgd[ids_l].to(dtype) + self.centre_gd).transpose(0, 1)[None]
        cos, sin = self.cos_sin(positions_l, dtype)
        q, k = self.rotate(q, k, cos[None], sin[None])
        return q[0], k[0] - self.shift_gd(cos, sin)[:, None]

    def shift_gd(self, cos_ld: Tensor, sin_ld: Tensor) -> Tensor:
        """The mean over some positions of `centre_gd` rotated: what all keys there share.

        A rotation is linear in cos and sin, so the mean is the rotation by their means.
        """
        cos, sin = (x.double().mean(0).to(x.dtype)[None, None] for x in (cos_ld, sin_ld))
        centre = self.centre_gd[None, :, None]
        return self.rotate(centre, centre, cos, sin)[1][0, :, 0]

    def cos_sin(
        self, positions_l: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """The family's own cos and sin, (length, rotated dim) each, with its attention factor."""
        like = self.q_vhd.new_empty(1, dtype=dtype)
        cos, sin = self.model.rotary_emb(like, position_ids=positions_l[None])
        return cos[0], sin[0]

    def rotates_halves(self) -> bool:
        """Whether `rotate` is x * cos + (-x2, x1) * sin, x1 and x2 the halves of a whole head."""
        dim = self.q_vhd.shape[-1]
        positions_l = torch.arange(3, 8, device=self.q_vhd.device)
        cos, sin = self.cos_sin(positions_l)
        if cos.shape[-1] != dim:
            return False
        x = torch.linspace(-1, 1, 5 * dim, device=cos.device).view(1, 1, 5, dim)
        turned = x * cos + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * sin
        return torch.allclose(self.rotate(x, x, cos[None], sin[None])[0], turned, atol=1e-6)


class _Kept(Exception):  # noqa: N818
    """Carries what a layer computed out of the model, so that nothing after it is run."""

    def __init__(self, *values: Any) -> None:
        self.values = values


def build_tables(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    rope_theta: float | None = None,
) -> Tables:
    """Project the whole vocabulary, `_CHUNK` tokens at a time, in float32 (float64 for float64).

    The chunks are fixed, so a token has the same bits in every window.

    Raises:
        ValueError: a tensor is missing, has another shape than the config says, or is not finite;
            queries or keys leave the range of `dtype`; or transformers' first layer is not one that
            can be run alone.
    """
    model = first_layer(checkpoint, device, torch.promote_types(dtype, torch.float32), rope_theta)
    vocabulary = model.config.vocab_size
    # float32 on a GPU is computed as products of two parts in float16, see triton_kernel.py.
    held = torch.float16 if (device.type, dtype) == ("cuda", torch.float32) else dtype
    centre_gd = centre(model, checkpoint)
    parts: list[Tables] = []
    for stop in range(_CHUNK, vocabulary + _CHUNK, _CHUNK):
        stop = min(stop, vocabulary)
        start = max(0, stop - _CHUNK)  # a product of few rows has bits that depend on the threads
        part = project(model, checkpoint.read(EMBEDDING, start, stop), centre_gd)
        if not parts:
            q_vhd = part.q_vhd.new_empty((vocabulary, *part.q_vhd.shape[1:]), dtype=dtype)
            k_vgd = part.k_vgd.new_empty((vocabulary, *part.k_vgd.shape[1:]), dtype=dtype)
            parts = [part]
        q_vhd[start:stop], k_vgd[start:stop] = part.q_vhd, part.k_vgd
        # Rotating may double an element: by a root of two, and by what some rotations scale.
        largest = 2 * part.q_vhd.abs().max(), 2 * part.k_vgd.abs().max() + 4 * centre_gd.abs().max()
        if not all(x.to(held).isfinite() for x in largest):
            raise ValueError(
                f"{checkpoint.name}: queries or keys of tokens {start} to {stop - 1} are not "
                f"finite in {held}, or not once rotated"
            )
    return replace(parts[0], q_vhd=q_vhd, k_vgd=k_vgd)


def centre(model: Any, checkpoint: Checkpoint) -> Tensor:
    """(kv_heads, dim) mean key before rotation, of 4096 tokens spread over the vocabulary.

    Any vector would do; this one is as good as the mean of all and known before the tables.
    """
    vocabulary = model.config.vocab_size
    starts = range(0, vocabulary, max(_CENTRE_ROWS, -(-vocabulary // _CENTRE_BLOCKS)))
    rows = [
        checkpoint.read(EMBEDDING, start, min(start + _CENTRE_ROWS, vocabulary)) for start in starts
    ]
    k_vgd = project(model, torch.cat(rows)).k_vgd
    return k_vgd.double().mean(0).to(k_vgd.dtype)


def project(model: Any, embedding_vc: Tensor, centre_gd: Tensor | None = None) -> Tables:
    """Tables of the tokens with these rows of the embedding, in the model's dtype.

    Each token is a text of its own at position 0, with the rotation replaced by the identity.

    Raises:
        ValueError: the first layer cannot be run alone, or rotates in a way of its own.
    """
    ids_v1 = torch.arange(len(embedding_vc), device=_weight(model).device)[:, None]
    rotary = model.rotary_emb
    model.rotary_emb = _Identity(rotary)
    try:
        q_vh1d, k_vg1d, scaling = run_first_layer(model, embedding_vc, ids_v1, _KEEP)
    finally:
        model.rotary_emb = rotary
    rotate: Any = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
    try:
        cos, sin = rotary(q_vh1d[:1, 0], position_ids=ids_v1[:1])
        rotate(q_vh1d[:1], k_vg1d[:1], cos, sin)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} is refused: it rotates q and k, or a part of them, in a way "
            "of its own"
        ) from error
    q_vhd, k_vgd = q_vh1d[:, :, 0], k_vg1d[:, :, 0]
    centre_gd = torch.zeros_like(k_vgd[0]) if centre_gd is None else centre_gd
    return Tables(q_vhd, k_vgd - centre_gd, centre_gd, scaling, model, rotate)


def first_layer(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, rope_theta: float | None
) -> Any:
    """transformers' bare decoder with one layer, of which only what makes q and k has weights.

    The value projection is a stand-in, the output projection the identity, and the embedding is
    empty until `run_first_layer` fills it.
    """
    try:
        config = _one_layer_config(checkpoint.config, rope_theta)
        with torch.device("meta"):
            model = AutoModel.from_config(config, attn_implementation="eager").eval()
    except Exception as error:  # of sizes that there are not transformers and torch raise anything
        raise ValueError(
            f"{checkpoint.path}: transformers makes no model of its config: {first_line(error)}"
        ) from error
    try:
        layer, attention = model.layers[0], model.layers[0].self_attn
        rotary = type(model.rotary_emb)(config=model.config)
        vocabulary_shape = tuple(model.embed_tokens.weight.shape)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint.name}: {type(model).__name__} is not built like a rotary decoder: "
            f"{first_line(error)}"
        ) from error
    _check_shape(checkpoint, EMBEDDING, vocabulary_shape)
    if hasattr(attention, "v_proj"):
        attention.v_proj = _SomeValues(attention.v_proj.out_features)
    attention.o_proj = nn.Identity()
    norm = getattr(layer, "input_layernorm", nn.Identity())
    for module, prefix in ((attention, "layers.0.self_attn"), (norm, "layers.0.input_layernorm")):
        for name, parameter in list(module.named_parameters()):
            _check_shape(checkpoint, f"{prefix}.{name}", tuple(parameter.shape))
            owner, _, leaf = name.rpartition(".")
            weight = checkpoint.read(f"{prefix}.{name}").to(device, dtype)
            setattr(module.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
    model.rotary_emb = rotary.to(device)
    if hasattr(model.embed_tokens, "scalar_embed_scale"):  # Gemma's, a buffer that no file holds
        scale = torch.tensor(model.embed_tokens.scalar_embed_scale, device=device)
        model.embed_tokens.embed_scale = scale
    model.embed_tokens.padding_idx = None  # an id of the whole vocabulary; ours are of one chunk
    return model


@torch.inference_mode()
def run_first_layer(
    model: Any,
    embedding_vc: Tensor,
    ids_bl: Tensor,
    implementation: str,
    position_ids: Tensor | None = None,
) -> tuple[Any, ...]:
    """Run the model up to its first attention; returns (q, k, scaling), or (probabilities,) if eager.

    Args:
        embedding_vc: (tokens, hidden) rows of the embedding, as stored.
        ids_bl: (batch, length) rows of `embedding_vc`, not ids of the vocabulary.
        implementation: "eager", or the name of the function that keeps q and k.
        position_ids: (1, length); 0 to length - 1 by default.

    Raises:
        ValueError: the first layer needs more than its queries and keys.
    """
    weight = _weight(model)
    model.embed_tokens.weight = nn.Parameter(
        embedding_vc.to(weight.device, weight.dtype), requires_grad=False
    )
    model.config._attn_implementation = implementation
    attention = model.layers[0].self_attn

    def keep_probabilities(
        module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]
    ) -> None:
        raise _Kept(output[1])

    hook = attention.register_forward_hook(keep_probabilities)
    try:
        # A mask is given, for without one transformers reads a gap in the positions as a new text.
        with _exact_softmax():
            model(
                input_ids=ids_bl,
                attention_mask=torch.ones_like(ids_bl),
                position_ids=position_ids,
                use_cache=False,
            )
    except _Kept as kept:
        return kept.values
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"the first layer of {type(model).__name__} cannot be run alone: {first_line(error)}"
        ) from error
    finally:
        hook.remove()
        model.embed_tokens.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    raise ValueError(f"{type(model).__name__} does not call its first attention")


@contextmanager
def _exact_softmax() -> Iterator[None]:
    """Eager attention asks for a softmax in float32, also of float64 scores; here it gets float64.

    Key biases in the hundreds make scores of many thousands, of which float32 leaves three decimals.
    """
    softmax = nn.functional.softmax

    def exact(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(x, dim, dtype=None if dtype is None else torch.promote_types(dtype, x.dtype))

    nn.functional.softmax = exact  # type: ignore[assignment]
    try:
        yield
    finally:
        nn.functional.softmax = softmax


def _keep_qk(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> None:
    """An attention function, as transformers calls it, that stops at q and k."""
    for name in ("softcap", "s_aux", "sliding_window", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} is refused: its first layer has {name}={options[name]}"
            )
    raise _Kept(query, key, query.shape[-1] ** -0.5 if scaling is None else float(scaling))


AttentionInterface.register(_KEEP, _keep_qk)


class _Identity(nn.Module):
    """A rotation by nothing, in the shape of a model's own."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(x, position_ids)
        return torch.ones_like(cos), torch.zeros_like(sin)


class _SomeValues(nn.Module):
    """Stands for the value projection: numbers that differ between tokens.

    Nobody should read them. Where attention depends on its values (Doge), constant ones would hide
    that from the comparison with transformers.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x[..., torch.arange(self.features, device=x.device) % x.shape[-1]]


def _weight(model: Any) -> nn.Parameter:
    """A weight that was loaded: its device and dtype are the model's."""
    weight: nn.Parameter = next(model.layers[0].self_attn.parameters())
    return weight


def _one_layer_config(config: PretrainedConfig, rope_theta: float | None) -> PretrainedConfig:
    config = copy.deepcopy(config)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    config.num_hidden_layers = 1
    if rope_theta is not None:
        config.rope_parameters = {**config.rope_parameters, "rope_theta": float(rope_theta)}
    return config


def _check_shape(checkpoint: Checkpoint, name: str, expected: tuple[int, ...]) -> None:
    shape = checkpoint.shape(name)
    if shape != expected:
        raise ValueError(
            f"{checkpoint.name}: tensor {name} has shape {shape}; the config says {expected}"
        )
