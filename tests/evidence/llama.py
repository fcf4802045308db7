"""A Llama that trains fast on one GPU: packed projections, compiled pieces, attention by cuDNN.

The same function as transformers' LlamaForCausalLM with tied embeddings (a test compares losses and
gradients in float32), in fewer and larger operations: q, k and v in one product, gate and up in one;
norm, rotation and activation fused by torch.compile; logits made and taken to gradients in pieces.
Shapes: B windows, L tokens, C channels, H heads, G key heads, D a head, V the vocabulary, N = B L.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

LOGIT_ROWS = 8192  # tokens whose logits are held at once
PER_LAYER = ("attention_norm", "qkv", "out", "mlp_norm", "gate_up", "down")


@dataclass(frozen=True)
class Shape:
    """What of config.json decides the function."""

    layers: int
    channels: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    eps: float
    rope_theta: float
    inner: int

    @classmethod
    def read(cls, folder: Path) -> Shape:
        c = json.loads((folder / "config.json").read_text())
        rope = c.get("rope_parameters") or {}
        if c["model_type"] != "llama" or not c["tie_word_embeddings"]:
            raise ValueError(f"{folder}: a Llama with tied embeddings is needed")
        return cls(
            c["num_hidden_layers"],
            c["hidden_size"],
            c["num_attention_heads"],
            c["num_key_value_heads"],
            c.get("head_dim", c["hidden_size"] // c["num_attention_heads"]),
            c["vocab_size"],
            c["rms_norm_eps"],
            c.get("rope_theta") or rope["rope_theta"],
            c["intermediate_size"],
        )

    def random_weights(self) -> dict[str, Tensor]:
        """Of the right sizes, to compile and to time on."""
        c, wide = self.channels, self.heads * self.head
        sizes: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary, c), "norm": (c,)}
        for i in range(self.layers):
            of = {
                "attention_norm": (c,),
                "qkv": (wide + 2 * self.key_heads * self.head, c),
                "out": (c, wide),
                "mlp_norm": (c,),
                "gate_up": (2 * self.inner, c),
                "down": (c, self.inner),
            }
            sizes |= {f"{i}.{name}": of[name] for name in PER_LAYER}
        generator = torch.Generator().manual_seed(0)
        return {name: 0.02 * torch.randn(size, generator=generator) for name, size in sizes.items()}


def packed(folder: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint in float32, by our names."""
    state = load_file(folder / "model.safetensors")
    state = {name.removeprefix("model."): t.float() for name, t in state.items()}
    weights = {"embedding": state["embed_tokens.weight"], "norm": state["norm.weight"]}
    for i in range(Shape.read(folder).layers):
        at = f"layers.{i}."
        for name, parts in (
            ("attention_norm", ["input_layernorm"]),
            ("qkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("out", ["self_attn.o_proj"]),
            ("mlp_norm", ["post_attention_layernorm"]),
            ("gate_up", ["mlp.gate_proj", "mlp.up_proj"]),
            ("down", ["mlp.down_proj"]),
        ):
            weights[f"{i}.{name}"] = torch.cat([state[f"{at}{part}.weight"] for part in parts])
    return weights


def rms_norm(x_blc: Tensor, weight_c: Tensor, eps: float) -> Tensor:
    x = x_blc.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(x_blc.dtype) * weight_c


def rotate(x_blhd: Tensor, cos_ld: Tensor, sin_ld: Tensor) -> Tensor:
    first, second = x_blhd.float().chunk(2, -1)
    cos, sin = cos_ld[:, None], sin_ld[:, None]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x_blhd.dtype)


