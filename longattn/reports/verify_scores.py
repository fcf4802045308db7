"""`verify --scores N`: some windows are scored again, and compared with what is stored."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from longattn.reports.verify_rows import WindowTables
from longattn.resume.origin import Origin
from longattn.scoring.settings import ScoreSettings
from longattn.storage.tables import read_row

log = logging.getLogger("longattn")
# Relative difference between devices, kinds of CPU and batches that is no finding.
TOLERANCE = {"float32": 1e-5}
OTHER_TOLERANCE = 2e-2  # of products in 16 bits


def score_findings(tables: WindowTables, origin: Origin, scores: int) -> Iterator[str]:
    """Windows whose scores are other ones now; logs how many are equal bit for bit."""
    parts = origin.parts
    settings = _settings(origin)
    if settings is None or parts is None:
        yield "the settings are not stored, so no window was scored again"
        return
    from longattn.scoring.window_scorer import WindowScorer  # imports transformers: 4 s

    scorer = WindowScorer(settings)
    now = scorer.parts(parts.window)
    if now != parts:
        before, after = parts.to_dict(), now.to_dict()
        other = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
        yield f"{settings.model}: no longer what scored the windows: {', '.join(other)} differ"
        return
    found = tables.connection.execute(
        "SELECT file, row FROM labelled ORDER BY file, row"
    ).fetchall()
    drawn = np.random.default_rng().choice(len(found), min(scores, len(found)), replace=False)
    tolerance = TOLERANCE.get(now.dtype, OTHER_TOLERANCE)
    equal, furthest = 0, 0.0
    for file, row in (found[i] for i in sorted(drawn.tolist())):
        url = tables.urls["labelled"][file]
        stored = read_row(url, row)
        again = scorer.score(np.array([stored["input_ids"]], np.int64))
        differences = {}
        for place, k in enumerate(now.min_distances):
            suffix = f"_k{k}" if place else ""
            for name, of in (("ds", again.ds), ("variance", again.variance)):
                value = float(of.numpy()[0, :, place].copy().mean())
                was = stored[f"{name}{suffix}"]
                differences[f"{name}{suffix}"] = abs(value - was) / max(abs(was), 1e-300)
        name, most = max(differences.items(), key=lambda item: item[1])
        equal, furthest = equal + (most == 0), max(furthest, most)
        if not most <= tolerance:
            yield f"{url}: {stored['data_id']}: {name} is now {most:.1e} of it away"
    log.info(
        "%d windows scored again in %s on %s: %d equal bit for bit, the furthest %.1e away; "
        "%.0e and more is a finding",
        len(drawn),
        now.dtype,
        scorer.scorer.device,
        equal,
        furthest,
        tolerance,
    )


def _settings(origin: Origin) -> ScoreSettings | None:
    """What to score with; without a config, what the parts that were stored say."""
    parts = origin.parts
    if parts is None or origin.model is None:
        return None
    if origin.config is not None:
        return replace(ScoreSettings.of(origin.config), dtype=parts.dtype)
    if origin.is_run:
        return None
    return ScoreSettings(
        origin.model,
        parts.min_distances,
        parts.rope_theta,
        parts.bos is not None,
        parts.dtype,
        parts.query_stride,
    )
