"""The commands as functions: `la.plan`, `la.select`, `la.report`, `la.inspect`, `la.evaluate`, ...

Each takes what the command takes, gives the result as an object, and prints nothing. A config may be
a path, a mapping or a `Config`; an output folder may be given as the config that names it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longattn.config import Config, ConfigLike, Mix, MixLike, Select, is_config_file, output_of
from longattn.errors import ConfigError
from longattn.settings.numbers import ByteSize, WindowLength, read_number
from longattn.settings.paths import absolute_path

log = logging.getLogger("longattn")

if TYPE_CHECKING:
    from longattn.reports.evaluation_record import Evaluation
    from longattn.reports.inspection import Inspection
    from longattn.reports.plan import Plan
    from longattn.selection.join import Joined
    from longattn.selection.selection_record import CategorySelection


def plan(
    config: ConfigLike,
    overrides: Sequence[str] = (),
    *,
    windows_per_second: float | None = None,
    read: int | str = "192M",
    check: bool = True,
) -> Plan:
    """What a run would give and cost: windows, tokens, bytes and hours by category; writes nothing.

    Args:
        config: path, mapping or `Config`.
        overrides: `a.b=value`, as `--set` takes them.
        windows_per_second: of one scorer; measured on this machine by default.
        read: stored bytes of the corpus to read at most, as in "2G".
        check: whether to score a few windows and say if what ranks tells documents from splices.

    Returns:
        A `Plan`: `.categories`, `.windows`, `.device_hours`, `.checks`, `.warnings`, `.to_dict()`.

    Raises:
        ValueError: one line, what a run refuses in its first seconds.
    """
    from longattn.reports.plan import plan as plan_run

    settings = Config.of(config, overrides)
    read_bytes = read_number(ByteSize, "read", read)
    return plan_run(
        settings,
        overrides,
        windows_per_second=windows_per_second,
        read_bytes=read_bytes,
        check=check,
    )


def select(
    path: str,
    settings: Select | None = None,
    *,
    file_bytes: int | str | None = None,
    **overrides: Any,
) -> dict[str, CategorySelection]:
    """Select from `<path>/labelled` into `<path>/selected`, by category; the report is written anew.

    With a `name` it goes to `<path>/selected/<name>`, and the selections that are there stay.

    Another call with the same settings rewrites only what is not as it should be. Exact, and the same
    set whatever the layout of the labelled files.

    Args:
        path: the output folder of a run, or its config.
        settings: `select:` of a config; where none is given, that of `path`, or the defaults.
        file_bytes: aimed size of a selected file, as in a config.
        overrides: fields of `settings` by name, as `keep={"tokens": "1.5B"}`.

    Returns:
        What was kept, by category.

    Raises:
        ValueError: a bad setting, no labelled windows, scores of different settings in one folder,
            scores that are not finite, windows without the column to rank by, or `heads="auto"`
            where the corpus of the run cannot be read to choose them.

    Example:
        select("out/books", alpha=1.0, keep={"fraction": 0.25})
    """
    from longattn.reports.retelling import retell
    from longattn.resume.fingerprint import require_windows_of
    from longattn.resume.origin import unfinished
    from longattn.selection.kept_heads import kept_choices
    from longattn.selection.select_windows import resolved
    from longattn.selection.select_windows import select as select_labelled
    from longattn.storage.output_folder import OutputFolder

    if not isinstance(path, (str, Path)) or is_config_file(path):
        require_windows_of(Config.of(path))
    output, settings, size = resolved(path, settings, file_bytes, overrides)
    if settings.chooses_heads and not kept_choices(OutputFolder(output), settings):
        from longattn.reports.head_choice import choose_heads

        choose_heads(Config.of(path).model_copy(update={"output": output, "select": settings}))
    chosen = select_labelled(output, settings, file_bytes=size)
    retell(output, chosen, settings.name)
    if left := unfinished(output):
        log.warning("%s", left)
    return chosen


def join(
    output: ConfigLike, file: str, *, name: str | None = None, replace: bool = False
) -> Joined:
    """Numbers of your own as a score table: `<output>/scores/<name>`, row for row as the windows.

    Args:
        output: the output folder of a run, or its config.
        file: a Parquet file with `data_id` and columns of numbers, local or any fsspec URL.
        name: of the score, by default that of the file without its suffix; a single column becomes
            `<name>`, of several each `<name>_<column>`.
        replace: whether other numbers that were joined under this name give way.

    Returns:
        A `Joined`: how many windows have no number, how many ids are not labelled here.

    Raises:
        ValueError: one line; ids that are there twice, a column or name that cannot be, or other
            numbers under the name.
    """
    from longattn.selection.join import join as join_file

    return join_file(output_of(output), str(absolute_path(file)), name, replace=replace)


def report(output: ConfigLike, *, check: bool = True) -> str:
    """The path of `report.html`, written anew: a page for any browser that shows what was selected.

    Args:
        output: the output folder of a run or of `write_labelled`, or its config.
        check: whether to score a few windows of the corpus, where it can be read, and say if what
            ranks tells documents from splices; else what an earlier report measured is said.

    Raises:
        ValueError: one line; nothing was labelled there, or selected.
    """
    from longattn.reports.report import write_report

    url = output_of(output)
    if check:
        _measure_ranking(url)
    return write_report(url)


def _measure_ranking(output: str) -> None:
    """Measure what ranks the last selection on the corpus of the run, for the report."""
    from longattn.reports.blindness import record_check
    from longattn.reports.verdict import last_selection
    from longattn.resume.fingerprint import read_run_record
    from longattn.selection.selection_record import SelectionRecord
    from longattn.storage.output_folder import OutputFolder

    folder, run = OutputFolder(output), read_run_record(output)
    selection = SelectionRecord.read(folder, last_selection(folder))
    if run is None or run.config is None or selection is None:
        return
    try:
        record_check(run.config.model_copy(update={"output": output, "select": selection.select}))
    except (OSError, ValueError) as error:  # the corpus is elsewhere now
        log.warning("what ranks was not measured: %s", error)


def inspect(
    output: ConfigLike | None = None,
    data_id: str | None = None,
    *,
    text: str | None = None,
    model: str = "builtin",
    window: int | str = "32K",
    head: int | None = None,
) -> Inspection:
    """Where the far attention of one window goes, and the passages that read each other.

    Args:
        output: the output folder of a run or of `write_labelled`, or its config.
        data_id: a window of `labelled`.
        text: path of a text file, in place of a window.
        model: of a text, or of windows that no run scored and that do not say what did: "builtin", a
            local folder, a hub id or a URL.
        window: with `text`: tokens at most.
        head: one head, not their mean.

    Returns:
        An `Inspection`; `longattn.reports.inspection.inspection_page` makes a page of it.

    Raises:
        ValueError: one line; no such window, head or file.
    """
    from longattn.reports.inspection import inspect_window, labelled_window, text_window

    if text is not None and output is None and data_id is None:
        chosen = text_window(text, model, read_number(WindowLength, "window", window))
    elif text is None and output is not None and data_id is not None:
        chosen = labelled_window(output_of(output), data_id, model)
    else:
        raise ConfigError("inspect: output and data_id, or text, is required")
    return inspect_window(chosen, head=head)


def evaluate(
    config: ConfigLike,
    overrides: Sequence[str] = (),
    *,
    windows: int = 40,
    causal_model: str | None = None,
    held_out: float | None = None,
    seed: int = 0,
) -> Evaluation:
    """How well the scorer tells native windows from spliced and shuffled ones; writes nothing.

    Args:
        config: path, mapping or `Config`.
        overrides: `a.b=value`, as `--set` takes them.
        windows: native windows a category.
        causal_model: folder, hub id or URL, with the scorer's tokenizer, for the dear baselines.
        held_out: take only documents that `builtin/train.py` held out with this share.
        seed: decides what is drawn.

    Returns:
        An `Evaluation`: `.categories[name].auc[scorer][foil]`, and more; `.to_dict()` is
        `evaluation.json`.

    Raises:
        ValueError: one line; a bad setting, or a category with too few long documents.
    """
    from longattn.reports.evaluation import evaluate as measure

    settings = Config.of(config, overrides)
    return measure(
        settings, windows=windows, causal_model=causal_model, held_out=held_out, seed=seed
    )


def verify(output: ConfigLike, *, scores: int = 0) -> list[str]:
    """What is wrong with an output, read back whole: a line a finding, none where all holds.

    Args:
        output: the output folder of a run or of `write_labelled`, or its config.
        scores: how many windows, drawn at random, to score again.

    Raises:
        ValueError: one line; neither has written there.
    """
    from longattn.reports.verify import verify as findings

    return list(findings(output_of(output), scores=scores))


def export(
    output: ConfigLike,
    overrides: Sequence[str] = (),
    *,
    format: str = "megatron",
    shuffle: int | None = None,
    mix: MixLike | None = None,
) -> list[str]:
    """Write the selected windows as files of a trainer; returns the paths that it takes.

    Of the selection that `select.name` of the config names, or of the one without a name.

    Args:
        output: the config of a run, or the output folder of one or of `write_labelled`.
        overrides: `a.b=value`, as `--set` takes them.
        format: "megatron" (prefixes, as `--data-path` takes them), "mds" (folders, each a stream of
            mosaicml-streaming), "npy" (token files, as OLMo-core takes them) or "jsonl".
        shuffle: the seed of an order over all categories, the same anywhere; None: in order of category.
        mix: the share of each category, and what is packed into windows beside: a YAML file, a mapping
            or a `Mix`; None: all that is selected.

    Raises:
        ValueError: one line; nothing is selected there, its settings are not known, or a bad mix.
    """
    from longattn.formats.export import Export
    from longattn.formats.export import export as write_export
    from longattn.resume.origin import config_of_output, read_origin, unfinished
    from longattn.text import without_secrets
    from longattn.windows.tokenizer import load_tokenizer

    settings = config_of_output(output, overrides)
    model, window = settings.scorer.model, settings.window.tokens
    origin = read_origin(settings.output)
    if origin is not None and not origin.is_run:
        folder = isinstance(output, (str, Path)) and not is_config_file(output)
        if origin.parts is not None and origin.model is not None:
            model, window = origin.model, origin.parts.window
        elif folder and "scorer" not in settings.model_fields_set:
            raise ConfigError(
                f"{without_secrets(settings.output)}: what scored its windows is not stored: name the model "
                "whose tokenizer cut them, as in --set scorer.model=meta-llama/Llama-3.1-8B"
            )
    wanted = Export(
        name=settings.select.name,
        vocab_size=load_tokenizer(model).vocab_size,
        window=window,
        format=format,
        shuffle=shuffle,
        mix=None if mix is None else Mix.of(mix),
        model=model,
        memory=settings.select.memory,
    )
    if left := unfinished(settings.output):
        log.warning("%s", left)
    return write_export(settings.output, wanted)