def before_attention(
    x_blc: Tensor, norm_c: Tensor, qkv_oc: Tensor, turns: tuple[Tensor, Tensor], shape: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a layer, (B, L, heads, D)."""
    y = F.linear(rms_norm(x_blc, norm_c, shape.eps), qkv_oc)
    h, g = shape.heads, shape.key_heads
    q, k, v = y.unflatten(-1, (h + 2 * g, shape.head)).split([h, g, g], -2)
    return rotate(q, *turns), rotate(k, *turns), v.contiguous()


def after_attention(
    x_blc: Tensor, mixed_blc: Tensor, weights: tuple[Tensor, ...], eps: float
) -> Tensor:
    """The stream after a layer's output projection and MLP."""
    out, norm, gate_up, down = weights
    x = x_blc + F.linear(mixed_blc, out)
    gate, up = F.linear(rms_norm(x, norm, eps), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def losses_and_gradient(logits_nv: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (0 where the target is negative), and the gradient of their sum."""
    z = logits_nv.float()
    log_p = z - torch.logsumexp(z, -1, keepdim=True)
    hit = torch.arange(z.shape[1], device=z.device)[None] == target_n[:, None]
    counted = (target_n >= 0)[:, None]
    loss = -torch.where(hit, log_p, 0.0).sum(-1)
    gradient = torch.where(counted, log_p.exp() - hit.float(), 0.0)
    return loss, gradient.to(logits_nv.dtype)


def losses_only(logits_nv: Tensor, target_n: Tensor) -> Tensor:
    z = logits_nv.float()
    hit = torch.arange(z.shape[1], device=z.device)[None] == target_n[:, None]
    return torch.where(
        target_n >= 0, torch.logsumexp(z, -1) - torch.where(hit, z, 0.0).sum(-1), 0.0
    )


Pieces = dict[str, Callable[..., Any]]
PLAIN: Pieces = {
    f.__name__: f
    for f in (rms_norm, before_attention, after_attention, losses_and_gradient, losses_only)
}


def compiled() -> Pieces:
    return {name: torch.compile(f, dynamic=False, fullgraph=True) for name, f in PLAIN.items()}


class MeanLoss(torch.autograd.Function):
    """Next-token loss, a mean over `count` targets; gradients are made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, h_nc: Tensor, embedding_vc: Tensor, target_n: Tensor, count: int, f: Pieces
    ) -> Tensor:
        total = torch.zeros((), device=h_nc.device)
        dh_nc = torch.empty_like(h_nc)
        dw_vc = torch.zeros(embedding_vc.shape, dtype=torch.float32, device=h_nc.device)
        for i in range(0, len(h_nc), LOGIT_ROWS):
            h, y = h_nc[i : i + LOGIT_ROWS], target_n[i : i + LOGIT_ROWS]
            loss, gradient = f["losses_and_gradient"](h @ embedding_vc.T, y)
            total += loss.sum()
            dh_nc[i : i + LOGIT_ROWS] = (gradient @ embedding_vc) / count
            dw_vc += gradient.T @ h
        ctx.save_for_backward(dh_nc, (dw_vc / count).to(embedding_vc.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *out: Tensor) -> tuple[Tensor | None, ...]:
        dh_nc, dw_vc = ctx.saved_tensors
        return dh_nc * out[0], dw_vc * out[0], None, None, None


class Llama:
    """A model on a device. `attention` is "cudnn", "flash" or "math"."""

    def __init__(
        self, shape: Shape, device: str, dtype: torch.dtype, attention: str, pieces: Pieces
    ) -> None:
        self.shape, self.device, self.dtype, self.f = shape, device, dtype, pieces
        self.backend = {
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "flash": SDPBackend.FLASH_ATTENTION,
            "math": SDPBackend.MATH,
        }[attention]
        self.weights: dict[str, Tensor] = {}
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take a copy of the weights; of the same tensors when they are there already."""
        with torch.no_grad():
            for name, t in weights.items():
                if name in self.weights:
                    self.weights[name].copy_(t)
                else:
                    self.weights[name] = t.to(self.device, self.dtype, copy=True).requires_grad_()

    def turns(self, length: int) -> tuple[Tensor, Tensor]:
        if length not in self._turns:
            half = torch.arange(0, self.shape.head, 2, device=self.device).float() / self.shape.head
            angle = torch.arange(length, device=self.device).float()[:, None] / (
                self.shape.rope_theta**half
            )
            self._turns[length] = angle.cos(), angle.sin()
        return self._turns[length]

    def hidden(self, ids_bl: Tensor) -> Tensor:
        """(B, L, C) after the last norm."""
        w, s = self.weights, self.shape
        turns = self.turns(ids_bl.shape[1])
        x = F.embedding(ids_bl, w["embedding"])
        for i in range(s.layers):
            norm, qkv, *rest = (w[f"{i}.{name}"] for name in PER_LAYER)
            q, k, v = self.f["before_attention"](x, norm, qkv, turns, s)
            with sdpa_kernel(self.backend):
                mixed = F.scaled_dot_product_attention(
                    q.transpose(1, 2),
                    k.transpose(1, 2),
                    v.transpose(1, 2),
                    is_causal=True,
                    enable_gqa=s.heads != s.key_heads,
                )
            mixed = mixed.transpose(1, 2).flatten(2)
            x = self.f["after_attention"](x, mixed, tuple(rest), s.eps)
        last: Tensor = self.f["rms_norm"](x, w["norm"], s.eps)
        return last

    def mean_loss(self, ids_bl: Tensor) -> Tensor:
        """Mean loss of all tokens but each window's first, to be taken backward."""
        target = F.pad(ids_bl[:, 1:], (0, 1), value=-1).flatten()
        h_nc, count = self.hidden(ids_bl).flatten(0, 1), ids_bl.shape[0] * (ids_bl.shape[1] - 1)
        loss: Tensor = MeanLoss.apply(h_nc, self.weights["embedding"], target, count, self.f)
        return loss

    @torch.no_grad()
    def token_losses(self, ids_bl: Tensor, start: int = 1) -> Tensor:
        """(B, L - start) losses of the tokens from position `start` on, logits in float32."""
        (b, length), w = ids_bl.shape, self.weights["embedding"]
        h = self.hidden(ids_bl)[:, start - 1 : length - 1].reshape(-1, self.shape.channels)
        y = ids_bl[:, start:].flatten()
        short = -len(h) % LOGIT_ROWS if w.is_cuda else 0  # one shape, compiled once
        h, y = F.pad(h, (0, 0, 0, short)), F.pad(y, (0, short), value=-1)
        parts = []
        for i in range(0, len(h), LOGIT_ROWS):
            piece = h[i : i + LOGIT_ROWS]
            if w.is_cuda and self.dtype != torch.float32:
                logits = torch.mm(piece, w.T, out_dtype=torch.float32)
            else:
                logits = piece.float() @ w.float().T
            parts.append(self.f["losses_only"](logits, y[i : i + LOGIT_ROWS]))
        return torch.cat(parts)[: b * (length - start)].view(b, length - start)
