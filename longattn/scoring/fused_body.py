"""Make the layers of a loaded language model faster, where a fused form computes the same.

No family is known here. On a short run each module is seen at work; a fused form of it that gives the
same output takes its place, else it stays as it is:
    a norm             one kernel in place of seven
    gate, up, down     one product for gate and up, then silu(gate) * up in one kernel
    attention          one product for q, k and v, rotated in place
    the logits         products of 16 bits added up and kept in float32
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longattn.scoring import body_kernel
from longattn.scoring.linear_attention import Attended, attend, observed

Forward = Callable[..., Any]
_OFF = 1e-2  # relative difference from the module's own output: that of its rounding in bfloat16


@dataclass(frozen=True)
class _Call:
    """One call of a module, as its model made it."""

    args: tuple[Any, ...]
    options: dict[str, Any]
    output: Any


@torch.no_grad()
def fuse(model: Any, run: Callable[[], object]) -> dict[str, int]:
    """Replace the forward of modules by fused ones; returns how many of each kind.

    Args:
        model: transformers' causal model, on its device.
        run: a short run of it.
    """
    fused = {"norms": 0, "mlps": 0, "attentions": 0, "heads": 0}
    with _recorded(model) as calls:
        run()
    for module, call in calls.items():
        for kind, forms in _FORMS.items():
            for form in forms(module, call):
                if _same(form, call):
                    module.forward = form
                    fused[kind] += 1
                    break
    head = model.get_output_embeddings()
    if type(head) is nn.Linear and head.bias is None and head.weight.is_cuda:
        head.forward = lambda x: _float32_product(x, head.weight)
        fused["heads"] += 1
    return fused


@contextmanager
def _recorded(model: Any) -> Iterator[dict[nn.Module, _Call]]:
    calls: dict[nn.Module, _Call] = {}

    def note(
        module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        calls[module] = _Call(args, options, output)

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _same(form: Forward, call: _Call) -> bool:
    try:
        got = form(*call.args, **call.options)
    except (RuntimeError, TypeError, KeyError):
        return False
    got, own = (x[0] if isinstance(x, tuple) else x for x in (got, call.output))
    return _close(got, own)


def _close(got: Tensor, own: Tensor) -> bool:
    if got.shape != own.shape or got.dtype != own.dtype:
        return False
    got, own = got.double(), own.double()
    return float((got - own).norm()) <= _OFF * float(own.norm())


def _float32_product(x: Tensor, weight: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return F.linear(x, weight)
    flat = x.reshape(-1, x.shape[-1])
    try:
        logits = torch.mm(flat, weight.T, out_dtype=torch.float32)
    except TypeError:  # torch 2.7 has no out_dtype
        logits = flat @ weight.T
    return logits.view(*x.shape[:-1], -1)


# --- forms ---------------------------------------------------------------------------------------


def _norms(module: nn.Module, call: _Call) -> Iterator[Forward]:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)):
        return
    if weight is None or weight.ndim != 1 or len(inspect.signature(module.forward).parameters) != 1:
        return
    for offset in (0.0, 1.0):
        yield lambda x, offset=offset: body_kernel.rms_norm(x, weight, eps, offset)


def _mlps(module: nn.Module, call: _Call) -> Iterator[Forward]:
    parts: list[Any] = [
        getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")
    ]
    if not all(type(part) is nn.Linear for part in parts):
        return
    gate, up, down = parts
    packed = _Packed.of(gate, up)
    if packed is not None:
        yield lambda x: down(body_kernel.silu_product(packed(x)))


def _attentions(module: nn.Module, call: _Call) -> Iterator[Forward]:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    linears = [child for _, child in module.named_children() if isinstance(child, nn.Linear)]
    parts: list[Any] = [getattr(module, name, None) for name in names]
    if not all(type(part) is nn.Linear for part in parts) or len(linears) != len(names):
        return
    seen: list[Attended] = []
    with observed(module, seen.append):
        module.forward(*call.args, **call.options)
    *qkv, out = parts
    packed = _Packed.of(*qkv)
    if packed is None or len(seen) != 1:
        return
    (told,) = seen
    heads, groups, dim = told.q_bhld.shape[1], told.k_bgld.shape[1], told.q_bhld.shape[3]
    options = {
        "scaling": told.scaling,
        "softcap": told.softcap,
        "sliding_window": told.sliding_window,
    }

    def forward(
        hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **rest: Any
    ) -> tuple[Tensor, None]:
        cos, sin = position_embeddings
        if cos.shape[-1] != dim:
            raise TypeError(f"a rotation of {cos.shape[-1]} of {dim} dimensions")
        qkv_blw = packed(hidden_states)
        body_kernel.rotate_(qkv_blw, cos, sin, heads + groups)
        all_bhld = qkv_blw.view(*qkv_blw.shape[:2], heads + 2 * groups, dim).transpose(1, 2)
        q, k, v = all_bhld.split([heads, groups, groups], 1)
        attended, _ = attend(module, q, k, v, rest.get("attention_mask"), **options)
        return out(attended.flatten(2)), None

    # Where attention is nearly even, another rotation gives the same output: q and k must be the same.
    with observed(module, seen.append):
        if not _same(forward, call):
            return
    if _close(seen[1].q_bhld, told.q_bhld) and _close(seen[1].k_bgld, told.k_bgld):
        yield forward


_FORMS: dict[str, Callable[[nn.Module, _Call], Iterator[Forward]]] = {
    "norms": _norms,
    "mlps": _mlps,
    "attentions": _attentions,
}


class _Packed:
    """Several linear maps of one input as one product; their weights become parts of one tensor."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    @classmethod
    def of(cls, *linears: Any) -> _Packed | None:
        biased = [linear.bias is not None for linear in linears]
        if any(biased) != all(biased) or len({linear.weight.dtype for linear in linears}) > 1:
            return None
        weight = torch.cat([linear.weight.detach() for linear in linears])
        start = 0
        for linear in linears:  # views, so that nothing is held twice
            stop = start + len(linear.weight)
            linear.weight = nn.Parameter(weight[start:stop], requires_grad=False)
            start = stop
        bias = torch.cat([linear.bias.detach() for linear in linears]) if all(biased) else None
        return cls(weight, bias)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
