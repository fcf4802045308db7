"""How the far attention of one window is made: where it goes, and between which passages.

The window is scored again, a block of rows at a time: softmax, then sums over passages of equal
length. Memory is O(length x rows). Summed over all passages, the far attention is L x DS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from longattn.models import require_reachable
from longattn.reports.page import packed, render
from longattn.reports.passages import (
    OVER_UNIFORM,
    OVER_USUAL,
    Pair,
    Passage,
    passage_text,
    printable,
    standing_out,
)
from longattn.reports.verdict import Verdict, verdict_of
from longattn.resume.origin import require_origin
from longattn.scoring.checkpoint import open_checkpoint
from longattn.scoring.scorer import AttentionScorer
from longattn.scoring.window_scorer import with_bos
from longattn.storage.files import read_bytes
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import open_parquet, own_files, read_row
from longattn.text import without_secrets
from longattn.windows.recurrence import Recurrence
from longattn.windows.tokenizer import load_tokenizer

PASSAGES = 128  # of a window, at most; 256 tokens each at 32K
SHORTEST = 32  # tokens of a passage: less is no text to read
UNSHOWN = ("ds_heads", "weights")
GUESSED = 0.02  # of a DS, that products in 16 bits may be off
SCALE = 24  # steps of a doubling, in what the page gets of a map

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """What is inspected, and with which scorer."""

    title: str
    ids: NDArray[np.int32]
    """The document's own, no BOS."""
    model: str
    min_distance: int
    bos: int | None
    rope_theta: float | None
    facts: dict[str, Any]
    """Of its labelled row, to be shown."""
    verdict: Verdict | None = None
    """What the last selection made of it; None where nothing was selected, or of a text file."""


@dataclass(frozen=True)
class Inspection:
    """Attention of one window, summed over passages; heads first, then queries, then keys.

    Attributes:
        all_hqk: attention of all the tokens of passage q to those of passage k: rows sum to their
            number of tokens.
        far_hqk: of that, what goes min_distance tokens back or more.
        uniform_qk: what `all_hqk` would be were attention spread evenly over the past.
        far_uniform_qk: the same of `far_hqk`.
    """

    window: Window
    edges: list[int]
    all_hqk: Floats
    far_hqk: Floats
    uniform_qk: Floats
    far_uniform_qk: Floats
    pairs: list[Pair]
    head: int | None
    """The head that was asked for; None: the mean over heads."""

    @property
    def ds_h(self) -> Floats:
        """DS of each head."""
        ds_h: Floats = self.far_hqk.sum((1, 2)) / self.edges[-1]
        return ds_h

    @property
    def times_qk(self) -> Floats:
        """The map: multiples of uniform attention, of the head or the mean over heads."""
        return _times(_of_head(self.all_hqk, self.head), self.uniform_qk)

    @property
    def far_given_q(self) -> Floats:
        """Share of each passage's attention that goes far."""
        share_q: Floats = _of_head(self.far_hqk, self.head).sum(1) / np.diff(self.edges)
        return share_q

    @property
    def far_received_k(self) -> Floats:
        """Far attention that each passage receives, a token of it."""
        received_k: Floats = _of_head(self.far_hqk, self.head).sum(0) / np.diff(self.edges)
        return received_k


# --- what to inspect -----------------------------------------------------------------------------


