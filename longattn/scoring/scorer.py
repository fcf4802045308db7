"""Score token windows by the first attention layer of a language model.

from longattn.scoring.scorer import AttentionScorer
scorer = AttentionScorer.from_pretrained("builtin")
scores = scorer.score(ids)          # (batch, length) ints
scores.ds.mean(1)                   # dependency strength of each window
"""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from hashlib import blake2b
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longattn.scoring import precision, statistics
from longattn.scoring.checkpoint import open_checkpoint
from longattn.scoring.compile_ahead import compile_ahead, head_dim_of
from longattn.scoring.tables import Tables, build_tables

if TYPE_CHECKING:
    from longattn.scoring.triton_kernel import Turns

log = logging.getLogger("longattn")
_DTYPES = {"cpu": ("float32", "float64"), "cuda": precision.GPU_DTYPES}
_LAUNCH_BYTES = 400 << 20  # queries and keys of the windows of one launch
_SAMPLE = 32768  # tokens of real text by which that is decided
_MAX_LOST = 0.02  # share of blocks done twice above which every score is taken relative to its row


@dataclass(frozen=True)
class Scores:
    """Statistics of a batch of windows, for each head.

    Attributes:
        ds: (batch, heads) dependency strength, float64, on the host; (batch, heads, distances) for
            a list of distances.
        variance: the same shape; variance of the masked attention; the paper's DU is its negative.
    """

    ds: Tensor
    variance: Tensor


