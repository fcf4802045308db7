"""What the commands that run, plan, select and evaluate do, and then print."""

from __future__ import annotations

import json
import logging

from longattn.command import Executor
from longattn.errors import RunError
from longattn.ray_messages import quieten_ray
from longattn.settings.numbers import ByteSize, Count, Seconds, WindowLength, read_number
from longattn.terminal import (
    console,
    show_categories,
    show_evaluation,
    show_scores,
    show_stages,
    show_written,
)
from longattn.text import counted

log = logging.getLogger("longattn")


def plan(
    path: str,
    overrides: list[str] | None,
    rate: float | None,
    read: str,
    *,
    as_json: bool,
    check: bool,
) -> None:
    from longattn.config import Config
    from longattn.reports.plan import plan as plan_run
    from longattn.reports.plan_printed import PlanPrinter, print_rest

    config = Config.of(path, overrides or [])
    read_bytes = read_number(ByteSize, "--read", read)
    shown = console(110)
    result = plan_run(
        config,
        overrides or [],
        windows_per_second=rate,
        read_bytes=read_bytes,
        check=check,
        watcher=None if as_json else PlanPrinter(shown),
    )
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        print_rest(result, shown)
    if result.nothing:
        raise RunError(f"a run would end without a window: {result.nothing}")


def run(
    path: str,
    overrides: list[str] | None,
    executor: Executor,
    *,
    select_after: bool,
    check: bool,
    shard: str | None,
) -> None:
    from longattn.config import Config

    config = Config.of(path, overrides or [])
    # Before Ray is imported, which takes 4 s.
    log.debug("listing %s", counted(len(config.sources), "source"))
    from longattn.pipeline.job import run as run_job
    from longattn.storage.output_folder import OutputFolder

    if executor == Executor.RAY:
        quieten_ray()
    summary = run_job(
        config, executor=executor.value, select_after=select_after, check=check, shard=shard
    )
    told = summary.to_dict()
    show_categories(told["categories"], config.select.rank_by)
    show_stages(told)
    show_scores(told.get("scores", {}), summary.tables_written)
    show_written(config.output, OutputFolder(config.output).shown())


def follow(
    path: str,
    overrides: list[str] | None,
    executor: Executor,
    interval: str,
    idle: str,
    *,
    check: bool,
) -> None:
    from longattn.config import Config
    from longattn.pipeline.follow import follow as follow_sources

    if executor == Executor.RAY:
        quieten_ray()
    config = Config.of(path, overrides or [])
    times = [
        read_number(Seconds, name, given)
        for name, given in (("--follow", interval), ("--idle", idle))
    ]
    follow_sources(config, times[0], idle=times[1], executor=executor.value, check=check)


def select(path: str, overrides: list[str] | None) -> None:
    from longattn.pipeline.remarks import remarks
    from longattn.reports.retelling import retell
    from longattn.resume.fingerprint import require_windows_of
    from longattn.resume.origin import config_of_output, unfinished
    from longattn.resume.shards import held
    from longattn.selection.select_windows import select as select_labelled
    from longattn.storage.output_folder import OutputFolder

    config = config_of_output(path, overrides or [])
    require_windows_of(config)
    with held(config.output):
        if config.select.chooses_heads:
            from longattn.reports.head_choice import choose_heads

            choose_heads(config)
        chosen = select_labelled(config.output, config.select, file_bytes=config.file_bytes)
        name = config.select.name
        written = [
            OutputFolder(config.output).selection(name),
            *retell(config.output, chosen, name),
        ]
    categories = {name: c.to_dict() for name, c in chosen.items()}
    left = unfinished(config.output)
    for remark in [*remarks(config, categories), *([left] if left else [])]:
        log.warning("%s", remark)
    show_categories(categories, config.select.rank_by)
    show_written(config.output, written)


def evaluate(
    path: str,
    overrides: list[str] | None,
    windows: int,
    causal_model: str | None,
    held_out: float | None,
    seed: int,
) -> None:
    from longattn.config import Config

    config = Config.of(path, overrides or [])
    log.info("loading torch")
    from longattn.reports.evaluation import evaluate as measure
    from longattn.reports.evaluation import write_evaluation
    from longattn.reports.evaluation_record import FEW_DOCUMENTS, LABELS
    from longattn.storage.output_folder import require_folder
    from longattn.text import without_secrets

    require_folder(config.output)
    result = measure(
        config, windows=windows, causal_model=causal_model, held_out=held_out, seed=seed
    )
    show_evaluation(result, LABELS, FEW_DOCUMENTS)
    for url in write_evaluation(config.output, result):
        print(f"written: {without_secrets(url)}")


def join(path: str, file: str, name: str | None, *, replace: bool) -> None:
    from longattn.notebook import join as join_file
    from longattn.text import count

    told = join_file(path, file, name=name, replace=replace)
    of_file = "" if name else " (named as the file)"
    print(
        f"score {told.name}{of_file}: {', '.join(told.columns)} of {count(told.windows - told.missing)} of "
        f"{counted(told.windows, 'window')}; {count(told.unknown)} of {count(told.rows)} ids are not "
        f"labelled here; {counted(told.tables, 'table')} written"
    )
    if told.left_out:
        print(f"left out, as no numbers or the index of pandas: {', '.join(told.left_out)}")


def export(
    path: str, overrides: list[str] | None, format: str, shuffle: int | None, mix: str | None
) -> None:
    from longattn.notebook import export as write_export
    from longattn.text import without_secrets

    for written in write_export(path, overrides or [], format=format, shuffle=shuffle, mix=mix):
        print(without_secrets(written))


def bench(model: str | None, lengths: list[str], tokens: str, *, as_json: bool) -> None:
    windows = [read_number(WindowLength, "--length", text) for text in lengths]
    corpus = read_number(Count, "--tokens", tokens)
    log.info("loading torch")  # 4 s, 20 on a busy machine
    from longattn.reports.bench import run_bench, shown

    result = run_bench(model, windows, corpus)
    print(json.dumps(result.to_dict(), indent=1) if as_json else shown(result))


def verify(output: str, scores: int) -> None:
    from longattn.config import output_of
    from longattn.reports.verify import verify as findings
    from longattn.text import without_secrets

    folder, found = output_of(output), 0
    for finding in findings(folder, scores=scores):
        found += 1
        print(finding)
    if found:
        raise RunError(f"{without_secrets(folder)}: {counted(found, 'finding')}")
    print(f"{without_secrets(folder)}: all holds")
