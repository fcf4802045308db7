"""Every score of one corpus, evaluated and computed: python tests/bench/all_scores.py CORPORA RESULTS [options]

CORPORA holds `<category>.jsonl.zst` (or .jsonl.gz, .jsonl) with a text column `content`. For the built-in
scorer and each `--model NAME=FOLDER` one config is written, with LDS of its first layer, the loss gap and
the attention of all layers of the whole model, compression and repetition; then, as processes of their own:

1. `longattn evaluate`, a category at a time, as many beside each other as `--gpus` says, a GPU each;
2. `longattn score` on Ray, on all GPUs, and `longattn verify --scores 2` of what it wrote.

RESULTS gets, as soon as they are there, `<window>/<model>/<category>.json` of each evaluation, a log of each
stage, `stages.json` (status and seconds of each) and `<window>/table.md`, the tables for
longattn/reports/EVALUATION.md. Called again it skips what is done; a stage over its `--limit` of seconds is stopped
by SIGTERM, and where it scores goes on from there. `--work` holds the outputs of the runs, tables of ids
among them: put it where it stays between calls. Exit status: 0 all is done, 75 something is left.

    python tests/bench/all_scores.py /data/corpora out/scores --work /scratch/scores --window 8K \\
        --model smollm2=/models/SmolLM2-135M --limit 500
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import yaml

from longattn.reports.evaluation_record import lds_of
from longattn.settings.numbers import WindowLength, read_number

BUILTIN = "builtin"
GRACE = 60  # seconds from SIGTERM to SIGKILL
LEFT, DONE = 75, 0
FOILS = {  # as EVALUATION.md heads its columns
    "splice 2": "splice of 2",
    "splice 4": "of 4",
    "splice 8": "of 8",
    "blocks 512": "blocks of 512 shuffled",
    "unigram": "tokens shuffled",
    "repeat": "a passage repeated",
}
OF_EACH = {  # of each model, and what it is called
    "LDS": "LDS, {model} layer 0",
    "LDS, sum of standardised heads": "the same, sum of standardised heads",
    "DS": "DS, {model} layer 0",
    "gap": "loss gap of {model}",
    "gap_weighted": "the same, weighted",
    "deep": "DS, every layer of {model}",
    lds_of("deep"): "LDS, every layer of {model}",
    f"{lds_of('deep')}, sum of standardised heads": "the same, sum of standardised heads",
}
OF_NONE = {  # the same whatever the model, but for its tokenizer: of the first that is there
    "recurrence": "far recurrence",
    "recurrence_pairs": "recurrence of pairs",
    "compression_ratio": "compression ratio",
    "repetition": "repetition",
}


@dataclass(frozen=True)
class Bench:
    """What is asked for, and where it lies."""

    corpora: dict[str, Path]
    """By category."""
    models: dict[str, str]
    """By name, the folder of a model."""
    window: int
    windows: int
    results: Path
    work: Path
    limit: float
    local: bool
    """Without Ray."""
    sample: float
    """Of the windows, the share that is scored."""
    dtype: str | None
    """Of whole models; None: as a config without one."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def here(self) -> Path:
        return self.results / str(self.window)

    def config(self, name: str, categories: list[str], output: Path) -> dict[str, Any]:
        """One config with every score of a model."""
        scores: list[dict[str, Any]] = [{"name": "text", "kind": "measures"}]
        if name != BUILTIN:  # which is a layer, and no whole model
            whole = {"model": self.models[name], **({"dtype": self.dtype} if self.dtype else {})}
            scores += [
                {"name": "gap", "kind": "loss_gap", **whole},
                {"name": "deep", "kind": "attention", **whole},
            ]
        share = {} if self.sample == 1 else {"sample": {"fraction": self.sample}}
        return {
            "sources": [
                {"category": of, "path": str(self.corpora[of]), **share} for of in categories
            ],
            "output": str(output),
            "window": {"tokens": self.window},
            "scorer": {"model": self.models[name]},
            "scores": scores,
        }

    def write_config(self, name: str, stage: str, categories: list[str]) -> tuple[Path, Path]:
        """A config, and the folder that a run with it writes."""
        output = self.work / str(self.window) / name / stage
        path = self.here / name / f"{stage}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.config(name, categories, output), sort_keys=False))
        return path, output


@dataclass(frozen=True)
class Stage:
    """A process to run: `evaluate` of a category, `score` or `verify` of all."""

    name: str
    """Of the model."""
    what: str
    arguments: tuple[str, ...]
    result: Callable[[], None] = lambda: None
    """Called after it ended well."""

    @property
    def key(self) -> str:
        return f"{self.name} {self.what}"


def evaluations(bench: Bench) -> Iterator[Stage]:
    """Of each category and model, the smallest model first."""
    for name in bench.models:
        for category in bench.corpora:
            config, output = bench.write_config(name, f"evaluate-{category}", [category])
            target = bench.here / name / f"{category}.json"

            def keep(output: Path = output, target: Path = target) -> None:
                shutil.copyfile(output / "evaluation.json", target)

            arguments = ("evaluate", str(config), "--windows", str(bench.windows))
            yield Stage(name, f"evaluate-{category}", arguments, keep)