class AttentionScorer:
    """Dependency strength and variance of windows, by one model's first layer.

    Args:
        tables: of the model.
        sample_l: ids of some text, by which a GPU decides how to keep scores in range; drawn ones
            by default.

    Attributes:
        errors: how far off float32 it was measured to be, on a GPU, or None.
    """

    def __init__(self, tables: Tables, sample_l: Tensor | None = None) -> None:
        self.tables = tables
        self.errors: precision.Errors | None = None
        self.vocab_size, self.heads, head_dim = tables.q_vhd.shape
        self.device = tables.q_vhd.device
        self.dtype = tables.q_vhd.dtype
        self.model: str | None = None  # whose tokenizer reads a text
        if self.device.type == "cuda" and head_dim % 8:
            raise ValueError(
                f"head_dim {head_dim}: allowed on a GPU: multiples of 8; a CPU takes any"
            )
        self._half = tables.rotates_halves()
        self._turns: tuple[Turns, Turns] | None = None
        # Decided here, from fixed ids, for all windows: the bits of a window have no history.
        self._reference = self.device.type == "cuda" and self._leaves_range(sample_l)

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
            dtype: of the products; float32 on a CPU; on a GPU by default the fastest that keeps the
                scores of real text (see `precision`). Statistics are in float32 or better in any case.
            rope_theta: replaces the base of the checkpoint's rotary embedding.

        Raises:
            ValueError: the checkpoint cannot be read or scored truthfully, or an argument is off.
        """
        try:
            place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except RuntimeError:  # no word of torch's
            place = torch.device("meta")
        if place.type not in _DTYPES:
            raise ValueError(f"device {str(device)!r}: allowed: {', '.join(_DTYPES)}")
        allowed = _DTYPES[place.type]
        name = str(dtype or "float32").removeprefix("torch.")
        if name not in allowed:
            raise ValueError(f"dtype {name!r} on {place.type}: allowed: {', '.join(allowed)}")
        if place.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {str(place)!r}: torch sees no CUDA device here")
        if rope_theta is not None and not rope_theta > 0:
            raise ValueError(f"rope_theta {rope_theta!r}: allowed: a positive number")
        checkpoint = open_checkpoint(path_or_id)
        on_gpu = place.type == "cuda"
        if on_gpu and dtype is None:
            name = precision.choose_dtype(checkpoint, rope_theta).dtype
        compiling = None
        if on_gpu and (dim := head_dim_of(checkpoint.path)):
            compiling = compile_ahead(dim, name, str(place))
        tables = build_tables(checkpoint, place, getattr(torch, name), rope_theta)
        sample_l = None
        if on_gpu:
            sample_l = precision.real_windows(checkpoint, len(tables.q_vhd), _SAMPLE)[0]
        if compiling:
            wait(compiling.usual)
        scorer = cls(tables, sample_l)
        if compiling and scorer._reference:
            wait(compiling.with_reference)
        precision.compare_with_transformers(scorer, checkpoint, rope_theta)
        if on_gpu:
            scorer.errors = precision.measure(scorer, checkpoint, rope_theta)
            if dtype is None:
                precision.require_accurate(scorer.errors, checkpoint)
            level = logging.INFO if scorer.errors.within() else logging.WARNING
            log.log(level, "%s in %s (of float32, real text)", checkpoint.name, scorer.errors)
        scorer.model = path_or_id
        return scorer

    def score_text(
        self,
        text: str | Sequence[str],
        min_distance: int | Sequence[int] | None = None,
        query_stride: int = 1,
    ) -> Scores:
        """Statistics of texts, each scored as one window, whatever its length.

        As in a run, the BOS token of a tokenizer that puts one takes position 0, and the last token
        gives way. Time grows with the square of the length: `sliding_windows` cuts long documents.

        Args:
            text: a text, or several.
            min_distance: as in `score`; a quarter of each text's tokens by default.
            query_stride: as in `score`.

        Returns:
            Scores with (texts, heads) tensors, or (texts, heads, distances) for a list.

        Raises:
            ValueError: no text, one under 2 tokens, a scorer without a tokenizer, or as `score`.
        """
        texts = [text] if isinstance(text, str) else text
        listed = isinstance(texts, Sequence) and len(texts) > 0
        if not listed or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"text: one or more of str are required; given {text!r:.80}")
        if self.model is None:
            raise ValueError(
                "this scorer has no tokenizer: AttentionScorer.from_pretrained gives one"
            )
        from longattn.scoring.window_scorer import with_bos
        from longattn.windows.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(self.model)
        parts = []
        for one in texts:
            ids_bl = with_bos(tokenizer.encode(one.encode()).ids[None], tokenizer.bos_token_id)
            parts.append(self.score(ids_bl, min_distance, query_stride))
        return Scores(torch.cat([p.ds for p in parts]), torch.cat([p.variance for p in parts]))

    @torch.inference_mode()
    def score(
        self,
        input_ids: Tensor | np.ndarray | list[Any],
        min_distance: int | Sequence[int] | None = None,
        query_stride: int = 1,
    ) -> Scores:
        """Statistics of each window; the same bits whatever else is in the batch.

        Args:
            input_ids: (batch, length) or (length,) ints.
            min_distance: the paper's k, in tokens; length // 4 by default. A list gives the scores
                of each, from one Q K^T.
            query_stride: score every s-th row only, from an offset that a hash of the ids decides:
                DS is then an unbiased estimate, at 0.4 (s = 4) to 0.2 (16) of the cost on a GPU.

        Returns:
            Scores with (batch, heads) tensors, or (batch, heads, distances) for a list; a single
            window has a batch of one.

        Raises:
            ValueError: an id outside the vocabulary, a window under 2 tokens, k outside
                [1, length], or a stride outside [1, length - largest k].
        """
        ids_bl = torch.as_tensor(input_ids)
        if ids_bl.ndim == 1:
            ids_bl = ids_bl[None]
        if ids_bl.ndim != 2 or ids_bl.is_floating_point() or ids_bl.shape[1] < 2:
            raise ValueError(
                f"input_ids: {ids_bl.dtype} of shape {tuple(ids_bl.shape)}; allowed: ints of "
                "shape (batch, length), length at least 2"
            )
        ids_bl, length = ids_bl.to(torch.int64), ids_bl.shape[1]
        if min_distance is None:
            min_distance = max(1, length // 4)
        single = np.ndim(min_distance) == 0
        try:
            distances = [index(k) for k in np.atleast_1d(np.asarray(min_distance, object))]
            query_stride = index(query_stride)
        except TypeError:
            raise ValueError(
                f"min_distance {min_distance!r}, query_stride {query_stride!r}: allowed: "
                "integers, or a list of them for k"
            ) from None
        if not distances or not all(1 <= k <= length for k in distances):
            raise ValueError(
                f"min_distance {min_distance}: allowed: 1 to the window's length, {length}"
            )
        if query_stride != 1 and not 1 <= query_stride <= length - max(distances):
            raise ValueError(
                f"query_stride {query_stride}: allowed: 1 to {length - max(distances)}, the rows "
                "that see far"
            )
        if ids_bl.numel() and not 0 <= int(ids_bl.min()) <= int(ids_bl.max()) < self.vocab_size:
            raise ValueError(
                f"input_ids: from {ids_bl.min()} to {ids_bl.max()}; allowed: 0 to "
                f"{self.vocab_size - 1}"
            )
        ids_bl = ids_bl.to(torch.int32)
        offsets = [_offset(ids_l, query_stride) for ids_l in ids_bl]
        step = self._windows_at_once(length)
        sums = [
            self._sums(ids_bl[i : i + step], None, distances, offsets[i : i + step], query_stride)
            for i in range(0, len(ids_bl), step)
        ]
        if not sums:
            empty = torch.empty((0, self.heads, len(distances)), dtype=torch.float64)
            ds, variance = empty, empty
        else:
            s1_bhk, s2_bhk = (
                query_stride * torch.cat(parts).cpu() for parts in zip(*sums, strict=True)
            )
            ds, variance = statistics.statistics_from_sums(s1_bhk, s2_bhk, length)
        return Scores(ds[..., 0], variance[..., 0]) if single else Scores(ds, variance)

    def _sums(
        self,
        ids_bl: Tensor,
        positions_l: Tensor | None,
        distances: Sequence[int],
        offsets: Sequence[int],
        stride: int,
    ) -> tuple[Tensor, Tensor]:
        """S1 and S2 of some windows, (batch, heads, distances) each, on the scoring device.

        positions_l: 0 to length - 1 by default. Row r of a window stands at its smallest distance
        plus its offset plus stride * r.
        """
        length, first = ids_bl.shape[1], min(distances)
        rows = -(-(length - first) // stride)
        if self.device.type == "cpu":
            places = torch.arange(length) if positions_l is None else positions_l
            parts = []
            for ids_l, offset in zip(ids_bl.long(), offsets, strict=True):
                q_hld, k_gld = self.tables.rotated(ids_l, places)
                parts.append(
                    statistics.attention_sums(
                        q_hld[:, first + offset :: stride],
                        k_gld,
                        distances,
                        self.tables.scaling,
                        first + offset,
                        stride,
                    )
                )
            s1, s2 = (torch.stack(values) for values in zip(*parts, strict=True))
            return s1, s2
        from longattn.scoring import triton_kernel

        first_b = self._sent(
            torch.tensor([first + offset for offset in offsets], dtype=torch.int32)
        )
        ids_bl = self._sent(ids_bl)
        q_bhrd, k_bgld = self._rotated(ids_bl, positions_l, first_b, rows, stride)
        return triton_kernel.attention_sums(
            q_bhrd, k_bgld, distances, first_b, stride, reference=self._reference
        )

    def _rotated(
        self, ids_bl: Tensor, positions_l: Tensor | None, first_b: Tensor, rows: int, stride: int
    ) -> tuple[Tensor, Tensor]:
        """On a GPU: queries of the scored rows, times scaling * log2(e), and all keys, for the kernel."""
        from longattn.scoring import triton_kernel

        length, factor = ids_bl.shape[1], self.tables.scaling * math.log2(math.e)
        if self._half:
            if positions_l is not None:
                of_q, of_k = self._turned(positions_l.to(self.device), factor)
            else:
                if self._turns is None or len(self._turns[0].cos_ld) != length:
                    places = torch.arange(length, device=self.device)
                    self._turns = self._turned(places, factor)
                of_q, of_k = self._turns
            gather = triton_kernel.gather_rotate
            q = gather(self.tables.q_vhd, ids_bl, of_q, first_b, rows, stride)
            return q, gather(self.tables.k_vgd, ids_bl, of_k, torch.zeros_like(first_b), length)
        places = torch.arange(length, device=self.device) if positions_l is None else positions_l
        row_br = (first_b[:, None] + stride * torch.arange(rows, device=self.device)).clamp_max(
            length - 1
        )
        parts = []
        for ids_l, row_r in zip(ids_bl.long(), row_br, strict=True):
            q_hld, k_gld = self.tables.rotated_exactly(ids_l, places.to(self.device))
            parts.append((q_hld[:, row_r] * factor, k_gld))
        q, k = (torch.stack(values) for values in zip(*parts, strict=True))
        if self.dtype == torch.float32:
            return triton_kernel.split(q), triton_kernel.split(k)
        return q.to(self.dtype), k.to(self.dtype)

    def _turned(self, positions_l: Tensor, factor: float) -> "tuple[Turns, Turns]":
        from longattn.scoring.triton_kernel import Turns

        cos, sin = self.tables.cos_sin(positions_l)
        shift_gd = self.tables.shift_gd(cos, sin)
        return Turns(cos * factor, sin * factor), Turns(cos, sin, self.tables.centre_gd, shift_gd)

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device, without waiting for it."""
        return tensor.contiguous().pin_memory().to(self.device, non_blocking=True)

    def _windows_at_once(self, length: int) -> int:
        """Windows a launch: one of 32K tokens of an 8B model fills a GPU; of short ones, several."""
        if self.device.type == "cpu":
            return 1
        window_bytes = length * (self.tables.q_vhd[0].nbytes + self.tables.k_vgd[0].nbytes)
        return max(1, _LAUNCH_BYTES // window_bytes)

    def _leaves_range(self, sample_l: Tensor | None) -> bool:
        """Whether many rows' scores leave the range of float32 with nothing subtracted from them."""
        from longattn.scoring import triton_kernel

        if sample_l is None:
            generator = torch.Generator().manual_seed(1)
            sample_l = torch.randint(self.vocab_size, (2048,), generator=generator)
        length, k = len(sample_l), len(sample_l) // 4
        first_b = torch.tensor([k], dtype=torch.int32, device=self.device)
        ids_bl = sample_l[None].to(self.device, torch.int32)
        q, keys = self._rotated(ids_bl, None, first_b, length - k, 1)
        return triton_kernel.lost_share(q, keys, k, first_b) > _MAX_LOST


def _offset(ids_l: Tensor, stride: int) -> int:
    """Below `stride`, from a hash of the ids."""
    if stride == 1:
        return 0
    digest = blake2b(ids_l.to(torch.int32).numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest) % stride
