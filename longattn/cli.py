"""The `longattn` command.

Exit status: 0 all of it worked; others as `longattn.errors` has them.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from longattn import __version__, actions
from longattn.command import (
    CheckOption,
    ConfigPath,
    Executor,
    ExecutorOption,
    FollowOption,
    IdleOption,
    LogFile,
    NoCheckOption,
    OutputPath,
    Overrides,
    ShardOption,
    guarded,
)
from longattn.settings.numbers import WindowLength, read_number
from longattn.terminal import (
    console,
)

app = typer.Typer(
    help="Find the long documents whose far ends depend on each other.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a new file, as my.yaml")],
) -> None:
    """Write a first config, which runs as it is on documents of this package; explains all settings.

    Example: longattn init my.yaml
    """

    def work() -> None:
        from longattn.config import Config
        from longattn.settings.reference import write_first_config

        write_first_config(Config, file)
        print(f"written: {file}; run it: longattn run {file}")

    guarded(work)


@app.command("config")
def show_config(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="YAML file, or the OUTPUT of a run")
    ] = None,
    set_: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema instead")] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="print the page of all settings instead")
    ] = False,
) -> None:
    """Show the settings in force and where each comes from; checks them, reads no source.

    Example: longattn config configs/quickstart.yaml --set window.tokens=8K

    Example: longattn config --schema > longattn.schema.json
    """
    if schema + reference + (config is not None) != 1:
        raise typer.BadParameter("one of CONFIG, --schema, --reference is required")

    def work() -> None:
        from longattn.config import Config, Mix
        from longattn.settings.reference import editor_schema, print_settings, settings_page

        if config is not None:
            print_settings(Config.of(config, set_ or []), set_ or [], console(160))
        elif schema:
            print(json.dumps(editor_schema(Config), indent=1))
        else:
            print(settings_page(Config, Mix), end="")

    guarded(work)


@app.command()
def run(
    config: ConfigPath,
    set_: Overrides = None,
    executor: ExecutorOption = Executor.RAY,
    check: CheckOption = False,
    shard: ShardOption = None,
    follow: FollowOption = None,
    idle: IdleOption = "10m",
    log_file: LogFile = None,
) -> None:
    """Score what is not labelled yet, then select.

    With --follow it goes on until Ctrl-C or SIGTERM: a file is taken once two listings found it the
    same, and select.every says when is selected anew. Run again, it goes on where it was.

    Example: longattn run configs/quickstart.yaml --set select.keep.fraction=0.25

    Example: longattn run configs/quickstart.yaml --follow 60s --set select.every=1h
    """
    if follow is not None:
        if shard is not None:
            raise typer.BadParameter("--follow and --shard exclude each other")
        guarded(lambda: actions.follow(config, set_, executor, follow, idle, check=check))
        return
    guarded(
        lambda: actions.run(config, set_, executor, select_after=True, check=check, shard=shard)
    )


@app.command()
def score(
    config: ConfigPath,
    set_: Overrides = None,
    executor: ExecutorOption = Executor.RAY,
    check: CheckOption = False,
    shard: ShardOption = None,
    log_file: LogFile = None,
) -> None:
    """Score what is not labelled yet; select nothing.

    Example: longattn score configs/quickstart.yaml
    """
    guarded(
        lambda: actions.run(config, set_, executor, select_after=False, check=check, shard=shard)
    )


@app.command()
def select(config: ConfigPath, set_: Overrides = None, log_file: LogFile = None) -> None:
    """Select from stored scores; reads no corpus, needs no GPU.

    Only `select.heads: auto`, where it has not chosen yet, reads documents and scores them.

    Example: longattn select configs/quickstart.yaml --set select.alpha=1 --set select.keep.tokens=1.5B
    """
    guarded(lambda: actions.select(config, set_))


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
    ] = "192M",
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    no_check: NoCheckOption = False,
    log_file: LogFile = None,
) -> None:
    """Tell what a run would give and cost, and what will hurt. Writes nothing, needs no Ray.

    Reads a sample of each category and cuts it as the run would: documents long enough, windows,
    tokens, bytes of output, hours; the settings in force and where each comes from. Scores a few
    windows to say whether what ranks tells documents from splices here; --no-check leaves that out.

    Example: longattn plan configs/quickstart.yaml --windows-per-second 100
    """
    guarded(
        lambda: actions.plan(
            config, set_, windows_per_second, read, as_json=json_, check=not no_check
        )
    )


@app.command()
def report(output: OutputPath, no_check: NoCheckOption = False, log_file: LogFile = None) -> None:
    """Write OUTPUT/report.html anew: one page, for any browser, that shows what was selected.

    Scores a few windows of the corpus to say whether what ranks tells documents from splices.

    Example: longattn report out/quickstart
    """

    def work() -> None:
        from longattn.notebook import report as write_report
        from longattn.text import without_secrets

        print(f"written: {without_secrets(write_report(output, check=not no_check))}")

    guarded(work)


@app.command()
def inspect(
    output: Annotated[
        str | None,
        typer.Argument(metavar="OUTPUT", help="folder of a run, local or s3://, or its CONFIG"),
    ] = None,
    data_id: Annotated[
        str | None, typer.Argument(metavar="DATA_ID", help="a window of labelled/")
    ] = None,
    text: Annotated[str | None, typer.Option(help="a text file, in place of a window")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="with --text, or of windows without a run: builtin, folder, hub id or URL"
        ),
    ] = "builtin",
    window: Annotated[
        str, typer.Option(metavar="TOKENS", help="with --text: at most, as in 8K")
    ] = "32K",
    head: Annotated[int | None, typer.Option(min=0, help="one head, not their mean")] = None,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="the page; by default OUTPUT/inspections/DATA_ID.html, with --text none",
        ),
    ] = None,
    log_file: LogFile = None,
) -> None:
    """Show how the far attention of one window is made: where it goes, between which passages.

    Scores the window again; prints a map and the passages that read each other, and writes a page.
    Without DATA_ID: lists a few windows of each category.

    Example: longattn inspect out/quickstart

    Example: longattn inspect out/quickstart book-0123abcd-0

    Example: longattn inspect --text README.md --model builtin
    """
    if (text is None) == (output is None):
        raise typer.BadParameter("OUTPUT and DATA_ID, or --text FILE, is wanted")

    def work() -> None:
        from longattn.config import output_of
        from longattn.reports.inspection import (
            inspect_window,
            inspection_page,
            labelled_window,
            print_inspection,
            text_window,
        )
        from longattn.reports.window_list import listed_windows, print_windows
        from longattn.storage.files import write_bytes
        from longattn.storage.output_folder import OutputFolder
        from longattn.text import without_secrets

        url = html
        if text is not None:
            chosen = text_window(text, model, read_number(WindowLength, "--window", window))
        else:
            folder = output_of(output or "")
            if data_id is None:
                print_windows(*listed_windows(folder), console(100))
                print(f"look into one: longattn inspect {without_secrets(output or '')} DATA_ID")
                return
            chosen = labelled_window(folder, data_id, model)
            url = html or OutputFolder(folder).inspection(chosen.title)
        found = inspect_window(chosen, head=head)
        print_inspection(found, console(160))
        if url is None:
            print("no page was written; --html FILE writes one")
            return
        write_bytes(url, inspection_page(found).encode())
        print(f"written: {without_secrets(url)}")

    guarded(work)


@app.command()
def evaluate(
    config: ConfigPath,
    set_: Overrides = None,
    windows: Annotated[int, typer.Option(min=2, help="native windows a category")] = 40,
    causal_model: Annotated[
        str | None,
        typer.Option(
            help="folder, hub id or URL, with the scorer's tokenizer, for the dear baselines"
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="take only documents that builtin/train.py held out with this share"),
    ] = None,
    seed: Annotated[int, typer.Option(help="decides what is drawn")] = 0,
    log_file: LogFile = None,
) -> None:
    """Measure the scorer on the corpus itself: native windows against spliced and shuffled ones.

    Writes OUTPUT/evaluation.html and .json. Needs no labels, no Ray and no earlier run.

    Example: longattn evaluate configs/quickstart.yaml --windows 10 --set window.tokens=8192
    """
    guarded(lambda: actions.evaluate(config, set_, windows, causal_model, held_out, seed))


@app.command()
def join(
    output: OutputPath,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Parquet with data_id and numbers, local or s3://")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="of the score: its column and its folder; default: FILE without its suffix"
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="what was joined as NAME before gives way")
    ] = False,
    log_file: LogFile = None,
) -> None:
    """Make numbers of your own a score of the labelled windows: OUTPUT/scores/NAME.

    A single column becomes NAME, of several each NAME_COLUMN: what `select.rank_by` and `where` take.

    Example: longattn join out/quickstart mine.parquet

    Example: longattn join out/quickstart scores-2.parquet --name mine
    """
    guarded(lambda: actions.join(output, file, name, replace=replace))


@app.command()
def export(
    config: ConfigPath,
    set_: Overrides = None,
    format: Annotated[
        str, typer.Option("--format", help="megatron, mds, npy or jsonl")
    ] = "megatron",
    shuffle: Annotated[
        int | None, typer.Option(metavar="SEED", help="one order over all categories")
    ] = None,
    mix: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML: the share of each category, see SETTINGS.md"),
    ] = None,
    log_file: LogFile = None,
) -> None:
    """Write the selected windows as files of a trainer: OUTPUT/FORMAT/CATEGORY-PART...

    Prints the paths that the trainer takes, and how they are read. Killed and run again, it writes
    what is missing.

    megatron: pairs of .bin (token ids) and .idx, for Megatron-LM's --data-path.

    mds: folders for mosaicml-streaming: input_ids, indices, domain, length, data_id.

    npy: .npy (token ids, no header), .csv.gz (a line a document), for OLMo-core and numpy.memmap.

    jsonl: .jsonl.zst; a line has data_id, category, length, documents, input_ids.

    Example: longattn export configs/quickstart.yaml --format mds --shuffle 1
    """

    guarded(lambda: actions.export(config, set_, format, shuffle, mix))


@app.command()
def bench(
    model: Annotated[
        str | None,
        typer.Option(
            help="8b, 70b (random tables of that shape), builtin, a folder, a hub id or a URL"
        ),
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option(metavar="TOKENS", help="of a window, as in 32K; repeatable"),
    ] = None,
    tokens: Annotated[
        str, typer.Option(metavar="COUNT", help="tokens of a corpus to predict for, as in 36B")
    ] = "36B",
    json_: Annotated[bool, typer.Option("--json", help="for machines")] = False,
    log_file: LogFile = None,
) -> None:
    """Measure this machine: kernel, whole call, tokenizer, sink; predict what a corpus takes.

    Example: longattn bench --model 8b --tokens 36B
    """

    guarded(lambda: actions.bench(model, length or ["32K"], tokens, as_json=json_))


@app.command()
def verify(
    output: OutputPath,
    scores: Annotated[
        int, typer.Option(min=0, metavar="N", help="score N windows, drawn at random, again")
    ] = 0,
    log_file: LogFile = None,
) -> None:
    """Read a whole output back and check it: one line a finding, status 1 on any.

    Example: longattn verify out/quickstart

    Example: longattn verify out/quickstart --scores 20
    """

    guarded(lambda: actions.verify(output, scores))


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


def main() -> None:
    app()


def command(name: str) -> None:
    """One command of `longattn` as a program of its own, for the scripts of ray_jobs/."""
    app([name, *sys.argv[1:]], prog_name=sys.argv[0])


if __name__ == "__main__":
    main()
