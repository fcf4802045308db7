"""The `longattn` command.

Exit status: 0 all of it worked, 1 it failed, 2 a bad argument,
75 stopped by SIGTERM: run again to go on (EX_TEMPFAIL).
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from longattn import __version__

log = logging.getLogger("longattn")
app = typer.Typer(
    help="Find the long documents whose far ends depend on each other.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, local or s3://")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="override a field, as in select.alpha=1"),
]


@app.command()
def run(config: ConfigPath, set_: Overrides = None) -> None:
    """Score what is not labelled yet, then select.

    Example: longattn run configs/quickstart.yaml --set select.keep.fraction=0.25
    """
    _guarded(lambda: _run(config, set_, select_after=True))


@app.command()
def score(config: ConfigPath, set_: Overrides = None) -> None:
    """Score what is not labelled yet; select nothing.

    Example: longattn score configs/quickstart.yaml
    """
    _guarded(lambda: _run(config, set_, select_after=False))


@app.command()
def select(config: ConfigPath, set_: Overrides = None) -> None:
    """Select from stored scores; reads no corpus, needs no GPU.

    Example: longattn select configs/quickstart.yaml --set select.alpha=1 --set select.keep.tokens=1.5B
    """
    _guarded(lambda: _select(config, set_))


@app.command()
def plan(
    config: ConfigPath,
    set_: Overrides = None,
    windows_per_second: Annotated[
        float | None,
        typer.Option(min=1e-6, help="of one scorer; measured on this machine's device by default"),
    ] = None,
    read: Annotated[
        str, typer.Option(metavar="BYTES", help="stored bytes to read of the corpus, as in 2G")
    ] = "200M",
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Tell what a run would give and cost, and what will hurt. Writes nothing, needs no Ray.

    Reads a sample of each category and cuts it as the run would: documents long enough, windows,
    tokens, bytes of output, hours; the settings in force and where each comes from.

    Example: longattn plan configs/quickstart.yaml --windows-per-second 100
    """
    _guarded(lambda: _plan(config, set_, windows_per_second, read, json_))


@app.command()
def report(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="folder of a run, local or s3://")
    ],
) -> None:
    """Write OUTPUT/report.html anew: one page, for any browser, that shows what was selected.

    Example: longattn report out/quickstart
    """

    def work() -> None:
        from longattn.reports.report import write_report

        print(f"written: {write_report(output)}")

    _guarded(work)


@app.command()
def inspect(
    output: Annotated[
        str | None, typer.Argument(metavar="OUTPUT", help="folder of a run, local or s3://")
    ] = None,
    data_id: Annotated[
        str | None, typer.Argument(metavar="DATA_ID", help="a window of labelled/")
    ] = None,
    text: Annotated[str | None, typer.Option(help="a text file, in place of a window")] = None,
    model: Annotated[
        str, typer.Option(help="with --text: builtin, a local folder, or a hub id")
    ] = "builtin",
    window: Annotated[int, typer.Option(min=64, help="with --text: tokens at most")] = 32768,
    head: Annotated[int | None, typer.Option(min=0, help="one head, not their mean")] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="the page; DATA_ID.html by default")
    ] = None,
) -> None:
    """Show how the far attention of one window is made: where it goes, between which passages.

    Scores the window again; prints a map and the passages that read each other, and writes a page.

    Example: longattn inspect out/quickstart book-0123abcd-0

    Example: longattn inspect --text README.md --model builtin
    """
    if (text is None) == (output is None or data_id is None):
        raise typer.BadParameter("OUTPUT and DATA_ID, or --text FILE, is wanted")

    def work() -> None:
        from longattn.reports.inspection import (
            inspect_window,
            inspection_page,
            labelled_window,
            print_inspection,
            text_window,
        )
        from longattn.storage.files import write_bytes

        if text is not None:
            chosen = text_window(text, model, window)
        else:
            chosen = labelled_window(output or "", data_id or "")
        found = inspect_window(chosen, head=head)
        print_inspection(found, _console())
        url = html or f"{chosen.title.rstrip('/').rpartition('/')[2]}.html"
        write_bytes(url, inspection_page(found).encode())
        print(f"written: {url}")

    _guarded(work)


