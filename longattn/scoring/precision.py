"""Which dtype a model's products may have on a GPU, and whether a scorer computes what it should.

Half-precision products are as fast in float16 as in bfloat16 and four times faster than in float32, but
what they cost in accuracy depends on the model. So rounding is tried on real text, the samples of the
package in the model's own tokens: first of all on a CPU, where a choice has the same outcome on every
machine, and then what the chosen kernel computes on the device is held against float32 there.
"""

import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longattn.samples import SAMPLES
from longattn.scoring import statistics
from longattn.scoring.checkpoint import EMBEDDING, Checkpoint
from longattn.scoring.tables import Tables, centre, first_layer, project, run_first_layer

if TYPE_CHECKING:
    from longattn.scoring.scorer import AttentionScorer

DS_BOUND, VARIANCE_BOUND = 1e-3, 1e-2
"""Largest relative differences from float32, of DS and variance of a window, that are accurate."""
GPU_DTYPES = ("float16", "bfloat16", "float32")  # in the order of preference
MEASURED_TOKENS = 8192  # of a window that is measured; shorter ones err more, longer ones less
_CHARACTERS = 8  # a token, at most: text enough for a window
_STRIDE = 16  # rows of which one is computed when a dtype is chosen
_MARGIN = (
    0.5  # share of the bounds allowed then, for the kernel adds and exponentiates in its own order
)
_DENSE_ROWS = 1024
_COMPARED = 128  # tokens that are compared with transformers' own attention
_FARTHEST = 65536
# Differences from transformers' own attention that loading accepts: of what the tables compute, in float64,
# and then of a scorer in its own dtype. Each: relative; and the share of the largest head's value below
# which a head's difference is held against that share. Few tokens far apart leave few digits of a head that
# hardly attends: of Qwen2.5-Coder-1.5B in float16, 5 % of one at 0.7 % of the largest, 0.004 % of the mean.
_TOLERANCE = (1e-5, 1e-3)
_DTYPE_TOLERANCE = {
    "float64": (1e-5, 1e-3),
    "float32": (1e-3, 1e-3),
    "float16": (5e-2, 3e-2),
    "bfloat16": (5e-2, 3e-2),
}


@dataclass(frozen=True)
class Errors:
    """How far a dtype's scores are off float32: relative, the mean over heads of the worst window.

    Attributes:
        dtype: of the products.
        ds, variance: the largest difference over the windows; NaN where one is not finite.
        tokens: length of the windows.
    """

    dtype: str
    ds: float
    variance: float
    tokens: int

    def within(self, share: float = 1.0) -> bool:
        return self.ds <= share * DS_BOUND and self.variance <= share * VARIANCE_BOUND

    def __str__(self) -> str:
        return f"{self.dtype}: DS off by {self.ds:.1e}, variance by {self.variance:.1e}"


def real_windows(checkpoint: Checkpoint, vocabulary: int, length: int) -> Tensor:
    """(texts, length) ids of the sample texts, by the checkpoint's tokenizer.

    Of a checkpoint without a tokenizer, which scores ids all the same, drawn ids: few are frequent.
    """
    if not checkpoint.tokenizer_file.is_file():
        draw_nl = torch.rand((3, length), generator=torch.Generator().manual_seed(0))
        return (draw_nl.double() ** 4 * vocabulary).long()
    file = checkpoint.tokenizer_file
    return _encoded_samples(file, file.stat().st_mtime_ns, length)


