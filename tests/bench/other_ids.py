"""Does attention see the same words under other ids? python tests/bench/other_ids.py CATEGORY=JSONL ...

Native windows of 8192 tokens against splices of two documents, k half the window, so that only the
first half is far. The second half of both is as it is, in title case or in upper case: its words then
have other ids than in the first half. Documents that builtin/train.py held out; prints AUC of the
native windows, native windows' mean in brackets.
"""

import sys

import numpy as np

from longattn.config import Config
from longattn.reports.evaluation import attention, auc
from longattn.reports.foils import generator, long_documents, native_windows
from longattn.scoring.scorer import AttentionScorer
from longattn.windows.recurrence import far_recurrence
from longattn.windows.tokenizer import load_tokenizer

WINDOW, WINDOWS = 8192, 40
CHANGES = {"as it is": str, "title case": str.title, "upper case": str.upper}


def main(sources: dict[str, str]) -> None:
    config = Config.parse(
        {
            "sources": [{"category": name, "path": path} for name, path in sources.items()],
            "output": "unused",
            "window": {"tokens": WINDOW},
        }
    )
    scorer, tokenizer = AttentionScorer.from_pretrained("builtin"), load_tokenizer("builtin")
    half = WINDOW // 2

    def changed(ids_l, change):
        text = change(tokenizer.decode(ids_l).decode("utf-8", "ignore"))
        return tokenizer.encode(text.encode()).ids[: half - 64]

    for category, documents in long_documents(config, held_out=0.2).items():
        rng = generator(0, category, "other ids")
        native = native_windows(documents, WINDOWS, WINDOW, rng)
        group_n = native.group_n
        others = [rng.choice(np.flatnonzero(group_n != g)) for g in group_n]
        for name, change in CHANGES.items():
            second = [changed(ids_l[half:], change) for ids_l in native.ids_nl]
            scores = []
            for ends in (second, [second[i] for i in others]):
                windows = [
                    np.concatenate([ids_l[:half], end])
                    for ids_l, end in zip(native.ids_nl, ends, strict=True)
                ]
                seen = [attention(scorer, ids_l[None], half, None) for ids_l in windows]
                shares = [far_recurrence(ids_l, half) for ids_l in windows]
                scores.append(
                    {
                        "DS": np.array([float(s.ds[0]) for s in seen]),
                        "recurrence": np.array([s[0] for s in shares]),
                        "by rarity": np.array([s[1] for s in shares]),
                        "of pairs": np.array([s[2] for s in shares]),
                    }
                )
            told = {
                scorer: auc(a, scores[1][scorer], group_n, np.arange(WINDOWS), rng, together=False)
                for scorer, a in scores[0].items()
            }
            print(
                f"{category}, {name}: "
                + ", ".join(
                    f"{scorer} {middle:.2f} ({low:.2f}-{high:.2f}) [{scores[0][scorer].mean():.3f}]"
                    for scorer, (middle, low, high) in told.items()
                ),
                flush=True,
            )


if __name__ == "__main__":
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
