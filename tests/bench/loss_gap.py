"""Time of loss gaps and of all layers' statistics on one GPU: python -m tests.bench.loss_gap [SHAPE ...]

Models of known shapes with random weights. Whole calls, ids on the host to numbers on the host, beside
plain transformers (sdpa, loss in pieces of 4096, all chunks as one batch) on the same weights in the
same run, and beside the floor: the work counted, over the rate of a large product measured here.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig

from longattn.scoring import linear_attention
from longattn.scoring.language_model import LanguageModel
from longattn.scoring.layers import LayerScorer
from longattn.scoring.linear_attention import ATTENTION
from longattn.scoring.loss_gap import LossGapScorer

SHAPES = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "head_dim": 64,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
}  # fmt: skip
WINDOWS = {"8b": [(32768, 4096)], "smollm2": [(32768, 4096), (8192, 1024)]}


def milliseconds(call: Callable[[], object], times: int = 5) -> float:
    """Median wall time of a call, its GPU work included."""
    taken = []
    for _ in range(times + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - started))
    return statistics.median(taken[1:])


def ceiling() -> float:
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / milliseconds(lambda: [a @ b for _ in range(20)]) * 20 / 1e9


@dataclass(frozen=True)
class Work:
    """Multiplications and additions of one window, 1e12: what the definition needs and no more."""

    config: LlamaConfig

    def layers(self, tokens: int) -> float:
        c = self.config
        qkv = c.hidden_size * c.head_dim * (c.num_attention_heads + 2 * c.num_key_value_heads)
        out = c.hidden_size * c.head_dim * c.num_attention_heads
        matrices = qkv + out + 3 * c.hidden_size * c.intermediate_size
        return 2 * c.num_hidden_layers * matrices * tokens / 1e12

    def attention(self, length: int) -> float:
        c = self.config
        return 2 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * length**2 / 1e12

    def logits(self, tokens: int) -> float:
        return 2 * self.config.hidden_size * self.config.vocab_size * tokens / 1e12

    def gap(self, length: int, short: int) -> float:
        chunks, scored = length // short - 2, length - 2 * short
        whole = self.layers(length) + self.attention(length) + self.logits(scored)
        chunk = self.layers(2 * short) + self.attention(2 * short)
        return whole + chunks * chunk + self.logits(scored)


# --- the peer --------------------------------------------------------------------------------------


def plain_losses(model: Any, ids_bl: Tensor, kept: slice) -> Tensor:
    hidden = model.base_model(input_ids=ids_bl, use_cache=False).last_hidden_state
    hidden_rc = hidden[:, :-1][:, kept].reshape(-1, hidden.shape[-1])
    targets_r = ids_bl[:, 1:][:, kept].reshape(-1)
    parts = [
        F.cross_entropy(
            model.lm_head(hidden_rc[i : i + 4096]).float(),
            targets_r[i : i + 4096],
            reduction="none",
        )
        for i in range(0, len(hidden_rc), 4096)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def plain_gap(model: Any, ids: np.ndarray, short: int) -> tuple[float, float]:
    ids_l = torch.from_numpy(ids).cuda()
    full = plain_losses(model, ids_l[None], slice(short - 1, None))
    chunks = plain_losses(model, ids_l.unfold(0, 2 * short, short), slice(short - 1, None))
    gap = chunks.double() - full.double()
    return float(gap.mean()), float((gap * (-full.double()).exp()).mean())


# --- what is measured ------------------------------------------------------------------------------


def attention_rates() -> None:
    """TFLOP/s of torch's attention backends, causal, keys shared within groups or repeated."""
    print("attention: backend, TFLOP/s with shared keys, with repeated ones")
    for batch, heads, groups, length, dim in [
        (1, 32, 8, 32768, 128),
        (6, 32, 8, 8192, 128),
        (1, 9, 3, 32768, 64),
        (6, 9, 3, 8192, 64),
    ]:
        packed = torch.randn(
            batch, length, (heads + 2 * groups), dim, device="cuda", dtype=torch.bfloat16
        )
        q, k, v = packed.transpose(1, 2).split([heads, groups, groups], 1)
        work = 2 * batch * heads * dim * length**2 / 1e9
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            rates = []
            for shared in (True, False):
                try:
                    k2, v2 = (
                        (k, v) if shared else (linear_attention._repeated(x, heads) for x in (k, v))
                    )
                    with sdpa_kernel(backend):
                        ms = milliseconds(
                            lambda q=q, k2=k2, v2=v2, shared=shared: F.scaled_dot_product_attention(
                                q, k2, v2, is_causal=True, enable_gqa=shared
                            )
                        )
                    rates.append(f"{work / ms:.0f}")
                except RuntimeError as error:
                    rates.append(str(error).splitlines()[0][:60])
            print(f"  {(batch, heads, groups, length, dim)} {backend.name}: {', '.join(rates)}")