def scorings(bench: Bench) -> Iterator[tuple[Stage, Stage]]:
    """Of each model: score all categories, and verify what was written."""
    for name in bench.models:
        config, output = bench.write_config(name, "score", list(bench.corpora))

        def keep(name: str = name, output: Path = output) -> None:
            summary = output / "_longattn/summary.json"
            shutil.copyfile(summary, bench.here / name / "summary.json")

        local = ("--executor", "local") if bench.local else ()
        score = Stage(name, "score", ("score", str(config), *local), keep)
        yield score, Stage(name, "verify", ("verify", str(output), "--scores", "2"))


# --- running -------------------------------------------------------------------------------------


def told(bench: Bench) -> dict[str, Any]:
    """What became of each stage so far."""
    path = bench.here / "stages.json"
    return json.loads(path.read_text()) if path.exists() else {}


def run_stage(bench: Bench, stage: Stage, gpu: int | None) -> bool:
    """Run a stage that is not done; says whether it is now."""
    if told(bench).get(stage.key, {}).get("status") == DONE:
        return True
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    log = bench.here / stage.name / f"{stage.what}.log"
    started = time.monotonic()
    with log.open("a") as file:
        file.write(f"--- longattn {' '.join(stage.arguments)}\n")
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "longattn", *stage.arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        status = _ended(process, bench.limit)
    if status == DONE:
        stage.result()
    seconds = round(time.monotonic() - started, 1)
    _keep(bench, stage, status, seconds)
    print(f"{bench.window} {stage.key}: status {status} after {seconds} s", flush=True)
    return status == DONE


