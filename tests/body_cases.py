"""The fused layers against transformers' own: python -m tests.body_cases

On a CUDA device in bfloat16; elsewhere, with TRITON_INTERPRET=1, in float32 in Triton's interpreter.
Exits 1 and names the case where one is off.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from longattn.scoring import body_kernel
from longattn.scoring.fused_body import fuse
from longattn.scoring.language_model import LanguageModel
from longattn.scoring.layers import LayerScorer
from longattn.scoring.linear_attention import ATTENTION, Attended, observed
from longattn.scoring.loss_gap import LossGapScorer
from longattn.scoring.statistics import dense_statistics
from tests import checkpoints

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPE = torch.bfloat16 if GPU else torch.float32
ROUNDING = 1e-2 if GPU else 1e-5
# family, fields of its config, norms, MLPs and attentions of its two layers that are fused
FAMILIES = [
    ("llama", {"hidden_size": 48, "head_dim": 12}, (5, 2, 2)),
    ("qwen2", {}, (5, 2, 2)),
    ("qwen3", {"head_dim": 32}, (9, 2, 0)),
    ("mistral", {"sliding_window": 20}, (5, 2, 2)),
    ("gemma2", {"sliding_window": 20, "head_dim": 16}, (9, 0, 2)),
    ("cohere", {}, (0, 2, 0)),
    ("olmo2", {}, (9, 2, 0)),
]


def off(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def kernels() -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE, DTYPE)

    x, weight = drawn(2, 7, 576), drawn(576)
    gate_up = drawn(3, 5, 2 * 96)
    qkv, cos, sin = drawn(2, 9, 5 * 24), drawn(1, 9, 24), drawn(1, 9, 24)
    turned = qkv.unflatten(-1, (5, 24)).double()
    first, second = turned.chunk(2, -1)
    cos_d, sin_d = (t[:, :, None].double() for t in (cos, sin))
    turned[:, :, :4] = (turned * cos_d + torch.cat([-second, first], -1) * sin_d)[:, :, :4]
    body_kernel.rotate_(qkv, cos, sin, 4)
    logits = 9 * torch.randn(6, 5003, generator=generator).to(DEVICE)
    logits[0, 1:] = float("-inf")
    targets = torch.tensor([0, 4096, 5002, 3, 4, 5], device=DEVICE)
    norm = F.rms_norm(x.double(), (576,), eps=1e-6)
    return {
        "rms_norm": off(body_kernel.rms_norm(x, weight, 1e-6, 0.0), norm * weight.double()),
        "rms_norm of 1 + w": off(
            body_kernel.rms_norm(x, weight, 1e-6, 1.0), norm * (1 + weight.double())
        ),
        "silu_product": off(
            body_kernel.silu_product(gate_up),
            F.silu(gate_up[..., :96].double()) * gate_up[..., 96:].double(),
        ),
        "rotate_": off(qkv, turned.flatten(2)),
        "cross_entropy": off(
            body_kernel.cross_entropy(logits, targets),
            F.cross_entropy(logits.double(), targets, reduction="none"),
        )
        * (1e3 if GPU else 1),
    }


def family(name: str, fields: dict, fused: tuple[int, int, int]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(Path(folder), name, **fields)
        plain, model = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE, attn_implementation=kind)
            .to(DEVICE)
            .eval()
            for kind in ("eager", ATTENTION)
        )
    ids = torch.arange(100, 170, device=DEVICE).view(2, 35)
    made = LanguageModel(name, model, torch.device(DEVICE))
    found = fuse(model, lambda: made.hidden(ids[:, :33]))
    if (found["norms"], found["mlps"], found["attentions"]) != fused:
        print(f"{name}: fused {found}, expected {fused}")
        return float("inf")
    with torch.inference_mode():
        return off(made.hidden(ids), plain.base_model(ids, use_cache=False).last_hidden_state)


def scorers() -> dict[str, float]:
    """Only on a GPU: in float32 against a CPU's float64; in bfloat16, statistics of the same q and k."""
    rng = np.random.default_rng(0)
    windows = [rng.integers(3, checkpoints.VOCABULARY, length) for length in (700, 651)]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(Path(folder), "llama", head_dim=64, num_hidden_layers=3)
        gaps = [
            LossGapScorer.from_pretrained(folder, tokens=700, short=64, device=d, dtype=t).score(
                windows
            )
            for d, t in (("cuda", "float32"), ("cpu", "float64"))
        ]
        found["loss gap, float32"] = float(np.abs(gaps[0].mean / gaps[1].mean - 1).max())
        layers = [
            LayerScorer.from_pretrained(folder, tokens=700, device=d, dtype=t).score(
                windows[:1], 150
            )
            for d, t in (("cuda", "float32"), ("cpu", "float64"))
        ]
        for name in ("ds", "variance"):
            one, two = (getattr(scores, name) for scores in layers)
            found[f"{name} of layers, float32"] = float(np.abs(one / two - 1).max())
        scorer = LayerScorer.from_pretrained(folder, tokens=700, layers=[2])
        seen: list[Attended] = []
        with observed(scorer.model.model.base_model.layers[2].self_attn, seen.append):
            scorer.model.hidden(scorer.model.sent(windows[0])[None])
        q, k = seen[0].q_bhld[0], seen[0].k_bgld[0]
        truth = dense_statistics(q, k, 150, seen[0].scaling)
        scores = scorer.score(windows[:1], 150)
        for name, expected in zip(("ds", "variance"), truth, strict=True):
            found[f"{name} of a layer, bfloat16"] = off(
                torch.from_numpy(getattr(scores, name)[0, 0]), expected.cpu()
            )
    return found


def main() -> int:
    failed = 0
    results = kernels() | {f"a model of {name}": family(name, *rest) for name, *rest in FAMILIES}
    if GPU:
        results |= scorers()
    for name, error in results.items():
        wrong = not error <= ROUNDING * (5 if "model" in name else 1)
        failed += wrong
        print(f"{'OFF ' if wrong else 'ok  '}{name}: {error:.1e}")
    print(f"{failed} cases off")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
