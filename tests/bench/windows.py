"""Reading, tokenizing and cutting by 1 and 2 window actors: python tests/bench/windows.py [ACTORS ...]

The window stage of a run as it stands (tasks, claims, monitor, markers) over JSONL made of the sample
documents, each rotated so that no two are equal; its windows are counted and dropped. Long documents
give windows of 32768 tokens, short ones are read and found too short. Busy: seconds in which an actor
worked, without the time that it waited for its consumer or for a core.
"""

import gzip
import json
import os
import shutil
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import ray
from ray.data import ActorPoolStrategy
from ray.data.context import DataContext

from longattn.config import Source
from longattn.corpus.sources import list_splits
from longattn.pipeline.execution import BLOCK_BYTES
from longattn.pipeline.monitor import Monitor, RunMonitor
from longattn.pipeline.on_ray import OnDriverNode
from longattn.pipeline.steps import dataset_of_tasks
from longattn.pipeline.window_actor import SplitWindows, WindowStage
from longattn.resume.claims import DocumentRegistry, Registry
from longattn.resume.markers import read_markers
from longattn.resume.remaining import find_remaining
from longattn.samples import SAMPLES

WINDOW = 32768
FILES, FILE_BYTES = 8, 40 << 20


def write_corpus(folder: Path, document_bytes: int, files: int = FILES) -> None:
    """So many files of documents of about so many bytes, of all sample documents in turn."""
    for part in range(files):
        write_file(folder, document_bytes, part)


def write_file(folder: Path, document_bytes: int, part: int) -> None:
    """One of them, of `FILE_BYTES`; it stays where it is there."""
    path = folder / f"{part}.jsonl"
    if path.exists():
        return
    text = sample_text()
    with path.open("w") as file:
        for number in range(FILE_BYTES // document_bytes):
            at = (part * 7919 + number * 104_729) % len(text)
            turned = (text + text)[at : at + document_bytes]
            file.write(json.dumps({"content": f"{part} {number}\n{turned}"}) + "\n")


@cache
def sample_text() -> str:
    """All sample documents, one after another."""
    texts = []
    for name in ("book", "python", "c"):
        with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt") as file:
            texts += [json.loads(line)["content"] for line in file]
    return "\n".join(texts)


class Timed(SplitWindows):
    """Notes when each task begins and ends, so that starting actors is no part of the rate."""

    def __call__(self, batch):
        began = time.time()
        yield from super().__call__(batch)
        with Path(self.stage.output, f"times-{os.getpid()}").open("a") as file:
            file.write(f"{began} {time.time()}\n")


def measure(folder: str, actors: int) -> float:
    """Prints the rates; returns tokens a second of wall time."""
    output = f"{folder}/out-{actors}"
    Path(output).mkdir()
    splits = list_splits([Source(category="book", path=f"{folder}/in")])
    left = find_remaining(output, splits)
    context = DataContext.get_current()
    context.target_max_block_size, context.enable_progress_bars = BLOCK_BYTES["cuda"] - 1, False
    windows = dataset_of_tasks([[split] for split in splits]).map_batches(
        Timed,
        fn_constructor_args=(
            WindowStage(
                "builtin", WINDOW, WINDOW // 4, {}, output, 512 << 20, BLOCK_BYTES["cuda"], 1
            ),
            DocumentRegistry([OnDriverNode(Registry, left.labelled, left.documents)]),
            Monitor(OnDriverNode(RunMonitor, 0.01)).window_report(),
        ),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    for _ in windows.iter_internal_ref_bundles():
        pass
    told = [marker.counts for marker in read_markers(output).values()]
    documents, tokens, windows_cut, busy = (
        sum(getattr(counts, name) for counts in told)
        for name in ("documents", "tokens", "windows", "seconds")
    )
    times = [
        tuple(map(float, line.split()))
        for file in Path(output).glob("times-*")
        for line in file.read_text().splitlines()
    ]
    wall = max(end for _, end in times) - min(began for began, _ in times)
    print(
        f"  {actors} actors: {documents / wall:,.0f} documents/s, {tokens / wall / 1e6:.2f} M tokens/s "
        f"({windows_cut:,} windows in {wall:.1f} s); in a busy second of one actor "
        f"{documents / busy:,.0f} documents, {tokens / busy / 1e6:.2f} M tokens",
        flush=True,
    )
    return documents / wall


def main(pools: list[int]) -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    root = tempfile.mkdtemp(prefix="la-")  # short: Ray puts Unix sockets below it
    ray.init(num_cpus=max(pools), include_dashboard=False, _temp_dir=root, logging_level="ERROR")
    try:
        for document_bytes in (1 << 20, 2 << 10):
            print(
                f"{FILES} files of {FILE_BYTES >> 20} MiB, documents of {document_bytes >> 10} KiB"
            )
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "in").mkdir()
                write_corpus(Path(folder, "in"), document_bytes)
                rates = [measure(folder, actors) for actors in pools]
            print(f"  {rates[-1] / rates[0]:.2f} times with {pools[-1]} actors")
    finally:
        ray.shutdown()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main([int(n) for n in sys.argv[1:]] or [1, 2])
