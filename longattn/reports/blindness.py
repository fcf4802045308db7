"""Whether the score that ranks windows tells anything on this corpus, measured in seconds.

A few windows of its documents are scored, and as many that are made up of them: spliced from several
documents, or one passage repeated. A score that tells something puts the native ones first more often
than chance does; one that does not is blind. `evaluate` measures more, for longer. On a CPU attention
is measured in shorter windows, which the line for people says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longattn.config import Config, Window
from longattn.reports.evaluated_scores import EvaluatedScores, HeadScorer
from longattn.reports.foils import Ids, generator, long_documents, native_windows, repeated, spliced
from longattn.reports.head_choice import head_scorer
from longattn.selection.auc import auc
from longattn.selection.heads import HeadScores, lds_of_heads, mean_of_heads
from longattn.selection.kept_heads import heads_of, kept_choices
from longattn.settings.selection import Select
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record, write_record
from longattn.text import counted
from longattn.windows.recurrence import Recurrence, far_recurrence
from longattn.windows.tokenizer import load_tokenizer

WINDOWS = 12  # of each kind, a category
DOCUMENTS = 24  # that they are of
SPLICE = 4  # documents in a splice
CPU_TOKENS = 2048  # of a window whose attention a CPU measures: some 0.05 s, where 32K takes 4
UNCLEAR = 0.55  # AUC from which an interval that holds 0.5 is too wide rather than the score blind
UNTOLD = ": too few documents to tell from chance; `longattn evaluate` measures more"
ATTENTION = ("lds", "ds", "variance")

Floats = NDArray[np.float64]
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Check:
    """What the ranking column tells on windows of one category.

    Attributes:
        column: that ranks.
        tokens: of a window.
        documents: that the native windows are of.
        splice, repeat: AUC, low and high end of its 95 % interval, of native windows against
            splices of `SPLICE` documents and against one passage repeated.
    """

    column: str
    tokens: int
    documents: int
    splice: Interval
    repeat: Interval

    @property
    def blind(self) -> bool:
        """Whether splices are told from native windows no better than by chance."""
        return self.splice[1] <= 0.5

    def line(self) -> str:
        """`LDS tells native windows from splices with AUC 0.51 (0.40 to 0.62): no better than chance`."""
        name = "LDS" if self.column == "lds" else self.column
        value, low, high = self.splice
        verdict = ""
        if high < 0.5:
            verdict = ": worse than by chance"
        elif self.blind:
            verdict = ": no better than chance" if value < UNCLEAR else UNTOLD
        repeats = 1 - self.repeat[0]
        degenerate = (
            f"; one passage repeated ranks above a native window in {100 * repeats:.0f} of 100 cases"
            if repeats > 0.5
            else ""
        )
        return (
            f"{name} tells native windows from splices with AUC {value:.2f} ({low:.2f} to {high:.2f})"
            f"{verdict}{degenerate} ({counted(self.documents, 'document')}, {self.tokens:,} tokens)"
        )


def check_ranking(config: Config, seed: int = 0) -> dict[str, Check]:
    """Measure what `select.rank_by` tells, by category; those with too few long documents are left out.

    Empty for a column of the user's, which only its own program can compute.

    Raises ValueError for a source that cannot be read.
    """
    column = config.select.rank_by
    further = next((score for score in config.scores if column in score.columns), None)
    if further is None and column not in (*ATTENTION, *Recurrence._fields):
        return {}
    if column in ATTENTION or (further is not None and further.model):
        config = _bounded(config)
    rank = _ranking(config)
    found = {}
    documents = long_documents(config, seed=seed, fewest=0, most=DOCUMENTS)
    for name, of in documents.items():
        if len(of) < 2:
            continue
        rng = generator(seed, name, "check")
        native = native_windows(of, WINDOWS, config.window.tokens, rng)
        (splice,) = spliced(of, WINDOWS, config.window.tokens, rng, (SPLICE,)).values()
        kinds = [native.ids_nl, splice.ids_nl, repeated(native, rng).ids_nl]
        values = rank(kinds, name)
        groups, draws = native.group_n, generator(seed, name, "check bootstrap")
        found[name] = Check(
            column,
            config.window.tokens,
            len(np.unique(groups)),
            auc(values[0], values[1], groups, splice.group_n, draws, together=False),
            auc(values[0], values[2], groups, groups, draws, together=True),
        )
    return found


def _ranking(config: Config) -> Callable[[list[Ids], str], list[Floats]]:
    """A function of kinds of windows, native ones first, and a category: the ranking column of each."""
    column = config.select.rank_by
    if further := tuple(score for score in config.scores if column in score.columns):
        only = config.model_copy(update={"scores": further})
        tokenizer = load_tokenizer(config.scorer.model)
        scores = EvaluatedScores(only, tokenizer, _device())

        def of_table(kinds: list[Ids], name: str) -> list[Floats]:
            columns = [scores.scored(ids_nl).columns for ids_nl in kinds]
            return [of[column] if column in of else -of[f"low {column}"] for of in columns]

        return of_table
    if column in ATTENTION:
        if column != "lds":  # which heads are chosen decides LDS alone
            select = config.select.model_copy(update={"heads": "all"})
            config = config.model_copy(update={"select": select})
        scorer = head_scorer(config)
        heads = _heads(config, scorer)

        def of_attention(kinds: list[Ids], name: str) -> list[Floats]:
            scored = [_of_heads(scorer.score(ids_nl), heads.get(name)) for ids_nl in kinds]
            return _attention(scored, config.select)

        return of_attention
    return lambda kinds, name: [
        _recurrence(ids_nl, config.min_distance, column) for ids_nl in kinds
    ]


def record_check(config: Config) -> dict[str, Check]:
    """`check_ranking`, kept as `check.json` for the reports of the config's output."""
    found = check_ranking(config)
    told = {name: asdict(check) for name, check in found.items()}
    record = {"rule": _rule(config.select), "categories": told}
    write_record(OutputFolder(config.output).record("check"), record)
    return found