@app.command()
def evaluate(
    config: ConfigPath,
    set_: Overrides = None,
    windows: Annotated[int, typer.Option(min=2, help="native windows a category")] = 40,
    causal_model: Annotated[
        str | None,
        typer.Option(help="folder or hub id with the scorer's tokenizer, for the dear baselines"),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="take only documents that builtin/train.py held out with this share"),
    ] = None,
    seed: Annotated[int, typer.Option(help="decides what is drawn")] = 0,
) -> None:
    """Measure the scorer on the corpus itself: native windows against spliced and shuffled ones.

    Writes OUTPUT/evaluation.html and .json. Needs no labels, no Ray and no earlier run.

    Example: longattn evaluate configs/quickstart.yaml --windows 10 --set window.tokens=8192
    """
    _guarded(lambda: _evaluate(config, set_, windows, causal_model, held_out, seed))


@app.command()
def export(config: ConfigPath, set_: Overrides = None) -> None:
    """Write the selected windows for Megatron-LM: OUTPUT/megatron/CATEGORY-PART.bin and .idx.

    Prints what --data-path takes. Other trainers read the Parquet files as they are: see README.md.

    Example: longattn export configs/quickstart.yaml
    """

    def work() -> None:
        from longattn.config import Config
        from longattn.export import export_megatron
        from longattn.text import without_secrets
        from longattn.windows.tokenizer import load_tokenizer

        settings = Config.from_yaml(config, set_ or [])
        vocabulary = load_tokenizer(settings.scorer.model).vocab_size
        for prefix in export_megatron(settings.output, vocabulary):
            print(without_secrets(prefix))

    _guarded(work)


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Option(help="8b, 70b (random tables of that shape), builtin, a folder or a hub id"),
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="tokens a window; repeatable")] = None,
    tokens: Annotated[str, typer.Option(help="corpus to predict for, as in 36G")] = "36G",
    json_: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Measure this machine: kernel, whole call, tokenizer, sink; predict what a corpus takes.

    Example: longattn bench --model 8b --tokens 36G
    """

    def work() -> None:
        from pydantic import TypeAdapter, ValidationError

        from longattn.config import Count
        from longattn.reports.bench import run_bench, shown

        try:
            count = TypeAdapter(Count).validate_python(tokens)
        except ValidationError:
            raise ValueError(f"--tokens {tokens}: a count is wanted, as in 36G or 1.5B") from None
        if bad := [n for n in length or () if n < 16]:
            raise ValueError(f"--length {bad[0]}: 16 or more is allowed")
        result = run_bench(model, length or [32768], count)
        print(json.dumps(result, indent=1) if json_ else shown(result))

    _guarded(work)


@app.command()
def verify(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="folder of a run, local or s3://")
    ],
) -> None:
    """Read a whole output back and check it: one line a finding, status 1 on any.

    Example: longattn verify out/quickstart
    """

    def work() -> None:
        from longattn.reports.verify import verify as findings
        from longattn.text import without_secrets

        found = 0
        for finding in findings(output):
            found += 1
            print(finding)
        if found:
            raise RuntimeError(f"{without_secrets(output)}: {found} findings")
        print(f"{without_secrets(output)}: all holds")

    _guarded(work)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        names = ("ray", "torch", "transformers", "pyarrow", "s3fs")
        print(f"longattn {__version__} (" + ", ".join(f"{n} {version(n)}" for n in names) + ")")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="versions that matter"),
    ] = False,
) -> None: ...


def _plan(
    path: str, overrides: list[str] | None, rate: float | None, read: str, as_json: bool
) -> None:
    from longattn.config import Config, parse_count
    from longattn.reports.plan import plan as plan_run
    from longattn.reports.plan import print_plan

    config = Config.from_yaml(path, overrides or [])
    result = plan_run(
        config, overrides or [], windows_per_second=rate, read_bytes=parse_count("--read", read)
    )
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        print_plan(result, _console())


def _run(path: str, overrides: list[str] | None, *, select_after: bool) -> None:
    from longattn.config import Config

    config = Config.from_yaml(path, overrides or [])
    log.debug("listing %d sources", len(config.sources))  # before Ray is imported, which takes 4 s
    from longattn.pipeline.job import run as run_pipeline

    # That a cluster started here asks for a token, which Ray itself keeps, is no news.
    authentication = logging.getLogger("ray._private.authentication.authentication_token_setup")
    authentication.addFilter(lambda record: "is enabled" not in record.getMessage())
    if not os.environ.get("LONGATTN_TRACEBACK"):
        # Ray Data tells a failure in 110 lines, which its log file has too.
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
    summary = run_pipeline(config, select_after=select_after)
    _show(summary.to_dict(), config.output)


def _select(path: str, overrides: list[str] | None) -> None:
    from longattn.config import Config
    from longattn.resume.lock import held
    from longattn.selection import select as select_labelled
    from longattn.text import without_secrets

    config = Config.from_yaml(path, overrides or [])
    with held(config.output):
        chosen = select_labelled(
            config.output,
            **config.select.model_dump(exclude={"keep"}),
            keep=config.select.keep,
            file_bytes=config.file_bytes,
            on=config.workers.select,
        )
    categories = {name: c.to_dict() for name, c in chosen.items()}
    _show({"output": without_secrets(config.output), "categories": categories}, config.output)


def _evaluate(
    path: str,
    overrides: list[str] | None,
    windows: int,
    causal_model: str | None,
    held_out: float | None,
    seed: int,
) -> None:
    from longattn.config import Config
    from longattn.reports.evaluation import evaluate as measure
    from longattn.reports.evaluation import write_evaluation
    from longattn.text import without_secrets

    config = Config.from_yaml(path, overrides or [])
    result = measure(
        config, windows=windows, causal_model=causal_model, held_out=held_out, seed=seed
    )
    for name, told in result["categories"].items():
        kinds = list(told["auc"]["LDS"])
        table = _table(f"{name}: AUC, native against", *kinds)
        for scorer, cells in told["auc"].items():
            table.add_row(
                scorer, *("{auc:.2f} ({low:.2f}-{high:.2f})".format_map(cells[k]) for k in kinds)
            )
        _console().print(table)
    for url in write_evaluation(config.output, result):
        print(f"written: {without_secrets(url)}")


def _guarded(work: Callable[[], None]) -> None:
    """Run a command; turn what it raises into one line and an exit status."""
    _log_to_stderr()
    # Who watches is told each step at once; a log holds what is refused in one line.
    log.setLevel(logging.DEBUG if sys.stderr.isatty() else logging.INFO)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        work()
    except ValueError as error:  # bad settings, sources, checkpoint, folder: each told in one line
        _fail(error, 2)
    except (RuntimeError, OSError) as error:
        _fail(error, getattr(error, "exit_status", 1))
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        _fail(error, 1)  # of a client of stores, which have errors of their own


def _log_to_stderr() -> None:
    """Log lines: above a live display in a terminal, else plain."""
    if sys.stderr.isatty():
        handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False, log_time_format="%X"
        )
        logging.basicConfig(format="%(message)s", handlers=[handler])
    else:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)


def _fail(error: BaseException, status: int) -> None:
    from longattn.text import without_secrets

    print(f"longattn: {without_secrets(' '.join(str(error).split()))}", file=sys.stderr)
    if os.environ.get("LONGATTN_TRACEBACK"):
        raise error
    if hasattr(error, "exit_status"):  # of SIGTERM: Ray's threads may not survive Python's own end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise typer.Exit(status)


def _show(summary: dict[str, Any], output: str) -> None:
    """The result as a table, and what of it lies in `output`."""
    table = _table("category", *_COLUMNS)
    for name, category in sorted(summary["categories"].items()):
        category["bad"] = sum(category.get("quarantine", {}).values())
        table.add_row(name, *(_cell(category.get(key)) for key in _COLUMNS.values()))
    _console().print(table)
    for stage, did in summary.get("stages", {}).items():
        print(f"{stage}: {json.dumps({k: round(v, 2) for k, v in did.items()})}")
    from longattn.storage.files import filesystem, join

    fs, folder = filesystem(output)
    places = ["labelled", "selected", "quarantine", "_longattn/summary.json", "report.html"]
    there = [join(summary["output"], place) for place in places if fs.exists(join(folder, place))]
    print("written: " + "  ".join(there))


def _table(first: str, *columns: str) -> Table:
    table = Table(first, *columns, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


_COLUMNS = {
    "documents": "documents", "too short": "too_short", "bad": "bad", "windows": "windows",
    "kept": "kept", "kept tokens": "kept_tokens", "unique": "unique_tokens", "DS mean": "ds_mean", "DS dev": "ds_std",
    "DU mean": "du_mean", "LDS from": "lds_threshold",
}  # fmt: skip


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def main() -> None:
    app()


def command(name: str) -> None:
    """One command of `longattn` as a program of its own, for the scripts of ray_jobs/."""
    app([name, *sys.argv[1:]], prog_name=sys.argv[0])


if __name__ == "__main__":
    main()
