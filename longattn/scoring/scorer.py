"""Score token windows by the first attention layer of a language model.

from longattn.scoring.scorer import AttentionScorer
scorer = AttentionScorer.from_pretrained("builtin")
scores = scorer.score(ids)          # (batch, length) ints
scores.ds.mean(1)                   # dependency strength of each window
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longattn.scoring import statistics
from longattn.scoring.checkpoint import EMBEDDING, Checkpoint, open_checkpoint
from longattn.scoring.tables import Tables, build_tables, first_layer, project, run_first_layer

_DTYPES = {"cpu": ("float32", "float64"), "cuda": ("bfloat16", "float16", "float32")}
# Relative differences from transformers' own attention that loading accepts: of what the tables
# compute, in float64 (1e-7 is seen, transformers' softmax being in float32), and then of a scorer in
# its own dtype, where large logits leave fewer digits.
_TOLERANCE = 1e-5
_DTYPE_TOLERANCE = {"float64": 1e-5, "float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Scores:
    """Statistics of a batch of windows, for each head.

    Attributes:
        ds: (batch, heads) dependency strength, float64, on the host.
        variance: (batch, heads) variance of the masked attention; the paper's DU is its negative.
    """

    ds: Tensor
    variance: Tensor


class AttentionScorer:
    """Dependency strength and variance of windows, by one model's first layer."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.vocab_size, self.heads, _ = tables.q_vhd.shape
        self.device = tables.q_vhd.device
        self.dtype = tables.q_vhd.dtype

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        rope_theta: float | None = None,
    ) -> "AttentionScorer":
        """Load a scorer, and compare it with transformers' own attention on a short sequence.

        Args:
            path_or_id: "builtin", a local folder, or a hub id (see `open_checkpoint`).
            device: "cpu" or "cuda[:i]"; a GPU if there is one by default.
            dtype: of the products; float32 on a CPU and bfloat16 on a GPU by default. Statistics
                are in float32 or better in any case.
            rope_theta: replaces the base of the checkpoint's rotary embedding.

        Raises:
            ValueError: the checkpoint cannot be read or scored truthfully, or an argument is off.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type not in _DTYPES:
            raise ValueError(f"device {str(place)!r}: allowed: {', '.join(_DTYPES)}")
        allowed = _DTYPES[place.type]
        name = str(dtype or {"cpu": "float32", "cuda": "bfloat16"}[place.type]).removeprefix(
            "torch."
        )
        if name not in allowed:
            raise ValueError(f"dtype {name!r} on {place.type}: allowed: {', '.join(allowed)}")
        if rope_theta is not None and not rope_theta > 0:
            raise ValueError(f"rope_theta {rope_theta!r}: allowed: a positive number")
        checkpoint = open_checkpoint(path_or_id)
        scorer = cls(build_tables(checkpoint, place, getattr(torch, name), rope_theta))
        _compare_with_transformers(scorer, checkpoint, rope_theta)
        return scorer

    @torch.inference_mode()
    def score(
        self, input_ids: Tensor | np.ndarray | list, min_distance: int | None = None
    ) -> Scores:
        """Statistics of each window; the same bits whatever else is in the batch.

        Args:
            input_ids: (batch, length) or (length,) ints.
            min_distance: the paper's k, in tokens; length // 4 by default.

        Returns:
            Scores with (batch, heads) tensors; a single window has a batch of one.

        Raises:
            ValueError: an id outside the vocabulary, a window under 2 tokens, or k outside
                [1, length].
        """
        ids_bl = torch.as_tensor(input_ids)
        if ids_bl.ndim == 1:
            ids_bl = ids_bl[None]
        if ids_bl.ndim != 2 or ids_bl.is_floating_point() or ids_bl.shape[1] < 2:
            raise ValueError(
                f"input_ids: {ids_bl.dtype} of shape {tuple(ids_bl.shape)}; allowed: ints of shape (batch, length), length at least 2"
            )
        ids_bl, length = ids_bl.to(torch.int64), ids_bl.shape[1]
        k = max(1, length // 4) if min_distance is None else min_distance
        if not 1 <= k <= length:
            raise ValueError(f"min_distance {k}: allowed: 1 to the window's length, {length}")
        if ids_bl.numel() and not 0 <= int(ids_bl.min()) <= int(ids_bl.max()) < self.vocab_size:
            raise ValueError(
                f"input_ids: from {ids_bl.min()} to {ids_bl.max()}; allowed: 0 to {self.vocab_size - 1}"
            )
        ids_bl = ids_bl.to(self.device)
        positions_l = torch.arange(length, device=self.device)
        sums = [self._sums(ids_l, positions_l, k) for ids_l in ids_bl]
        if not sums:
            empty = torch.empty((0, self.heads), dtype=torch.float64)
            return Scores(empty, empty)
        s1_bh = torch.stack([s1 for s1, _ in sums]).cpu()
        s2_bh = torch.stack([s2 for _, s2 in sums]).cpu()
        return Scores(*statistics.statistics_from_sums(s1_bh, s2_bh, length))

    def _sums(self, ids_l: Tensor, positions_l: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """S1 and S2 of one window, (heads,) each, on the scoring device."""
        q_hld, k_gld = self.tables.rotated(ids_l, positions_l)
        if self.device.type == "cpu":
            return statistics.attention_sums(q_hld, k_gld, k, self.tables.scaling)
        from longattn.scoring import triton_kernel

        s1_bh, s2_bh = triton_kernel.attention_sums(
            q_hld[None], k_gld[None], k, self.tables.scaling
        )
        return s1_bh[0], s2_bh[0]


def _compare_with_transformers(
    scorer: AttentionScorer, checkpoint: Checkpoint, rope_theta: float | None
) -> None:
    """Raise ValueError if the scores of 128 random tokens are not those of eager attention.

    The positions are spread over 65536, so that a rule which sets in late is met too. Embedding,
    rotation, scaling and mask of the other side are transformers' own.
    """
    length, k = 128, 32
    generator = torch.Generator().manual_seed(0)
    ids_l = torch.randint(scorer.vocab_size, (length,), generator=generator)
    positions_l = torch.randperm(65536, generator=generator)[:length].sort().values
    rows_l = torch.arange(length)
    embedding_lc = torch.cat([checkpoint.read(EMBEDDING, i, i + 1) for i in ids_l.tolist()])
    model = first_layer(checkpoint, torch.device("cpu"), torch.float64, rope_theta)
    (p_bhll,) = run_first_layer(model, embedding_lc, rows_l[None], "eager", positions_l[None])
    truth = statistics.probability_statistics(p_bhll[0], k)

    exact = project(model, embedding_lc, torch.float64)
    definition = statistics.dense_statistics(*exact.rotated(rows_l, positions_l), k, exact.scaling)
    _require_close(definition, truth, _TOLERANCE, f"the first layer of {checkpoint.path}")
    sums = scorer._sums(ids_l.to(scorer.device), positions_l.to(scorer.device), k)
    ours = statistics.statistics_from_sums(sums[0].cpu(), sums[1].cpu(), length)
    name = str(scorer.dtype).removeprefix("torch.")
    _require_close(ours, truth, _DTYPE_TOLERANCE[name], f"{checkpoint.path} in {name}")


def _require_close(
    ours: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], tolerance: float, what: str
) -> None:
    """DS and variance, each head's difference relative to it, or to a thousandth of the largest."""
    for name, got_h, expected_h in zip(("DS", "variance"), ours, truth, strict=True):
        scale_h = expected_h.clamp_min(float(expected_h.max()) * 1e-3)
        difference = float(((got_h - expected_h).abs() / scale_h).max())
        if not difference <= tolerance:
            raise ValueError(
                f"{what} is refused: its {name} differs from transformers' own attention by {difference:.1e} (relative; allowed {tolerance:.0e})"
            )
