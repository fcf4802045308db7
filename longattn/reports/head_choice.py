"""Choosing heads by foils of the run's own corpus: native windows against splices, documents in two halves.

Foils of a half are made of its own documents, so that the half that judges saw none that chose. What
is chosen for a folder is kept there (`longattn/selection/kept_heads.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longattn.config import SCORER_BATCH, Config
from longattn.reports.evaluated_scores import HeadScorer, score_heads
from longattn.reports.foils import Ids, generator, long_documents, native_windows, spliced
from longattn.scoring.settings import ScoreSettings
from longattn.selection.heads import Half, HeadChoice, HeadScores, choose_head, halves_of
from longattn.selection.kept_heads import keep_choices, kept_choices
from longattn.storage.output_folder import OutputFolder

log = logging.getLogger("longattn")

Floats = NDArray[np.float64]
WINDOWS = 16  # native ones of each half, and splices of each kind
FEWEST = 4  # documents: two of each half, or nothing can be spliced there
ONE = 1_000_000  # numbers of splices begin here: none is of a document's number


def choose_heads(config: Config, seed: int = 0) -> list[str]:
    """Choose heads for each category of a config for which none were chosen; returns those categories.

    Scores some 128 windows a category here, on a GPU if there is one.
    """
    folder = OutputFolder(config.output)
    done = kept_choices(folder, config.select).keys()
    sources = tuple(source for source in config.sources if source.category not in done)
    if not sources:
        return []
    config = config.model_copy(update={"sources": sources})
    documents = long_documents(config, seed=seed, fewest=0)
    scorer = HeadScorer(_none, ())
    choices: dict[str, HeadChoice] = {}
    for name, found in documents.items():
        if len(found) >= FEWEST and not scorer.heads:
            scorer = head_scorer(config)
        log.info("%s: choosing a head by %d documents", name, len(found))
        choices[name] = head_choice(found, scorer, config, windows=WINDOWS, seed=seed, name=name)
        log.info("%s: %s", name, choices[name].why)
    for name in {source.category for source in sources} - choices.keys():
        choices[name] = HeadChoice(None, _too_few(0), ())
    keep_choices(folder, config.select, choices, scorer.heads)
    return sorted(choices)


def head_choice(
    documents: Sequence[Ids],
    scorer: HeadScorer,
    config: Config,
    *,
    windows: int,
    seed: int,
    name: str,
) -> HeadChoice:
    """The head that both halves of some documents name, or why there is none.

    Args:
        windows: native ones of each half, and splices of each kind.
        name: of the category; with the seed it decides what is drawn.
    """
    if len(documents) < FEWEST:
        return HeadChoice(None, _too_few(len(documents)), ())
    halves = []
    for number, half in enumerate(halves_of(range(len(documents)), seed)):
        own = [documents[i] for i in sorted(half)]
        rng = generator(seed, name, "heads", number)
        native = native_windows(own, windows, config.window.tokens, rng)
        made = spliced(own, windows, config.window.tokens, rng)
        halves.append(
            Half(
                HeadScores(*scorer.score(native.ids_nl), native.group_n),
                {
                    kind: HeadScores(*scorer.score(of.ids_nl), ONE + of.group_n)
                    for kind, of in made.items()
                },
            )
        )
    if halves[0].native.ds.shape[1] == 1:
        return HeadChoice(None, "the scorer has one head", ())
    return choose_head(*halves, alpha=config.select.alpha, seed=seed, names=scorer.names)


def head_scorer(config: Config) -> HeadScorer:
    """Scores by the scorer of a config, of several distances the first; or those of a further score.

    Raises ValueError where `select.heads` names a score, layers or heads that are not there.
    """
    asked = config.select.heads_of_score
    if asked:
        return score_heads(config, asked)
    from longattn.scoring.window_scorer import WindowScorer  # 7 s, for who chooses none

    scorer = WindowScorer(ScoreSettings.of(config))
    size = config.scorer.batch or SCORER_BATCH["cuda"]
    if scorer.scorer.device.type == "cpu":
        size = 1

    def score(ids_nl: Ids) -> tuple[Floats, Floats]:
        parts = [
            scorer.score(ids_nl[i : i + size].astype(np.int64)) for i in range(0, len(ids_nl), size)
        ]
        ds, variance = (
            np.concatenate([getattr(part, of)[..., 0].cpu().numpy() for part in parts])
            for of in ("ds", "variance")
        )
        return ds, variance

    return HeadScorer(score, range(scorer.scorer.heads))


def _none(ids_nl: Ids) -> tuple[Floats, Floats]:
    raise AssertionError("too few documents are scored by nobody")


def _too_few(documents: int) -> str:
    return f"{documents} long documents, fewer than {FEWEST}: all heads are taken"