def recorded_check(folder: OutputFolder, select: Select) -> dict[str, Check]:
    """What `record_check` kept of the same ranking, by category; empty where there is none."""
    record = read_record(folder.record("check"))
    if record is None or record["rule"] != _rule(select):
        return {}
    return {
        name: Check(**{**told, **{of: tuple(told[of]) for of in ("splice", "repeat")}})
        for name, told in record["categories"].items()
    }


def _rule(select: Select) -> dict[str, Any]:
    """What decides how windows are ranked, as far as it is measured."""
    heads = select.model_dump(mode="json", include={"heads"})
    return {"rank_by": select.rank_by, "alpha": select.alpha, **heads}


def _device() -> str:
    import torch  # 4 s

    return "cuda" if torch.cuda.is_available() else "cpu"


def _bounded(config: Config) -> Config:
    """The settings with windows that a CPU scores in a tenth of a second; on a GPU as they are."""
    tokens = config.window.tokens
    if _device() == "cuda" or tokens <= CPU_TOKENS:
        return config

    def shorter(length: int) -> int:
        return max(1, length * CPU_TOKENS // tokens)

    scorer = config.scorer.model_copy(update={"min_distance": (shorter(config.min_distance),)})
    scores = tuple(
        score.model_copy(update={"short": shorter(score.short)}) if score.short else score
        for score in config.scores
    )
    return config.model_copy(
        update={"window": Window(tokens=CPU_TOKENS), "scorer": scorer, "scores": scores}
    )


def _heads(config: Config, scorer: HeadScorer) -> Mapping[str, tuple[int, ...] | None]:
    """Places of the chosen heads by category; of `auto`, those that were chosen already."""
    heads = config.select.heads
    if isinstance(heads, tuple):
        return {source.category: heads for source in config.sources}
    if not config.select.chooses_heads:
        return {}
    kept = heads_of(kept_choices(OutputFolder(config.output), config.select))
    numbers = list(scorer.heads)
    return {name: of and tuple(map(numbers.index, of)) for name, of in kept.items()}


def _of_heads(
    scores: tuple[Floats, Floats], heads: tuple[int, ...] | None
) -> tuple[Floats, Floats]:
    """DS and variance of the chosen heads, (n, 1) each."""
    ds, variance = (mean_of_heads(of, heads)[:, None] for of in scores)
    return ds, variance


def _attention(scores: Sequence[tuple[Floats, Floats]], select: Select) -> list[Floats]:
    """What ranks, of native windows and foils; LDS is standardised by the native ones."""
    parts = [HeadScores(ds, variance, np.arange(len(ds))) for ds, variance in scores]
    if select.rank_by != "lds":
        return [getattr(part, select.rank_by)[:, 0] for part in parts]
    return [lds_of_heads(part, parts[0], select.alpha)[:, 0] for part in parts]


def _recurrence(ids_nl: Ids, min_distance: int, column: str) -> Floats:
    return np.array([getattr(far_recurrence(ids_l, min_distance), column) for ids_l in ids_nl])