@lru_cache(maxsize=4)
def _encoded_samples(tokenizer_file: Path, modified: int, length: int) -> Tensor:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    windows = []
    for file in sorted(SAMPLES.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            text = "\n\n".join(json.loads(line)["content"] for line in lines)
        ids = tokenizer.encode(text[: _CHARACTERS * length], add_special_tokens=False).ids
        windows.append(torch.tensor(ids * -(-length // max(1, len(ids))))[:length])
    return torch.stack(windows)


def choose_dtype(checkpoint: Checkpoint, rope_theta: float | None = None) -> Errors:
    """The fastest dtype of a GPU whose rounding keeps the scores of real text; computed on the CPU.

    Queries and keys are rounded as a GPU would hold them, and the statistics of every 16th row
    computed in float32, so every machine makes the same choice, one without a GPU too.

    Raises:
        ValueError: no dtype keeps them; in one line, with the numbers of each.
    """
    windows_nl = real_windows(checkpoint, checkpoint.shape(EMBEDDING)[0], MEASURED_TOKENS)
    with torch.inference_mode():
        exact, rows_nl = _tables_of(windows_nl, checkpoint, torch.device("cpu"), rope_theta)
        truth = [_strided_statistics(exact, rows_l, None) for rows_l in rows_nl]
        tried = []
        for name in GPU_DTYPES:
            rounded = [_strided_statistics(exact, rows_l, name) for rows_l in rows_nl]
            tried.append(_errors(name, rounded, truth, MEASURED_TOKENS))
            if tried[-1].within(_MARGIN):
                return tried[-1]
    raise ValueError(_refusal(checkpoint, tried))


@torch.inference_mode()
def measure(
    scorer: "AttentionScorer", checkpoint: Checkpoint, rope_theta: float | None = None
) -> Errors:
    """How far a scorer's own kernel is off float32 on the same device, all rows, on real text."""
    length, k = MEASURED_TOKENS, MEASURED_TOKENS // 4
    windows_nl = real_windows(checkpoint, scorer.vocab_size, length)
    exact, rows_nl = _tables_of(windows_nl, checkpoint, scorer.device, rope_theta)
    scores = scorer.score(windows_nl, k)
    truth = [_dense_statistics(exact, rows_l, k) for rows_l in rows_nl]
    name = str(scorer.dtype).removeprefix("torch.")
    return _errors(name, list(zip(scores.ds, scores.variance, strict=True)), truth, length)


def require_accurate(errors: Errors, checkpoint: Checkpoint) -> None:
    """Raise ValueError, with the numbers, if a scorer's measured errors are beyond the bounds."""
    if not errors.within():
        raise ValueError(_refusal(checkpoint, [errors]))


def _refusal(checkpoint: Checkpoint, tried: Iterable[Errors]) -> str:
    told = "; ".join(map(str, tried))
    return (
        f"{checkpoint.name} is refused on a GPU: of real text, {told}; allowed: DS {DS_BOUND:.0e}, "
        f"variance {VARIANCE_BOUND:.0e}; a CPU computes in float32"
    )


def _tables_of(
    windows_nl: Tensor, checkpoint: Checkpoint, device: torch.device, rope_theta: float | None
) -> tuple[Tables, Tensor]:
    """Float32 tables of the ids that some windows hold, and the windows as rows of these."""
    ids_v, rows_nl = windows_nl.unique(return_inverse=True)
    model = first_layer(checkpoint, device, torch.float32, rope_theta)
    embedding_vc = checkpoint.read_rows(EMBEDDING, ids_v.tolist())
    return project(model, embedding_vc, centre(model, checkpoint)), rows_nl.to(device)


def _strided_statistics(exact: Tables, rows_l: Tensor, name: str | None) -> tuple[Tensor, Tensor]:
    """DS and variance estimated from some rows, on the CPU; with queries and keys rounded to a dtype."""
    length, k = len(rows_l), len(rows_l) // 4
    factor = exact.scaling * math.log2(math.e)
    held = exact
    if name in ("float16", "bfloat16"):
        dtype = getattr(torch, name)
        held = replace(exact, q_vhd=exact.q_vhd.to(dtype), k_vgd=exact.k_vgd.to(dtype))
    q_hld, k_gld = held.rotated_exactly(rows_l, torch.arange(length))
    q_hld, k_gld = q_hld[:, k::_STRIDE] * factor, k_gld
    if name is not None:
        q_hld, k_gld = (_rounded(x, name) for x in (q_hld, k_gld))
    s1, s2 = statistics.attention_sums(q_hld, k_gld, [k], 1 / math.log2(math.e), k, _STRIDE)
    return statistics.statistics_from_sums(_STRIDE * s1[:, 0], _STRIDE * s2[:, 0], length)


def _rounded(x: Tensor, name: str) -> Tensor:
    if name == "float32":  # what two parts of float16 hold of it
        high = x.half().float()
        return high + (x - high).half().float()
    return x.to(getattr(torch, name)).float()


def _dense_statistics(exact: Tables, rows_l: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """DS and variance of each head in plain float32 torch, some rows of the probabilities at a time."""
    length, device = len(rows_l), rows_l.device
    column = torch.arange(length, device=device)
    q_hld, k_gld = exact.rotated_exactly(rows_l, column)
    group = len(q_hld) // len(k_gld)
    sums_2h = torch.zeros(2, len(q_hld), dtype=torch.float64, device=device)
    for start in range(k, length, _DENSE_ROWS):
        row = column[start : start + _DENSE_ROWS, None]
        for head, q_ld in enumerate(q_hld):
            s_rl = (q_ld[start : start + _DENSE_ROWS] * exact.scaling) @ k_gld[head // group].T
            p_rl = s_rl.masked_fill_(column > row, -math.inf).softmax(-1)
            p_rl.masked_fill_(column > row - k, 0.0)
            sums_2h[0, head] += p_rl.sum(dtype=torch.float64)
            sums_2h[1, head] += p_rl.square_().sum(dtype=torch.float64)
    s1_h, s2_h = sums_2h.cpu()
    return statistics.statistics_from_sums(s1_h, s2_h, length)


def _errors(
    name: str,
    scores: Iterable[tuple[Tensor, Tensor]],
    truth: Iterable[tuple[Tensor, Tensor]],
    tokens: int,
) -> Errors:
    off = [
        [float(abs(got.mean() / true.mean() - 1)) for got, true in zip(ours, exact, strict=True)]
        for ours, exact in zip(scores, truth, strict=True)
    ]
    ds, variance = torch.tensor(off).amax(0).tolist()  # NaN where one is
    return Errors(name, ds, variance, tokens)


@torch.inference_mode()
def compare_with_transformers(
    scorer: "AttentionScorer", checkpoint: Checkpoint, rope_theta: float | None = None
) -> None:
    """Raise ValueError if the scores of 128 tokens are not those of transformers' eager attention.

    Of random ids and of real text, whose tokens are frequent ones; at positions spread over 65536, so
    that a rule which sets in late is met too. Embedding, rotation, scaling and mask of the other side
    are transformers' own.
    """
    length, k = _COMPARED, _COMPARED // 4
    generator = torch.Generator().manual_seed(0)
    random_l = torch.randint(scorer.vocab_size, (length,), generator=generator)
    real_l = real_windows(checkpoint, scorer.vocab_size, MEASURED_TOKENS)[0, :length]
    positions_l = torch.randperm(_FARTHEST, generator=generator)[:length].sort().values
    ids_bl = torch.stack([random_l, real_l])
    rows_bl = torch.arange(2 * length).view(2, length)
    embedding_vc = checkpoint.read_rows(EMBEDDING, ids_bl.flatten().tolist())
    model = first_layer(checkpoint, torch.device("cpu"), torch.float64, rope_theta)
    (p_bhll,) = run_first_layer(model, embedding_vc, rows_bl, "eager", positions_l[None])
    exact = project(model, embedding_vc)
    s1_bhk, s2_bhk = scorer._sums(ids_bl.to(torch.int32), positions_l, [k], [0, 0], 1)
    name = str(scorer.dtype).removeprefix("torch.")
    for b, p_hll in enumerate(p_bhll):
        truth = statistics.probability_statistics(p_hll, k)
        q_hld, k_gld = exact.rotated(rows_bl[b], positions_l)
        definition = statistics.dense_statistics(q_hld, k_gld, k, exact.scaling)
        _require_close(definition, truth, _TOLERANCE, f"the first layer of {checkpoint.name}")
        ours = statistics.statistics_from_sums(s1_bhk[b, :, 0].cpu(), s2_bhk[b, :, 0].cpu(), length)
        _require_close(ours, truth, _DTYPE_TOLERANCE[name], f"{checkpoint.name} in {name}")


def _require_close(
    ours: tuple[Tensor, Tensor],
    truth: tuple[Tensor, Tensor],
    allowed: tuple[float, float],
    what: str,
) -> None:
    """DS and variance, each head's difference relative to it, or to a share of the largest."""
    tolerance, share = allowed
    for name, got_h, expected_h in zip(("DS", "variance"), ours, truth, strict=True):
        scale_h = expected_h.clamp_min(float(expected_h.max()) * share)
        difference = float(((got_h - expected_h).abs() / scale_h).max())
        if not difference <= tolerance:
            raise ValueError(
                f"{what} is refused: its {name} differs from transformers' own attention by "
                f"{difference:.1e} (relative; allowed {tolerance:.0e})"
            )
