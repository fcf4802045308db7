"""Sets of a second pass against those of exact scores: `python -m tests.bench.second_pass [--windows N]`.

Two differences are told: from exact scores of all windows standardised by the drawn ones, which
`select.second_pass` bounds, and from those of a run without a stride, standardised by all.
"""

import argparse

import numpy as np

import longattn as la
from longattn.windows import load_tokenizer
from tests.conftest import _first_document
from tests.test_second_pass import selected, statistics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--windows", type=int, default=600)
parser.add_argument("--tokens", type=int, default=256)
parser.add_argument("--stride", type=int, default=4)
parser.add_argument("--draws", type=int, default=200)
given = parser.parse_args()

scorer, encode = la.AttentionScorer.from_pretrained("builtin"), load_tokenizer("builtin").encode
for name in ("book", "python"):
    ids = encode(_first_document(name)).ids
    rows = ids[: len(ids) // given.tokens * given.tokens].reshape(-1, given.tokens)[: given.windows]
    exact, of_offset = statistics(rows.astype(np.int32), given.stride, scorer)
    by_all = la.long_distance_scores(*exact)
    for share in (0.5, 0.1):
        budget = int(share * len(rows))
        all_of = set(np.argsort(-by_all, kind="stable")[:budget].tolist())
        for drawn in (128, 256):
            draw = np.random.default_rng(0)
            tried = [
                selected(draw, exact, of_offset, drawn, 0.01, budget) for _ in range(given.draws)
            ]
            other = np.mean([chosen != best for chosen, _, best, _ in tried])
            off = np.mean([len(chosen - all_of) for chosen, *_ in tried])
            scored = np.mean([of[-1] for of in tried])
            print(
                f"{name}: {len(rows)} windows, {budget} kept, {drawn} drawn, {scored:.2f} scored exactly; "
                f"another set in {other:.3f} of draws; {off:.1f} windows other than without a stride"
            )
