"""Sets of a second pass against those of exact scores: python -m tests.bench.second_pass CATEGORY=JSONL ...

Two differences are told: from exact scores of all windows standardised as the drawn ones tell, which
`select.second_pass` bounds, and from those of a run without a stride, standardised by all; the latter
also where the mean and deviation of the drawn windows alone are used.
"""

import argparse
from unittest import mock

import numpy as np

import longattn as la
from longattn.config import Source
from longattn.corpus.reading import read_split
from longattn.corpus.records import Record
from longattn.corpus.sources import list_splits
from longattn.lds import Scale
from longattn.windows.tokenizer import load_tokenizer
from tests.test_second_pass import selected, statistics

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("sources", nargs="+", metavar="CATEGORY=JSONL")
parser.add_argument(
    "--windows", type=int, default=600, help="of a category, a fifteenth a document"
)
parser.add_argument("--tokens", type=int, default=1024)
parser.add_argument("--stride", type=int, default=4)
parser.add_argument("--draws", type=int, default=200)
given = parser.parse_args()


def windows(source):
    """(windows, tokens) of the first documents."""
    encode, found, most = load_tokenizer("builtin").encode, [], given.windows // 15
    for split in list_splits([source]):
        for record in read_split(split):
            if isinstance(record, Record):
                ids = encode(record.text[: 10 * most * given.tokens].encode()).ids
                ids = ids[: len(ids) // given.tokens * given.tokens]
                found.append(ids.reshape(-1, given.tokens)[:most])
            if sum(map(len, found)) >= given.windows:
                return np.concatenate(found)[: given.windows].astype(np.int32)
    return np.concatenate(found).astype(np.int32)


def best(lds, budget):
    return set(np.argsort(-lds, kind="stable")[:budget].tolist())


scorer = la.AttentionScorer.from_pretrained("builtin")
for category, path in (source.split("=", 1) for source in given.sources):
    rows = windows(Source(category=category, path=path))
    exact, of_offset = statistics(rows, given.stride, scorer)
    by_all = la.long_distance_scores(*exact)
    for share in (0.5, 0.1):
        budget = int(share * len(rows))
        for drawn in (128, 256):
            told = []
            for scale in (None, lambda exact, _: Scale.of_column(exact, "zscore")):
                with (
                    mock.patch("longattn.second_pass._scale", scale) if scale else mock.MagicMock()
                ):
                    draw = np.random.default_rng(0)
                    tried = [
                        selected(draw, exact, of_offset, drawn, 0.01, budget)
                        for _ in range(given.draws)
                    ]
                other = np.mean([chosen != of_exact for chosen, _, of_exact, _ in tried])
                off = np.mean([len(chosen - best(by_all, budget)) for chosen, *_ in tried])
                told.append((other, off, np.mean([scored for *_, scored in tried])))
            (other, off, scored), (_, alone, _) = told
            print(
                f"{category}: {len(rows)} windows, {budget} kept, {drawn} drawn, {scored:.2f} scored exactly; "
                f"another set in {other:.3f} of draws; {off:.1f} windows other than without a stride "
                f"({alone:.1f} by the drawn windows alone)", flush=True,
            )  # fmt: skip
