"""`longattn bench`: what this machine does, beside what it could do, and what a corpus would take.

Needs neither Ray nor a corpus: windows are drawn, the text is that of the samples. Every figure is
measured in one run, so that ratios hold on a noisy machine.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import platform
import statistics as middle
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from longattn.reports.progress import QUIET_SECONDS
from longattn.samples import SAMPLES
from longattn.scoring.precision import Errors
from longattn.scoring.scorer import AttentionScorer
from longattn.scoring.statistics import attention_sums
from longattn.scoring.tables import Tables
from longattn.text import counted, without_secrets

log = logging.getLogger("longattn")

# heads, kv heads, head dim, vocabulary: the shapes of the paper's scorers, with random tables.
SHAPES = {"8b": (32, 8, 128, 128256), "70b": (64, 8, 128, 128256)}
DENSE_TOKENS = {"cuda": 8192, "cpu": 4096}
CPU_SECONDS = 2.0  # of the calls that a median is of, on a CPU
COLUMNS = (
    "  kernel: statistics of ready queries and keys; call: from ids to numbers, one window; in a batch: the",
    "  same, each of many; of ceiling: their share of the speed of matrix products, above; busy: share of",
    "  the batch's time in the kernel, GPU only; 3 distances: time beside that of one; GiB: GPU memory taken",
)
"""What the columns of the table are, under it."""
STREAM_TOKENS = 32 * 32768  # of the run from memory, on a GPU


@dataclass(frozen=True)
class Figures:
    """One window length. Times in milliseconds a window, medians."""

    length: int
    kernel: float  # statistics of rotated queries and keys
    call: float  # ids on the host to numbers on the host, one window
    stream: float  # the same for a batch of windows, each
    tflops: float  # products of the kernel a second
    share: float  # of the measured matmul ceiling
    call_share: float  # the same, of the whole call
    stream_share: float
    busy: float | None  # share of the batch's time that the kernel computes, on a GPU
    distances: float  # cost of three distances over that of one
    peak_gib: float | None  # beyond the tables, on a GPU


@dataclass(frozen=True)
class Prediction:
    """What a corpus would take at the measured rates."""

    tokens: int
    windows: float
    device_hours: float
    cores_a_device: float | None
    """That tokenize for one device."""


@dataclass(frozen=True)
class ModelBench:
    """One scorer."""

    heads: int
    dtype: str
    errors: Errors | None
    dense_ratio: float | None
    """Time of the dense formulation over ours; None where it does not fit in the memory."""
    dense_tokens: int
    lengths: list[Figures]
    prediction: Prediction


@dataclass(frozen=True)
class Bench:
    """What this machine does."""

    device: str
    cores: int | None
    torch: str
    dtype: str
    ceiling_tflops: float
    tokenized_per_second_a_core: float | None
    windows_written_per_second: float
    models: dict[str, ModelBench]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def random_scorer(shape: str, device: str, dtype: str) -> AttentionScorer:
    """A scorer of a known shape whose tables are drawn: scores of deviation 2.6, as trained ones have."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import (
        LlamaRotaryEmbedding,
        apply_rotary_pos_emb,
    )

    heads, kv_heads, dim, vocabulary = SHAPES[shape]
    config = LlamaConfig(head_dim=dim, hidden_size=heads * dim, num_attention_heads=heads)
    generator = torch.Generator(device).manual_seed(0)
    q_vhd, k_vgd = (
        torch.empty((vocabulary, h, dim), device=device, dtype=getattr(torch, dtype)).normal_(
            0, 1.6, generator=generator
        )
        for h in (heads, kv_heads)
    )
    model = SimpleNamespace(rotary_emb=LlamaRotaryEmbedding(config=config).to(device))
    centre_gd = torch.zeros(kv_heads, dim, device=device)
    return AttentionScorer(Tables(q_vhd, k_vgd, centre_gd, dim**-0.5, model, apply_rotary_pos_emb))


def milliseconds(call: Callable[[], object], device: str) -> float:
    """Median time of a call."""
    if device == "cuda":
        from triton.testing import do_bench

        seconds: float = do_bench(call, warmup=50, rep=300, return_mode="median")
        return seconds
    times: list[float] = []
    told = 0.0
    while len(times) < 3 or (sum(times) < CPU_SECONDS and len(times) < 20):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
        if sum(times) - told >= QUIET_SECONDS:
            told = sum(times)
            log.info("  measured %s, the last of %.1f s", counted(len(times), "call"), times[-1])
    return 1e3 * middle.median(times)