def drawn(config: LlamaConfig) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(torch.float32)


def profile(call: Callable[[], object], rows: int) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    events = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:rows]
    for event in events:
        print(f"    {event.self_device_time_total / 1e3:9.2f} ms {event.count:6} {event.key[:90]}")


@torch.inference_mode()
def shape(name: str, top: float) -> None:
    config = LlamaConfig(
        **SHAPES[name],
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )
    model, work = drawn(config), Work(config)
    rng = np.random.default_rng(0)
    plain = {}
    for length, short in WINDOWS[name]:
        ids = (rng.random(length) ** 4 * config.vocab_size).astype(np.int64)
        value = plain_gap(model, ids, short)
        plain[length] = (
            ids,
            value,
            milliseconds(lambda ids=ids, short=short: plain_gap(model, ids, short), 3),
        )
    model.set_attn_implementation(ATTENTION)
    made = LanguageModel.checked(name, model, fused=True)
    for length, short in WINDOWS[name]:
        ids, value, plain_ms = plain[length]
        scorer = LossGapScorer(made, short)
        sent = made.sent(ids)
        print(f"{name}, {length} tokens, short {short}: plain {plain_ms:.1f} ms, gap {value}")
        backends = list(linear_attention._BACKENDS)
        for order in (backends, backends[1:]):
            linear_attention._BACKENDS[:] = order
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            got = scorer.score([ids])
            peak = torch.cuda.max_memory_allocated() - held
            whole = milliseconds(lambda: scorer.score([ids]))  # noqa: B023
            full = milliseconds(lambda: made.hidden(sent[None]))  # noqa: B023
            floor = 1e3 * work.gap(length, short) / top
            print(
                f"  {order[0].name} first: whole call {whole:.1f} ms, body of the window {full:.1f} ms; "
                f"floor {floor:.1f}, plain / ours {plain_ms / whole:.2f}; gap {got.mean[0]}, {got.weighted[0]}"
            )
        linear_attention._BACKENDS[:] = backends
        print(f"  peak {peak / 2**30:.2f} GiB beside the weights")
        hidden = made.hidden(sent[None])[0, :-1]
        loss = milliseconds(lambda: made.losses(hidden, sent[1:]))  # noqa: B023
        print(f"  losses of {length} positions from hidden states: {loss:.1f} ms")
        batch = [ids, ids[::-1].copy(), ids]
        together, alone = scorer.score(batch), scorer.score([batch[1]])
        same = together.mean[1] == alone.mean[0] and together.mean[0] == together.mean[2]
        stream = milliseconds(lambda: scorer.score(batch), 2) / 3  # noqa: B023
        print(f"  in a batch {stream:.1f} ms each; the same bits: {same}")
        profile(lambda: scorer.score([ids]), 16)  # noqa: B023
        layers = LayerScorer(made, "all")
        took = milliseconds(lambda: layers.score([ids], length // 4), 3)  # noqa: B023
        forward = milliseconds(lambda: made.hidden(sent[None]), 3)  # noqa: B023
        print(
            f"  DS of all layers {took:.1f} ms, {took / forward:.2f} x the forward of {forward:.1f} ms"
        )


def main() -> None:
    top = ceiling()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {top:.0f} TFLOP/s")
    attention_rates()
    for name in sys.argv[1:] or SHAPES:
        shape(name, top)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