def labelled_window(output: str, data_id: str, model: str = "builtin") -> Window:
    """A window of an output folder.

    Args:
        output: the folder.
        data_id: of the window.
        model: taken where the folder does not say what scored it, with the defaults of a run.

    Raises ValueError where no labelled windows are there, or no such window.
    """
    origin = require_origin(output)
    parts = origin.parts
    category = data_id.rsplit("-", 2)[0] if origin.is_run else None
    row = _row(own_files(OutputFolder(output).labelled_files(category)), data_id)
    if row is None:
        raise ValueError(
            f"{output}: no labelled window {data_id!r}; ids are category-document-index, as the "
            "column data_id of labelled/ and the report have them"
        )
    ids = np.array(row.pop("input_ids"), np.int32)
    if origin.unknown:
        row["what is known"] = f"{origin.unknown}"
    verdict = verdict_of(output, data_id, row)
    if parts is None or origin.model is None:
        bos = load_tokenizer(model).bos_token_id
        row["guessed"] = f"{without_secrets(model)}, k a quarter of the window"
        return Window(data_id, ids, model, max(1, len(ids) // 4), bos, None, row, verdict)
    row["weights"] = parts.weights
    return Window(
        data_id, ids, origin.model, parts.min_distance, parts.bos, parts.rope_theta, row, verdict
    )


def text_window(path: str, model: str, window: int) -> Window:
    """The first `window` tokens of a text file, all of a shorter one.

    Raises ValueError where there is no such file, it is not UTF-8, or too short.
    """
    data = read_bytes(path)
    if data is None:
        raise ValueError(f"{path}: no such file")
    require_reachable(model)
    tokenizer = load_tokenizer(model)
    try:
        tokens = tokenizer.encode(data).ids
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from None
    ids = tokens[:window]
    if len(ids) < 4 * SHORTEST:
        raise ValueError(f"{path}: {len(ids)} tokens; {4 * SHORTEST} or more are wanted")
    facts = {
        "source": path,
        "token_start": 0,
        "token_stop": len(ids),
        "tokens in file": len(tokens),
    }
    return Window(path, ids, model, len(ids) // 4, tokenizer.bos_token_id, None, facts)


def _row(urls: list[str], data_id: str) -> dict[str, Any] | None:
    columns = [
        "category",
        "source",
        "document_id",
        "window_index",
        "token_start",
        "token_stop",
        "ds",
        "variance",
        *Recurrence._fields,
        "ds_heads",
        "input_ids",
    ]
    for url in urls:
        with open_parquet(url) as parquet:
            ids = parquet.read(columns=["data_id"])["data_id"].to_pylist()
        if data_id in ids:
            return read_row(url, ids.index(data_id), columns)
    return None


# --- its attention -------------------------------------------------------------------------------


@torch.inference_mode()
def inspect_window(
    window: Window, *, head: int | None = None, device: str | None = None
) -> Inspection:
    """Score a window again, keeping what goes where.

    Args:
        window: from `labelled_window` or `text_window`.
        head: the head to look at; the mean over heads by default.
        device: a GPU if there is one by default.

    Raises:
        ValueError: the checkpoint cannot be scored, is not the one of the folder, or has no such
            head.
    """
    require_reachable(window.model)
    if "ds_heads" in window.facts:
        _require_same_weights(window)
    scorer = AttentionScorer.from_pretrained(
        window.model, device=device, rope_theta=window.rope_theta
    )
    if head is not None and not 0 <= head < scorer.heads:
        shown = without_secrets(window.model)
        raise ValueError(f"--head {head}: {shown} has heads 0 to {scorer.heads - 1}")
    ids = with_bos(window.ids.astype(np.int64)[None], window.bos)[0]
    ids_l = torch.from_numpy(ids).to(scorer.device)
    positions_l = torch.arange(len(ids), device=scorer.device)
    q_hld, k_gld = scorer.tables.rotated(ids_l, positions_l)
    attention = _Attention(q_hld.float(), k_gld.float(), scorer.tables.scaling)
    length = len(ids)
    step = max(SHORTEST, -(-length // PASSAGES))
    edges = [*range(0, length, step), length]
    n = len(edges) - 1
    all_hqk, far_hqk = (np.zeros((scorer.heads, n, n)) for _ in range(2))
    for q in range(n):
        for h in range(scorer.heads):
            p_rl = attention.rows(h, edges[q], edges[q + 1])
            all_hqk[h, q, : q + 1] = _by_passage(p_rl, step)
            far_rl = p_rl.tril(edges[q] - window.min_distance)
            far_hqk[h, q, : q + 1] = _by_passage(far_rl, step)
    uniform_qk, far_uniform_qk = (_uniform(length, k, edges) for k in (0, window.min_distance))
    chosen = standing_out(_of_head(far_hqk, head), far_uniform_qk)
    tokenizer = load_tokenizer(window.model)
    heads = range(scorer.heads) if head is None else [head]
    pairs = []
    for place in chosen:
        q, k = place.q, place.k
        p_rl = torch.stack([attention.rows(h, edges[q], edges[q + 1]) for h in heads]).sum(0)
        p_rc = p_rl[:, edges[k] : edges[k + 1]].cpu().numpy()
        pairs.append(
            Pair(
                passage_text(tokenizer, ids, window.bos, edges[q], edges[q + 1], p_rc.sum(1)),
                passage_text(tokenizer, ids, window.bos, edges[k], edges[k + 1], p_rc.sum(0)),
                place.times,
                place.usual,
            )
        )
    found = Inspection(window, edges, all_hqk, far_hqk, uniform_qk, far_uniform_qk, pairs, head)
    _require_stored_score(found)
    return found


def _require_stored_score(found: Inspection) -> None:
    """A window whose scorer was guessed has the DS that is stored, or it is refused."""
    facts = found.window.facts
    ds = float(found.ds_h.mean())
    if "guessed" in facts and not abs(ds - facts["ds"]) <= GUESSED * abs(facts["ds"]):
        raise ValueError(
            f"{found.window.title}: what scored it is not stored, and {facts['guessed']} gives DS "
            f"{ds:.4f}, not {facts['ds']:.4f}: give the model that scored it"
        )


def _require_same_weights(window: Window) -> None:
    stored = window.facts.get("weights")
    if stored and open_checkpoint(window.model).fingerprint() != stored:
        raise ValueError(
            f"model {without_secrets(window.model)!r}: not the weights that this folder was scored with"
        )


@dataclass(frozen=True)
class _Attention:
    q_hld: torch.Tensor
    k_gld: torch.Tensor
    scaling: float

    def rows(self, head: int, start: int, stop: int) -> torch.Tensor:
        """Probabilities of the queries [start, stop) over the keys [0, stop)."""
        group = head * len(self.k_gld) // len(self.q_hld)
        s_rl = self.q_hld[head, start:stop] @ self.k_gld[group, :stop].T * self.scaling
        future_rl = torch.ones_like(s_rl, dtype=torch.bool).triu(start + 1)
        return torch.softmax(s_rl.masked_fill_(future_rl, -torch.inf), dim=-1)


def _by_passage(p_rl: torch.Tensor, step: int) -> Floats:
    sums_l = p_rl.sum(0, dtype=torch.float64).cpu().numpy()
    return np.add.reduceat(sums_l, np.arange(0, len(sums_l), step))


def _uniform(length: int, min_distance: int, edges: list[int]) -> Floats:
    """Sums over passages of 1 / (n + 1) wherever n - i >= min_distance."""
    rows = np.arange(length)[:, None]
    starts, stops = np.array(edges[:-1]), np.array(edges[1:])
    there = np.clip(rows - min_distance + 1 - starts, 0, stops - starts) / (rows + 1)
    return np.add.reduceat(there, starts, axis=0)


def _of_head(values_hqk: Floats, head: int | None) -> Floats:
    values_hqk_mean: Floats = values_hqk.mean(0) if head is None else values_hqk[head]
    return values_hqk_mean


def _times(values_qk: Floats, uniform_qk: Floats) -> Floats:
    """Multiples of uniform attention; NaN in the future."""
    return np.divide(
        values_qk, uniform_qk, out=np.full_like(values_qk, np.nan), where=uniform_qk > 0
    )


# --- to a page, to the terminal ------------------------------------------------------------------


def inspection_page(found: Inspection) -> str:
    """The page of an inspection as text."""
    length = found.edges[-1]
    return render(
        "inspection.html",
        script="inspection.js",
        data={
            "edges": found.edges,
            "minDistance": found.window.min_distance,
            "maps": [
                packed(_coded(_times(values, found.uniform_qk)))
                for values in [_of_head(found.all_hqk, None), *found.all_hqk]
            ],
            "given": [(far.sum(1) / np.diff(found.edges)).tolist() for far in _with_mean(found)],
            "received": [(far.sum(0) / np.diff(found.edges)).tolist() for far in _with_mean(found)],
            "uniform": (found.far_uniform_qk.sum(1) / np.diff(found.edges)).tolist(),
            "head": 0 if found.head is None else found.head + 1,
            "scale": SCALE,
        },
        title=f"Window {found.window.title}",
        found=found,
        facts={k: v for k, v in found.window.facts.items() if k not in UNSHOWN},
        ds=float(found.ds_h.mean()),
        null=float(found.far_uniform_qk.sum() / length),
        verdict=found.window.verdict,
        no_pairs=no_pairs(found),
        over_uniform=f"{OVER_UNIFORM:g}",
        over_usual=f"{OVER_USUAL:g}",
        length=length,
    )


def _with_mean(found: Inspection) -> list[Floats]:
    return [_of_head(found.far_hqk, None), *found.far_hqk]


def _coded(times_qk: Floats) -> NDArray[np.uint8]:
    """Multiples of uniform as a byte: 128 is 1, SCALE steps a doubling; 0 in the future."""
    with np.errstate(divide="ignore"):
        steps = np.clip(np.round(128 + SCALE * np.log2(times_qk)), 1, 255)
    return np.where(np.isnan(times_qk), 0, steps).astype(np.uint8).ravel()


def print_inspection(found: Inspection, console: Console) -> None:
    """The same for a terminal."""
    who = "mean over heads" if found.head is None else f"head {found.head}"
    null = found.far_uniform_qk.sum() / found.edges[-1]
    if "what is known" in found.window.facts:
        console.print(f"Its folder was {found.window.facts['what is known']}.")
    if found.window.verdict:
        console.print(found.window.verdict.sentence())
    console.print(
        f"DS {found.ds_h.mean():.4f} (uniform attention: {null:.4f}); by head: "
        + " ".join(f"{ds:.3f}" for ds in found.ds_h)
    )
    console.print(
        f"\nattention by position, {who}; rows are queries, columns keys, 0 to {found.edges[-1]} "
        "tokens;  ·<1/4  ░<1/2  ▒<1  ▓<2  █ 2 times uniform or more"
    )
    for line in _map_lines(found):
        console.print(Text(line))
    for name, values in (
        ("share of a passage's attention that goes far", found.far_given_q),
        ("far attention that a passage receives", found.far_received_k),
    ):
        console.print(f"\n{name}, 0 to {values.max():.3g}")
        bars = (values * (8 / max(values.max(), 1e-12))).astype(int).clip(0, 8)
        console.print(Text("".join(" ▁▂▃▄▅▆▇█"[b] for b in bars)))
    if not found.pairs:
        console.print(f"\n{no_pairs(found)}")
    for pair in found.pairs:
        table = Table(
            f"tokens {pair.read.start} to {pair.read.stop}, read {pair.times:.1f} times "
            f"uniform (usual so far apart: {pair.usual:.1f}) by",
            f"tokens {pair.reader.start} to {pair.reader.stop}",
            expand=True,
        )
        for column in table.columns:
            column.ratio = 1
        table.add_row(_marked(pair.read), _marked(pair.reader))
        console.print()
        console.print(table)


def no_pairs(found: Inspection) -> str:
    """Why no pair of passages is shown."""
    times = _times(_of_head(found.far_hqk, found.head), found.far_uniform_qk)
    most = f"; the most is {np.nanmax(times):.1f} times uniform" if np.isfinite(times).any() else ""
    return f"No pair of passages stands out from those as far apart{most}."


def _map_lines(found: Inspection) -> Iterator[str]:
    n = len(found.edges) - 1
    cell = max(1, -(-n // 32))
    starts = np.arange(0, n, cell)

    def coarse(values_qk: Floats) -> Floats:
        return np.add.reduceat(np.add.reduceat(values_qk, starts, axis=0), starts, axis=1)

    times = _times(coarse(_of_head(found.all_hqk, found.head)), coarse(found.uniform_qk))
    for row in times:
        cells = np.digitize(row[~np.isnan(row)], [0.25, 0.5, 1, 2])
        yield "".join("·░▒▓█"[c] * 2 for c in cells)


def _marked(passage: Passage) -> Text:
    text = Text()
    for part, mark in passage.segments:
        text.append(printable(part), style="bold reverse" if mark else "")
    return text