def _ended(process: "subprocess.Popen[bytes]", limit: float) -> int:
    """The status of a process, which is stopped after so many seconds, with all that it started."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(GRACE) or LEFT
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return LEFT


def _keep(bench: Bench, stage: Stage, status: int, seconds: float) -> None:
    """Note what became of a stage, and write the tables anew."""
    with bench.lock:
        now = told(bench)
        before = now.get(stage.key, {}).get("seconds", 0)
        now[stage.key] = {"status": status, "seconds": round(before + seconds, 1)}
        _write(bench.here / "stages.json", json.dumps(now, indent=1) + "\n")
        _write(bench.here / "table.md", "\n".join(page(bench)) + "\n")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.replace(path)


def evaluate_all(bench: Bench, gpus: int) -> bool:
    """All evaluations, one a GPU, or one after the other where there is none."""
    free: SimpleQueue[int | None] = SimpleQueue()
    for gpu in range(gpus) if gpus else [None]:
        free.put(gpu)

    def one(stage: Stage) -> bool:
        gpu = free.get()
        try:
            return run_stage(bench, stage, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(max(1, gpus)) as pool:
        return all([*pool.map(one, evaluations(bench))])


# --- tables --------------------------------------------------------------------------------------


def page(bench: Bench) -> list[str]:
    """The tables of all evaluations that are there, as Markdown."""
    found = {
        name: {
            category: json.loads(path.read_text())["categories"][category]
            for category in bench.corpora
            if (path := bench.here / name / f"{category}.json").exists()
        }
        for name in bench.models
    }
    found = {name: of for name, of in found.items() if of}
    cells = " / ".join(bench.corpora)
    lines = [
        f"Windows of {bench.window} tokens, {bench.windows} of each kind a category, k = L / 4; cells {cells}.",
        "",
        f"| score | {' | '.join(FOILS.values())} |",
        "|---" * (len(FOILS) + 1) + "|",
    ]
    for name, categories in found.items():
        lines += _rows(bench, categories, OF_EACH, name)
    for name, categories in list(found.items())[:1]:
        lines += _rows(bench, categories, OF_NONE, name)
    lines += ["", *_chosen(found)]
    lines += ["", *_costs(bench, found)]
    return lines


def _rows(
    bench: Bench, categories: Mapping[str, Any], scores: Mapping[str, str], model: str
) -> Iterator[str]:
    for score, called in scores.items():
        if not any(score in of["auc"] for of in categories.values()):
            continue
        row = [
            " / ".join(
                short(categories.get(category, {}).get("auc", {}).get(score, {}).get(kind))
                for category in bench.corpora
            )
            for kind in FOILS
        ]
        yield f"| {called.format(model=model)} | {' | '.join(row)} |"


def short(cell: Mapping[str, float] | None) -> str:
    """`.87`, `1.0`; a dash for what is not there."""
    if cell is None:
        return "-"
    value = f"{cell['auc']:.2f}"
    return "1.0" if value == "1.00" else value.removeprefix("0")


def _chosen(found: Mapping[str, Any]) -> Iterator[str]:
    """What heads each half of the documents chose, and what the other half says of them."""
    yield "Heads chosen by splices on half of the documents, AUC on the other half (95% interval), mean over"
    yield "2, 4 and 8 documents; mean of all heads -> the chosen head, both ways:"
    yield ""
    yield "| heads of | category | taken | first half's choice | second half's choice |"
    yield "|---|---|---|---|---|"
    for name, categories in found.items():
        for category, of in categories.items():
            layers = {f"{name} layer 0": of["heads"], **_deeper(name, of)}
            for called, heads in layers.items():
                choice = heads["choice"]
                head = choice["head"]
                taken = "all" if head is None else heads["names"][head]
                halves = [_judged(heads, half) for half in choice["judgements"]]
                halves = halves or [choice["why"], ""]
                yield f"| {called} | {category} | {taken} | {' | '.join(halves)} |"


def _deeper(name: str, of: Mapping[str, Any]) -> dict[str, Any]:
    return {f"all layers of {name}": heads for heads in of.get("deeper_heads", {}).values()}


def _judged(heads: Mapping[str, Any], half: Mapping[str, Any]) -> str:
    value, low, high = np.mean(list(half["auc"].values()), axis=0)
    mean = np.mean([of[0] for of in half["mean_auc"].values()])
    return f"{mean:.2f} -> {heads['names'][half['head']]} {value:.2f} ({low:.2f}-{high:.2f})"


def _costs(bench: Bench, found: Mapping[str, Any]) -> Iterator[str]:
    """Seconds a window of each further score, as evaluations and runs measured them."""
    yield "Seconds a window, of each score in the evaluations (median) and in the run:"
    yield ""
    yield "| model | score | evaluation | run | windows of the run |"
    yield "|---|---|---|---|---|"
    for name, categories in found.items():
        costs: dict[str, list[float]] = {}
        for category in categories:
            of = json.loads((bench.here / name / f"{category}.json").read_text())["costs"]
            for score, seconds in of.items():
                costs.setdefault(score, []).append(seconds)
        path = bench.here / name / "summary.json"
        ran = json.loads(path.read_text()).get("scores", {}) if path.exists() else {}
        for score, seconds in costs.items():
            of = ran.get(score, {})
            each = f"{of['seconds'] / of['scored']:.4f}" if of.get("scored") else "-"
            yield f"| {name} | {score} | {np.median(seconds):.4f} | {each} | {of.get('scored', '-')} |"


# --- the command ---------------------------------------------------------------------------------


def corpora_in(folder: Path) -> dict[str, Path]:
    """JSON Lines files of a folder by category, which is the first part of their names."""
    files = [path for path in sorted(folder.iterdir()) if ".jsonl" in path.suffixes]
    if not files:
        raise SystemExit(f"{folder}: no .jsonl, .jsonl.gz or .jsonl.zst file")
    return {path.name.partition(".")[0]: path.resolve() for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpora", type=Path, help="a folder of <category>.jsonl.zst")
    parser.add_argument("results", type=Path, help="small files: evaluations, tables, logs")
    parser.add_argument("--work", type=Path, help="outputs of the runs; by default RESULTS/work")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--no-builtin", action="store_true", help="without the built-in scorer")
    parser.add_argument("--window", default="32K", help="tokens of a window")
    parser.add_argument("--windows", type=int, default=40, help="native ones a category")
    parser.add_argument("--limit", type=float, default=540, help="seconds a stage")
    parser.add_argument("--gpus", type=int, help="evaluations at a time; by default all GPUs")
    parser.add_argument("--stages", nargs="+", choices=("evaluate", "score"))
    parser.add_argument("--sample", type=float, default=1.0, help="share of windows to score")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of whole models"
    )
    parser.add_argument("--local", action="store_true", help="score without Ray")
    asked = parser.parse_args()
    models = {} if asked.no_builtin else {BUILTIN: BUILTIN}
    for given in asked.model:
        name, _, folder = given.partition("=")
        if not Path(folder, "config.json").is_file():
            raise SystemExit(f"--model {given}: NAME=FOLDER of a model is required")
        models[name] = str(Path(folder).resolve())
    bench = Bench(
        corpora_in(asked.corpora),
        models,
        read_number(WindowLength, "--window", asked.window),
        asked.windows,
        asked.results.resolve(),
        (asked.work or asked.results / "work").resolve(),
        asked.limit,
        asked.local,
        asked.sample,
        asked.dtype,
    )
    gpus = asked.gpus
    if gpus is None:
        import torch

        gpus = torch.cuda.device_count()
    done = True
    for stage in asked.stages or ("evaluate", "score"):
        if stage == "evaluate":
            done &= evaluate_all(bench, gpus)
        else:
            done &= all([all(run_stage(bench, of, None) for of in two) for two in scorings(bench)])
    print((bench.here / "table.md").read_text() if (bench.here / "table.md").exists() else "")
    return 0 if done else LEFT


if __name__ == "__main__":
    sys.exit(main())
