"""What following adds to a run: python -m tests.bench.follow [FILES] [WINDOWS]

In process, windows of 512 tokens and a small scorer, the sources of FILES files listed every second:
the processor time of the thread that lists, gives tasks and keeps the lag, as a share of all of the
process while it scores. Then what Ray's stages do beside a run's: a block packed into a row and
unpacked, twice each, as a share of the scoring of it by the built-in scorer, windows of 32,768 tokens,
and by the 7.0 ms a window that an H200 takes. A window of the built-in scorer is measured right beside.
"""

import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from longattn.config import Config
from longattn.corpus.watching import SourceWatch
from longattn.errors import Interrupted
from longattn.pipeline.feed import Feed
from longattn.pipeline.follow import Follow
from longattn.pipeline.job import Job
from longattn.pipeline.score_actor import ScoreStage, ScoreWindows
from longattn.pipeline.stopping import Stop
from longattn.pipeline.streamed import packed, unpacked
from longattn.resume.shards import held
from longattn.scoring.settings import ScoreSettings
from longattn.windows.cutting import window_table
from longattn.windows.recurrence import far_recurrence

H200 = 0.0070  # seconds a window (tests/bench/README.md)
ROUNDS = 5


def in_process(files: int, windows: int) -> None:
    spent = Counter()

    def timed(of: type, method: str) -> None:
        call = getattr(of, method)

        def work(self, *arguments):
            started = time.thread_time()
            result = call(self, *arguments)
            spent[method] += time.thread_time() - started
            return result

        setattr(of, method, work)

    timed(Feed, "_tick")
    timed(SourceWatch, "look")
    words = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number in range(files):
            texts = [
                " ".join(map(str, words.integers(0, 10**6, 250))) for _ in range(windows // files)
            ]
            lines = "".join(json.dumps({"content": text}) + "\n" for text in texts)
            (corpus / f"{number:06d}.jsonl").write_text(lines)
        config = Config.parse(
            {
                "sources": [{"category": "numbers", "path": str(corpus)}],
                "output": f"{folder}/out",
                "window": {"tokens": 512},
            }
        )
        stop = Stop()
        job = Job(config, "local")
        job.check()
        follow = Follow(job, 1, 600)

        def end_when_scored() -> None:
            while not follow.feed.lag.unscored:
                time.sleep(0.5)
            while follow.feed.lag.unscored:
                time.sleep(0.5)
            spent["all"] = time.process_time() - started
            stop.end(Interrupted(signal.SIGTERM))

        started = time.process_time()
        threading.Thread(target=end_when_scored, daemon=True).start()
        with held(config.output, stop.end) as hold, suppress(Interrupted):
            follow.run(stop, hold)
    rest = spent["_tick"] - spent["look"]
    print(
        f"{spent['all']:.1f} s of processor time, of which following {spent['_tick'] / spent['all']:.2%}: "
        f"listing {files} files every second {spent['look']:.3f} s, the rest {rest:.3f} s; "
        f"every minute both would be {(spent['look'] / 60 + rest) / spent['all']:.2%}"
    )


def packing() -> None:
    tokens, rows = 32768, 14
    ids = np.random.default_rng(0).integers(3, 8000, tokens).astype(np.int32)
    row = {
        **dict.fromkeys(("data_id", "category", "source", "document_id"), "a"),
        **dict.fromkeys(("window_index", "token_start", "token_stop"), 0),
        "content": "x" * 4 * tokens,
        "input_ids": ids,
        **far_recurrence(ids, tokens // 4)._asdict(),
    }
    block = window_table([row] * rows)
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(2):
            unpacked(packed(block))
        times.append((time.process_time() - started) / rows)
    pack = sorted(times)[ROUNDS // 2]
    score = ScoreWindows(
        ScoreStage(ScoreSettings("builtin", (tokens // 4,), None, None, "float32"), "cpu"),
        lambda *_: None,
    )
    started = time.process_time()
    score(block.slice(0, 1))
    one = time.process_time() - started
    print(
        f"a window packed and unpacked twice {1e3 * pack:.3f} ms, scored here {one:.2f} s: "
        f"{pack / one:.3%}; of an H200's {1e3 * H200:.1f} ms: {pack / H200:.2%}, half of it in the "
        "scoring actor"
    )


if __name__ == "__main__":
    packing()
    in_process(*map(int, sys.argv[1:] or ("1000", "4000")))
