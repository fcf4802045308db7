"""Does a scorer select well? Measured on the user's own corpus, without labels.

Native windows of each category are set against foils, windows that differ from them in long-range
dependency alone: splices of several documents, the same window with its blocks or all its tokens
shuffled, and one passage repeated. AUC is the share of pairs in which the native window scores
higher: 0.5 is chance, and below it the scorer prefers the foil. Baselines that need no attention, and
with a causal model two that need all of it, are measured on the same windows.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longattn.config import Config
from longattn.models import require_reachable
from longattn.reports.evaluated_scores import EvaluatedScores, FurtherScores, HeadScorer, pairs
from longattn.reports.evaluation_record import (
    FEW_DOCUMENTS,
    FEW_HEADS,
    LABELS,
    Agreement,
    Auc,
    CategoryEvaluation,
    Evaluation,
    EvaluationSettings,
    HeadsEvaluation,
    Spread,
    lds_of,
)
from longattn.reports.foils import Ids, Windows, foils, generator, long_documents, native_windows
from longattn.reports.head_choice import head_choice
from longattn.reports.page import render
from longattn.reports.progress import with_progress
from longattn.reports.report import uniform_ds
from longattn.reports.score_columns import agreement, rank_correlation
from longattn.selection.auc import auc
from longattn.selection.heads import Half, HeadScores, head_aucs, lds_of_heads
from longattn.selection.lds import moments
from longattn.storage.files import write_bytes
from longattn.storage.output_folder import OutputFolder
from longattn.text import counted, without_secrets
from longattn.windows.recurrence import Recurrence, far_recurrence
from longattn.windows.tokenizer import DocumentTokenizer, load_tokenizer

if TYPE_CHECKING:
    from longattn.reports.causal_model import CausalModel
    from longattn.scoring.scorer import AttentionScorer
from longattn.scoring.window_scorer import with_bos

log = logging.getLogger("longattn")

Floats = NDArray[np.float64]
Score = Callable[[Ids], "Attention"]

FIRST_LAYER = ""  # beside names of scores
ALPHAS = (0.0, 0.25, 1.0, 2.0)
HEADS_SUM = "LDS, sum of standardised heads"


# --- scorers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """DS and variance, means over heads, (n,) each; and of every head, (n, heads), where they are kept."""

    ds: Floats
    variance: Floats
    ds_nh: Floats | None = None
    variance_nh: Floats | None = None

    def lds(self, corpus: Attention, alpha: float) -> Floats:
        """LDS (Eq. 8), standardised by the windows of `corpus`: the native ones, as in a real run."""
        (ds_mean, ds_std), (v_mean, v_std) = moments(corpus.ds), moments(corpus.variance)
        return (self.ds - ds_mean) / (ds_std or 1) - alpha * (self.variance - v_mean) / (v_std or 1)

    def by_head(self, documents: NDArray[np.int64]) -> HeadScores:
        """Scores of every head; `documents`: (n,) what the windows are of."""
        if self.ds_nh is None or self.variance_nh is None:
            raise ValueError("scores of heads were not kept")
        return HeadScores(self.ds_nh, self.variance_nh, documents)


def attention(
    scorer: AttentionScorer, ids_nl: Ids, k: int, bos: int | None, stride: int = 1
) -> Attention:
    """Scores of the windows, with the checkpoint's BOS in front as the pipeline puts it."""
    windows = with_progress(list(with_bos(ids_nl, bos)), "windows scored")
    scores = [scorer.score(ids_l, k, stride) for ids_l in windows]
    ds_n = np.array([float(s.ds.mean()) for s in scores])
    variance_n = np.array([float(s.variance.mean()) for s in scores])
    ds_nh, variance_nh = (
        np.stack([getattr(s, of).numpy().reshape(-1) for s in scores]) for of in ("ds", "variance")
    )
    return Attention(ds_n, variance_n, ds_nh, variance_nh)