def ceiling(device: str, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product, on random numbers."""
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / milliseconds(lambda: a @ b, device) / 1e9


def dense(q_hld: Tensor, k_gld: Tensor, min_distance: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The plain formulation: all L x L probabilities at once, softmax in float32."""
    length = q_hld.shape[1]
    s = q_hld @ k_gld.repeat_interleave(len(q_hld) // len(k_gld), 0).transpose(1, 2) * scaling
    n = torch.arange(length, device=s.device)
    p = s.masked_fill_(n > n[:, None], -math.inf).softmax(-1, dtype=torch.float32)
    far = p.masked_fill_(n[:, None] - n < min_distance, 0.0)
    return far.sum((1, 2)) / length, far.flatten(1).var(1)


def prepared(scorer: AttentionScorer, ids_l: Tensor, distances: list[int]) -> Callable[[], object]:
    """The statistics alone, of a window whose queries and keys are rotated."""
    first, length = min(distances), len(ids_l)
    if scorer.device.type == "cpu":
        q, k = scorer.tables.rotated(ids_l, torch.arange(length))
        return lambda: attention_sums(q[:, first:], k, distances, scorer.tables.scaling)
    from longattn.scoring import triton_kernel

    first_b = torch.tensor([first], dtype=torch.int32, device="cuda")
    q, k = scorer._rotated(ids_l[None].int().cuda(), None, first_b, length - first, 1)
    return lambda: triton_kernel.attention_sums(
        q, k, distances, first_b, reference=scorer._reference
    )


@torch.inference_mode()
def figures(scorer: AttentionScorer, length: int, top: float) -> Figures:
    device = scorer.device.type
    generator = torch.Generator().manual_seed(length)
    windows = max(2, STREAM_TOKENS // length) if device == "cuda" else 1
    draw = torch.rand((windows, length), generator=generator)
    ids_bl = (draw**4 * scorer.vocab_size).to(torch.int32)  # few ids make most of a text
    k = length // 4
    log.info("measuring windows of %d tokens: kernel", length)
    kernel = milliseconds(prepared(scorer, ids_bl[0].long(), [k]), device)
    log.info("measuring windows of %d tokens: three distances beside one", length)
    three = milliseconds(prepared(scorer, ids_bl[0].long(), [k, k // 2, 2 * k]), device)
    log.info("measuring windows of %d tokens: one distance", length)
    half = milliseconds(prepared(scorer, ids_bl[0].long(), [k // 2]), device)
    peak = None
    if device == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        scorer.score(ids_bl[0])
        peak = (torch.cuda.max_memory_allocated() - held) / 2**30
    log.info("measuring windows of %d tokens: whole call", length)
    call = milliseconds(lambda: scorer.score(ids_bl[0]), device)
    log.info("measuring windows of %d tokens: in a batch", length)
    stream = milliseconds(lambda: scorer.score(ids_bl), device) / len(ids_bl)
    work = 2 * scorer.heads * scorer.tables.q_vhd.shape[-1] * (length - k) * (length + k + 1) / 2
    tflops = work / kernel / 1e9
    busy = min(1.0, kernel / stream) if device == "cuda" else None
    share, call_share, stream_share = (work / ms / 1e9 / top for ms in (kernel, call, stream))
    return Figures(
        length,
        kernel,
        call,
        stream,
        tflops,
        share,
        call_share,
        stream_share,
        busy,
        three / half,
        peak,
    )


def dense_ratio(scorer: AttentionScorer) -> float | None:
    """Time of the dense formulation over that of the statistics, in one run; None: it does not fit."""
    device = scorer.device.type
    length = DENSE_TOKENS[device]
    ids_l = torch.randint(scorer.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        places = torch.arange(length, device=scorer.device)
        q, k = scorer.tables.rotated(ids_l.to(scorer.device), places)
        try:
            slow = milliseconds(lambda: dense(q, k, length // 4, scorer.tables.scaling), device)
        except torch.OutOfMemoryError:
            return None
        return slow / milliseconds(prepared(scorer, ids_l, [length // 4]), device)


def tokens_per_second(model: str) -> float | None:
    """Ids a second of one core, on the sample texts; None where the tokenizer is not installed."""
    try:
        from longattn.models import model_folder
        from longattn.windows.tokenizer import DocumentTokenizer
    except ImportError:
        return None
    tokenizer = DocumentTokenizer.from_file(model_folder(model) / "tokenizer.json")
    texts = []
    for file in sorted(Path(SAMPLES).glob("*.jsonl.gz")):
        with gzip.open(file, "rt") as lines:
            texts += [json.loads(line)["content"].encode() for line in lines]
    started = time.perf_counter()
    done = 0
    while time.perf_counter() - started < CPU_SECONDS / 2:
        done += sum(len(tokenizer.encode(text).ids) for text in texts)
    return done / (time.perf_counter() - started)


def windows_per_second_written(length: int) -> float:
    """Windows that one sink writes a second, to local disk, as the pipeline writes them."""
    import numpy as np
    import pyarrow as pa

    from longattn.storage.tables import write_table

    rng = np.random.default_rng(0)
    rows = 64
    ids = (rng.random(rows * length) ** 4 * 8192).astype(np.int32)
    offsets = np.arange(0, rows * length + 1, length, dtype=np.int32)
    text = "".join(chr(97 + int(c)) for c in rng.random(4 * length) ** 2 * 26)
    table = pa.table(
        {
            "data_id": [f"{i:032x}" for i in range(rows)],
            "content": [text] * rows,
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for i in range(4):
            write_table(f"{folder}/{i}.parquet", table, {})
        return 4 * rows / (time.perf_counter() - started)


def predict(tokens: int, stream_ms: float, length: int, tokenized: float | None) -> Prediction:
    windows = tokens / length
    rate = 1e3 / stream_ms * length
    hours = windows * stream_ms / 3.6e6
    return Prediction(tokens, windows, hours, rate / tokenized if tokenized else None)


def run_bench(
    model: str | None, lengths: list[int], tokens: int, device: str | None = None
) -> Bench:
    """All of it.

    Args:
        model: `8b` or `70b` (random tables of that shape), or a checkpoint; by default both shapes
            on a GPU, the built-in scorer on a CPU.
        lengths: tokens a window; the first is the one that is predicted for.
        tokens: of the corpus to predict for.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float16" if device == "cuda" else "float32"
    log.info("measuring matrix products")
    top = ceiling(device, getattr(torch, dtype))
    models = [model] if model else list(SHAPES) if device == "cuda" else ["builtin"]
    log.info("measuring the tokenizer")
    tokenized = tokens_per_second(model if model and model not in SHAPES else "builtin")
    log.info("measuring how fast windows are written")
    result = Bench(
        device=torch.cuda.get_device_name() if device == "cuda" else _processor(),
        cores=os.cpu_count(),
        torch=torch.__version__,
        dtype=dtype,
        ceiling_tflops=top,
        tokenized_per_second_a_core=tokenized,
        windows_written_per_second=windows_per_second_written(lengths[0]),
        models={},
    )
    for name in models:
        log.info("loading the scorer %s", without_secrets(name))
        if name in SHAPES:
            scorer = random_scorer(name, device, dtype)
        else:
            scorer = AttentionScorer.from_pretrained(name, device=device)
        rows = [figures(scorer, length, top) for length in lengths]
        log.info("measuring the dense formulation")
        result.models[name] = ModelBench(
            heads=scorer.heads,
            dtype=str(scorer.dtype).removeprefix("torch."),
            errors=scorer.errors,
            dense_ratio=dense_ratio(scorer),
            dense_tokens=DENSE_TOKENS[device],
            lengths=rows,
            prediction=predict(tokens, rows[0].stream, lengths[0], tokenized),
        )
        del scorer
    return result


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def shown(result: Bench) -> str:
    """The result as lines for a person."""
    tokenized = result.tokenized_per_second_a_core
    lines = [
        f"{result.device}, {result.cores} cores, torch {result.torch}, {result.dtype}",
        f"matrix products: {result.ceiling_tflops:.3g} TFLOP/s",
        "tokenizing: "
        + (f"{tokenized / 1e6:.1f} M tokens/s a core" if tokenized else "not measured"),
        f"writing: {result.windows_written_per_second:.0f} windows/s",
    ]
    for name, model in result.models.items():
        ratio = model.dense_ratio
        lines.append(
            f"{name} ({model.heads} heads, {model.dtype}): the dense formulation at "
            f"{model.dense_tokens} tokens "
            + (f"takes {ratio:.1f} times as long" if ratio else "does not fit in the memory")
        )
        if off := model.errors:
            lines.append(
                f"  of float32, windows of {off.tokens} real tokens: DS off by {off.ds:.1e}, "
                f"variance by {off.variance:.1e}"
            )
        lines.append(
            "    tokens  kernel ms  call ms  in a batch ms  of ceiling: kernel  call  batch  "
            "busy  3 distances  GiB"
        )
        for row in model.lengths:
            busy = f"{row.busy:.0%}" if row.busy is not None else "-"
            peak = f"{row.peak_gib:.2f}" if row.peak_gib is not None else "-"
            lines.append(
                f"  {row.length:8} {row.kernel:10.2f} {row.call:8.2f} {row.stream:14.2f} "
                f"{row.share:19.0%} {row.call_share:5.0%} {row.stream_share:6.0%} "
                f"{busy:>5} {row.distances:11.2f}x {peak:>4}"
            )
        lines += COLUMNS
        told = model.prediction
        cores = f"{told.cores_a_device:.1f}" if told.cores_a_device else "?"
        lines.append(
            f"  {told.tokens:,} tokens, about {told.windows:,.0f} windows: "
            f"{told.device_hours:,.1f} device hours; {cores} cores tokenize for one device"
        )
    return "\n".join(lines)