def variants(config: Config, scorer: AttentionScorer, bos: int | None) -> dict[str, Score]:
    """Other ways to score the same windows, which a ranking ought to survive."""
    k, window = config.min_distance, config.window.tokens
    base = {"device": scorer.device, "dtype": scorer.dtype, "rope_theta": config.scorer.rope_theta}
    rope = getattr(scorer.tables.model.config, "rope_parameters", None) or {}
    theta = config.scorer.rope_theta or rope.get("rope_theta")
    changes: dict[str, dict[str, Any]] = {}
    if theta:
        changes |= {f"rope base x {f:g}": {"rope_theta": f * theta} for f in (0.1, 10)}
    dtypes = {"cpu": ["float64"], "cuda": ["float32", "bfloat16", "float16"]}[scorer.device.type]
    changes |= {name: {"dtype": name} for name in dtypes if name not in str(scorer.dtype)}

    def scored(by: AttentionScorer, distance: int = k, stride: int = 1) -> Score:
        return lambda ids_nl: attention(by, ids_nl, distance, bos, stride)

    def halves(ids_nl: Ids) -> Attention:
        half = window // 2
        parts = np.concatenate([ids_nl[:, :half], ids_nl[:, half : 2 * half]])
        both = attention(scorer, parts, max(1, k // 2), bos)
        return Attention(both.ds.reshape(2, -1).mean(0), both.variance.reshape(2, -1).mean(0))

    made = {f"k {d}": scored(scorer, d) for d in (k // 2, 2 * k) if 1 <= d < window}
    for name, change in changes.items():
        log.info("loading the scorer with %s", name)
        try:
            other = type(scorer).from_pretrained(config.scorer.model, **{**base, **change})
        except ValueError as error:  # a dtype that the model leaves the range or digits of
            log.warning("%s is left out: %s", name, error)
        else:
            made[name] = scored(other)
    strides = [stride for stride in (4, 16) if stride <= window - k]
    made |= {f"query_stride {stride}": scored(scorer, stride=stride) for stride in strides}
    return made | {"two half windows": halves}


# --- the whole evaluation ------------------------------------------------------------------------


def evaluate(
    config: Config,
    *,
    windows: int = 40,
    causal_model: str | None = None,
    held_out: float | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure the scorer of a config on its sources; the same answer for the same seed.

    Reads and scores here, without Ray: up to 8 kinds of `windows` windows a category, and 7 more
    passes over the native ones.

    Args:
        windows: native windows a category, and foils of each kind.
        causal_model: a causal model with the scorer's tokenizer, for the baselines that need one.
        held_out: see `long_documents`.

    Raises:
        ValueError: under 2 windows, a `min_distance` too long for a loss gap, or as
            `long_documents`, `AttentionScorer.from_pretrained` and
            `CausalModel` do.
    """
    if windows < 2:
        raise ValueError(f"windows {windows}: allowed: 2 or more")
    if causal_model and not 2 <= config.min_distance <= config.window.tokens / 2:
        raise ValueError("a loss gap wants a min_distance of 2 to half the window")
    require_reachable(config.scorer.model)
    require_reachable(causal_model or "")
    log.info("reading documents of %s", counted(len(config.sources), "source"))
    documents = long_documents(config, seed=seed, held_out=held_out)
    log.info("loading the scorer")
    measure = _Measure.of(config, windows, causal_model, seed)
    categories = {name: measure.category(name, found) for name, found in documents.items()}
    return Evaluation(
        EvaluationSettings(
            model=without_secrets(config.scorer.model),
            causal_model=causal_model and without_secrets(causal_model),
            window=config.window.tokens,
            min_distance=config.min_distance,
            alpha=config.select.alpha,
            dtype=str(measure.scorer.dtype).removeprefix("torch."),
            held_out=held_out,
            seed=seed,
            sources=[without_secrets(source.path) for source in config.sources],
        ),
        uniform_ds(config.window.tokens, config.min_distance),
        measure.further.costs(),
        categories,
    )


def write_evaluation(output: str, result: Evaluation) -> list[str]:
    """Write `<output>/evaluation.json` and `.html`; returns their URLs."""
    drawn = {
        name: {"documents": category.documents, "auc": category.auc}
        for name, category in result.categories.items()
    }
    page = render(
        "evaluation.html",
        script="evaluation.js",
        data={"categories": drawn, "labels": LABELS, "few": FEW_DOCUMENTS},
        labels=LABELS,
        few=FEW_DOCUMENTS,
        few_heads=FEW_HEADS,
        lds_of=lds_of,
        title=f"How well {result.settings.model} selects",
        settings=asdict(result.settings),
        uniform_ds=result.uniform_ds,
        costs=result.costs,
        categories=result.categories,
    )
    folder = OutputFolder(output)
    files = {
        folder.evaluation("json"): result.to_json(),
        folder.evaluation("html"): page.encode(),
    }
    for url, content in files.items():
        write_bytes(url, content)
    return list(files)


@dataclass(frozen=True)
class _Measure:
    """What all categories are measured with."""

    config: Config
    n: int
    window: int
    min_distance: int
    alpha: float
    seed: int
    scorer: AttentionScorer
    score: Score
    others: Mapping[str, Score]
    tokenizer: DocumentTokenizer
    causal: CausalModel | None
    further: EvaluatedScores

    @classmethod
    def of(cls, config: Config, n: int, causal_model: str | None, seed: int) -> _Measure:
        from longattn.scoring.checkpoint import open_checkpoint
        from longattn.scoring.scorer import AttentionScorer
        from longattn.scoring.settings import ScoreSettings

        told, k = config.scorer, config.min_distance
        tokenizer = load_tokenizer(told.model)
        settings = ScoreSettings(told.model, k, told.rope_theta, told.add_bos, told.dtype)
        bos = settings.bos(open_checkpoint(told.model))
        scorer = AttentionScorer.from_pretrained(
            told.model, dtype=told.dtype, rope_theta=told.rope_theta
        )
        causal = None
        if causal_model:
            from longattn.reports.causal_model import CausalModel

            causal = CausalModel(causal_model, tokenizer.fingerprint, config.window.tokens)
        return cls(
            config,
            n,
            config.window.tokens,
            k,
            config.select.alpha,
            seed,
            scorer,
            lambda ids_nl: attention(scorer, ids_nl, k, bos),
            variants(config, scorer, bos),
            tokenizer,
            causal,
            EvaluatedScores(config, tokenizer, scorer.device.type),
        )

    def category(self, name: str, documents: list[Ids]) -> CategoryEvaluation:
        rng = generator(self.seed, name, "windows")
        native = native_windows(documents, self.n, self.window, rng)
        kinds = {"native": native, **foils(native, documents, rng)}
        base, further = self.score(native.ids_nl), self.further.scored(native.ids_nl)
        scores: dict[str, dict[str, Floats]] = {}
        heads: dict[str, dict[str, HeadScores]] = {}
        for kind, made in kinds.items():
            log.info("%s: %d windows, %s", name, self.n, kind)
            seen, beside = base, further
            if kind != "native":
                seen, beside = self.score(made.ids_nl), self.further.scored(made.ids_nl)
            heads.setdefault(FIRST_LAYER, {})[kind] = seen.by_head(made.group_n)
            for of, by_head in beside.heads.items():
                heads.setdefault(of, {})[kind] = HeadScores(*by_head, made.group_n)
            for scorer, values in self._scores(made.ids_nl, seen, base, rng).items():
                scores.setdefault(scorer, {})[kind] = values
            for scorer, values in self._deeper(beside, further).items():
                scores.setdefault(scorer, {})[kind] = values
        lds = scores["LDS"]["native"]
        stability = {
            f"alpha {alpha:g}": _agreement(lds, base.lds(base, alpha))
            for alpha in ALPHAS
            if alpha != self.alpha
        }
        for variant, score in self.others.items():
            log.info("%s: %d windows, %s", name, self.n, variant)
            other = score(native.ids_nl)
            stability[variant] = _agreement(lds, other.lds(other, self.alpha))
        draws = generator(self.seed, name, "bootstrap")
        told = {scorer: by_kind["native"] for scorer, by_kind in scores.items()}
        first = HeadScorer(self._of_heads, range(heads[FIRST_LAYER]["native"].ds.shape[1]))
        of_heads = {
            of: self._heads(name, documents, scorer, heads[of])
            for of, scorer in {FIRST_LAYER: first, **self.further.head_scorers()}.items()
        }
        log.info("%s: AUC with intervals", name)
        ranked = [scorer for scorer in scores if scorer != "random"]
        return CategoryEvaluation(
            documents=len(np.unique(native.group_n)),
            windows=self.n,
            native={scorer: Spread(*moments(values)) for scorer, values in told.items()},
            auc={scorer: _aucs(by_kind, kinds, draws) for scorer, by_kind in scores.items()},
            spearman=agreement({name: told[name] for name in ranked}),
            heads=of_heads.pop(FIRST_LAYER),
            deeper_heads=of_heads,
            stability=stability,
            pairs=pairs(scores, [kind for kind in kinds if kind.startswith("splice")], ranked),
        )

    def _heads(
        self,
        name: str,
        documents: Sequence[Ids],
        scorer: HeadScorer,
        windows: Mapping[str, HeadScores],
    ) -> HeadsEvaluation:
        """What every head of a scorer tells of some windows, and the one that is chosen by others."""
        log.info("%s: choosing one of %d heads", name, len(scorer.heads))
        choice = head_choice(
            documents,
            scorer,
            self.config,
            windows=max(2, self.n // 2),
            seed=self.seed,
            name=name,
        )
        foils_of = {kind: of for kind, of in windows.items() if kind != "native"}
        aucs = head_aucs(Half(windows["native"], foils_of), self.alpha)
        return HeadsEvaluation(
            {kind: of.tolist() for kind, of in aucs.items()}, choice, scorer.names
        )

    def _deeper(self, seen: FurtherScores, base: FurtherScores) -> dict[str, Floats]:
        """The further scores, and LDS of each that has heads, standardised by the native windows."""
        told = dict(seen.columns)
        for name, by_head in seen.heads.items():
            own, native = (
                HeadScores(*of, np.arange(len(of[0]))) for of in (by_head, base.heads[name])
            )
            means, native_means = (
                Attention(of.ds.mean(1), of.variance.mean(1)) for of in (own, native)
            )
            told[lds_of(name)] = means.lds(native_means, self.alpha)
            told[f"{lds_of(name)}, sum of standardised heads"] = lds_of_heads(
                own, native, self.alpha
            ).sum(1)
        return told

    def _of_heads(self, ids_nl: Ids) -> tuple[Floats, Floats]:
        scores = self.score(ids_nl).by_head(np.arange(len(ids_nl)))
        return scores.ds, scores.variance

    def _scores(
        self, ids_nl: Ids, seen: Attention, base: Attention, rng: np.random.Generator
    ) -> dict[str, Floats]:
        k = self.min_distance
        far = [far_recurrence(ids_l, k) for ids_l in ids_nl]
        texts = [self.tokenizer.decode(ids_l) for ids_l in ids_nl]
        scores, by = (of.by_head(np.arange(len(of.ds))) for of in (seen, base))
        told = {
            "LDS": seen.lds(base, self.alpha),
            HEADS_SUM: lds_of_heads(scores, by, self.alpha).sum(1),
            "DS": seen.ds,
            "DU": -seen.variance,
            **{
                name: np.array(share)
                for name, share in zip(Recurrence._fields, zip(*far, strict=True), strict=True)
            },
            "gzip ratio": np.array([len(t) / len(zlib.compress(t)) for t in texts]),
            "random": rng.random(len(ids_nl)),
        }
        if self.causal:
            by_model = with_progress(list(ids_nl), "windows scored by the causal model")
            gap, ds = zip(*(self.causal.scores(ids_l, k) for ids_l in by_model), strict=True)
            told |= {"loss gap": np.array(gap), "DS, every layer": np.array(ds)}
        return told


def _aucs(
    by_kind: Mapping[str, Floats], kinds: Mapping[str, Windows], rng: np.random.Generator
) -> dict[str, Auc]:
    native, values = kinds["native"].group_n, by_kind["native"]
    return {
        kind: Auc(
            *auc(values, by_kind[kind], native, made.group_n, rng, together=made.group_n is native)
        )
        for kind, made in kinds.items()
        if kind != "native"
    }


def _agreement(a_n: Floats, b_n: Floats) -> Agreement:
    half = len(a_n) // 2
    best_a, best_b = (set(np.argsort(-x, kind="stable")[:half].tolist()) for x in (a_n, b_n))
    return Agreement(rank_correlation(a_n, b_n), len(best_a & best_b) / half)
