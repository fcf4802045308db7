import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

import longattn as la
from longattn.cli import app
from longattn.config import Config, Source
from longattn.corpus.parts import sample_part
from longattn.corpus.sources import list_splits
from longattn.errors import ConfigError
from longattn.reports import bench
from longattn.reports.plan import plan
from longattn.reports.plan_printed import PlanPrinter, print_rest
from longattn.reports.plan_sample import CategoryPlan
from longattn.storage.files import list_files
from tests.conftest import BUILTIN, config


def planned(settings, overrides=(), check=False, **kwargs):
    return plan(settings, overrides, windows_per_second=10.0, check=check, **kwargs)


def corpus_of(folder, kind, documents=400):
    """One file of many documents, most of them long, in the given kind; returns its path."""
    words = (BUILTIN / "MODEL_CARD.md").read_text().split()
    draw = random.Random(3)
    texts = [" ".join(draw.choices(words, k=draw.randrange(150, 2500))) for _ in range(documents)]
    path = folder / f"all.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"content": texts}), path, row_group_size=10)
        return str(path)
    lines = "".join(json.dumps({"content": text}) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    return str(path)


def test_what_is_read_whole_is_what_the_run_gives(finished):
    settings, summary = finished
    result = planned(settings)
    for name, told in summary.categories.items():
        got = result.categories[name]
        assert (got.read, got.error) == (1, 0)
        assert (got.documents, got.windows, got.tokens) == (
            told.counts.documents,
            told.windows,
            told.counts.tokens,
        )
        assert got.long == told.counts.documents - told.counts.too_short - told.counts.duplicates
        chosen = told.selection.to_dict()
        assert (got.kept, got.kept_tokens) == (chosen["kept"], chosen["kept_tokens"])
    assert result.device_hours == pytest.approx(result.windows / 36_000)
    splits = summary.splits["all"]
    assert result.done.startswith(f"{splits} of {splits} splits are labelled already")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_a_part_tells_of_the_whole_and_nothing_is_written(kind, tmp_path, checkpoint):
    path = corpus_of(tmp_path, kind)
    sources = [{"category": "a", "path": path}]
    settings = config(tmp_path, tmp_path / "out", checkpoint, sources=sources)
    whole = planned(settings).categories["a"]
    before = sorted(tmp_path.rglob("*"))
    part = planned(settings, read_bytes=whole.bytes // 4).categories["a"]
    assert whole.read == 1 and 0.15 < part.read < 0.4
    assert part.windows == pytest.approx(whole.windows, rel=0.15)
    assert part.tokens == pytest.approx(whole.tokens, rel=0.15)
    assert part.documents == pytest.approx(whole.documents, rel=0.2)
    assert 0 < part.error < 0.15
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_of_parquet_has_the_budget_wherever_it_begins(tmp_path):
    path = Path(corpus_of(tmp_path, "parquet"))
    for i in range(20):  # where it begins is decided by a hash of the path
        (tmp_path / f"{i}.parquet").hardlink_to(path)
    files = list_splits([Source(category="a", path=f"{tmp_path}/*.parquet")])
    budget = path.stat().st_size // 4
    begins = set()
    for file in files:
        with sample_part(file, budget) as (split, stored):
            begins.add(split.start)
            assert budget <= stored < 1.5 * budget
    assert len(begins) > 5


def test_documents_that_were_not_tokenized_are_told_by_their_bytes(
    tmp_path, checkpoint, monkeypatch
):
    sources = [{"category": "a", "path": corpus_of(tmp_path, "jsonl")}]
    settings = config(tmp_path, tmp_path / "out", checkpoint, sources=sources)
    whole = planned(settings).categories["a"]
    monkeypatch.setattr(
        "longattn.reports.plan_sample.TEXT_BYTES", {"fastokens": 10**5, "tokenizers": 10**5}
    )
    part = planned(settings).categories["a"]
    assert part.documents == whole.documents
    assert part.tokens == pytest.approx(whole.tokens, rel=0.05) and part.tokens != whole.tokens
    assert part.windows == pytest.approx(whole.windows, rel=0.1)


def test_output_bytes_are_those_of_the_files(finished):
    settings, _ = finished
    for name, told in planned(settings).categories.items():
        files = list_files(f"{settings.output}/labelled/{name}", ".parquet")
        assert 0.5 < told.labelled_bytes / sum(files.values()) < 1.2


def test_each_setting_tells_where_it_comes_from(corpus, checkpoint, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"sources: [{{category: book, path: '{corpus}/book'}}]\noutput: {tmp_path}/out\n"
        f"window: {{tokens: 512}}\nscorer: {{model: '{checkpoint}'}}\nselect: {{alpha: 1}}\n"
    )
    overrides = ["select.keep.count=7", "workers.score=3"]
    result = planned(Config.from_yaml(path, overrides), overrides)
    told = {name: (value, origin) for name, value, origin in result.settings}
    assert told["select.alpha"] == (1, "file")
    assert told["select.standardize"] == ("zscore", "default")
    assert told["select.keep.count"] == (7, "--set")
    assert told["workers.score"] == ([3, 3], "--set")
    assert told["scorer.dtype"] == (None, "default")
    assert "select.keep.fraction" not in told


def test_what_will_hurt_is_told(corpus, checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    lines = '{"content": "short"}\n' * 40 + "bad\n" * 20
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    text = (BUILTIN / "MODEL_CARD.md").read_text() * 3
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"content": text}).encode()))
    monkeypatch.setattr("longattn.reports.plan.ALONE_BYTES", 1000)
    sources = [{"category": "a", "path": str(folder)}]
    settings = config(
        corpus, tmp_path / "out", checkpoint, sources=sources, select={"keep": {"tokens": "1B"}}
    )
    told = "\n".join(planned(settings).warnings)
    for part in (
        "too few for a z-score",
        "98% of the documents are shorter",
        "20 bad records, over max_bad_fraction 0.01, which ends a run of 1,000 records or more",
        "b.jsonl.gz cannot be split",
        "wants more than there is",
    ):
        assert part in told
    inside = settings.model_copy(update={"output": f"{folder}/out"})
    with pytest.raises(ConfigError, match="lies with the source"):  # as a run refuses it
        planned(inside)


def test_the_command_measures_this_device_and_writes_nothing(
    corpus, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(bench, "CPU_SECONDS", 0.2)
    settings = config(corpus, tmp_path / "out", checkpoint)
    path = tmp_path / "c.yaml"
    path.write_text(settings.to_yaml())
    result = CliRunner().invoke(app, ["plan", str(path)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "measured here" in result.output and "nothing was written" in result.output
    assert "workers.score" in result.output and not (tmp_path / "out").exists()
    told = CliRunner().invoke(app, ["plan", str(path), "--json", "--windows-per-second", "2"])
    values = json.loads(told.stdout)
    assert values["rate_from"] == "stated" and set(values["wall_seconds"]) == {"1"}
    refused = CliRunner().invoke(app, ["plan", str(path), "--read", "lots"])
    assert refused.exit_code == 2 and "--read lots" in refused.stderr


def test_a_file_of_which_nothing_can_be_read_is_named_with_the_reason(tmp_path, checkpoint):
    (tmp_path / "corpus").mkdir()
    good, prose = tmp_path / "corpus/good.jsonl", tmp_path / "corpus/prose.jsonl"
    good.write_text(json.dumps({"content": (BUILTIN / "MODEL_CARD.md").read_text()}) + "\n")
    prose.write_text("words, and no JSON\n" * 30_000)  # more than is read of it
    sources = [{"category": "a", "path": str(tmp_path / "corpus")}]
    settings = config("", tmp_path / "out", checkpoint, sources=sources)
    mixed = planned(settings, read_bytes=1 << 18)
    assert (
        list(mixed.categories["a"].unread) == [str(prose)] and mixed.windows and not mixed.nothing
    )
    (told,) = [line for line in mixed.warnings if "nothing could be read" in line]
    assert told.startswith(f"a: {prose}: nothing could be read: ")
    good.unlink()
    nothing = planned(settings, read_bytes=1 << 18)
    assert nothing.nothing.startswith(f"{prose}: ")
    path = tmp_path / "c.yaml"
    path.write_text(settings.to_yaml())
    result = CliRunner().invoke(app, ["plan", str(path), "--windows-per-second", "1", "--no-check"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"longattn: a run would end without a window: {nothing.nothing}"
    )


def test_documents_that_repeat_others_are_left_out_as_a_run_does(tmp_path, checkpoint, monkeypatch):
    """Twice in one file, in two files of a category (one run over them says how many), and untokenized."""
    lines = Path(corpus_of(tmp_path, "jsonl", 12)).read_text().splitlines(keepends=True)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("".join([*lines[:8], lines[0]]))
    (tmp_path / "in/b.jsonl").write_text("".join(lines[4:]))
    sources = [{"category": "a", "path": f"{tmp_path}/in"}]
    settings = config(tmp_path, tmp_path / "out", checkpoint, sources=sources)
    told = planned(settings)
    got = told.categories["a"]
    ran = la.run(settings, executor="local").categories["a"]
    assert (got.documents, got.sampled, got.repeated) == (17, 17, ran.counts.duplicates)
    assert got.repeated >= 4 and (got.windows, got.kept) == (ran.windows, ran.selection.kept)
    assert any(f"a: {got.repeated} of 17 documents repeat others" in line for line in told.warnings)
    assert not any("shorter than a window" in line for line in told.warnings)
    most = {"fastokens": 1, "tokenizers": 1}
    monkeypatch.setattr("longattn.reports.plan_sample.TEXT_BYTES", most)
    part = planned(settings).categories["a"]
    assert (part.documents, part.windows) == (17, pytest.approx(got.windows, rel=0.2))


def test_repeats_among_what_was_not_read_are_said_to_be_unknown(tmp_path, checkpoint):
    sources = [{"category": "a", "path": corpus_of(tmp_path, "jsonl")}]
    settings = config(tmp_path, tmp_path / "out", checkpoint, sources=sources)
    unknown = "a: documents that repeat one another are left out only among those read"
    for read, said in (({}, False), ({"read_bytes": 300_000}, True)):
        result = planned(settings, **read)
        assert any(line.startswith(unknown) for line in result.warnings) == said


def test_what_is_there_is_printed_before_anything_is_measured(tmp_path, checkpoint, monkeypatch):
    (tmp_path / "in").mkdir()
    for kind in ("jsonl", "jsonl.gz"):
        Path(corpus_of(tmp_path, kind, 30)).rename(tmp_path / f"in/all.{kind}")
    printed = io.StringIO()
    seen = []

    def measured(*_):
        seen.append(printed.getvalue())
        return 10.0, "cpu"

    monkeypatch.setattr("longattn.reports.plan._measured", measured)
    sources = [{"category": "a", "path": f"{tmp_path}/in"}]
    settings = config(tmp_path, tmp_path / "out", checkpoint, sources=sources)
    shown = Console(file=printed, width=110)
    result = plan(settings, check=False, watcher=PlanPrinter(shown))
    (before,) = seen
    _, files, counts, kept = (
        table.splitlines()[-1].split() for table in before.strip().split("\n\n")
    )
    assert files[:2] == ["a", "2"] and " ".join(files[4:]) == "1 .jsonl, 1 .jsonl.gz"
    got = result.categories["a"]
    assert counts[3:6] == [str(n) for n in (60, got.repeated, got.long)]
    assert kept[:2] == ["a", f"{got.kept:,}"] and before.startswith("setting")
    print_rest(result, shown)
    assert printed.getvalue().startswith(before) and "windows at 10 a second" in printed.getvalue()


@pytest.mark.parametrize("width", [40, 80, 100])
def test_the_tables_of_a_large_corpus_are_whole_on_80_columns(width):
    told = CategoryPlan(
        files=12_000,
        bytes=10**12,
        read=0.004,
        sampled=1000,
        documents=12_345_678,
        repeated=123_456,
        long=1_234_567,
        windows=2_345_678,
        error=0.12,
        tokens=36_200_000_000,
        labelled_bytes=280_000,
        kept=1_172_839,
        kept_tokens=18_100_000_000,
        selected_bytes=140_000,
        bad=0,
        cutting_seconds=1.0,
    )
    printed = io.StringIO()
    PlanPrinter(Console(file=printed, width=width)).counts({"arxiv": told})
    lines = printed.getvalue().splitlines()
    assert "…" not in printed.getvalue() and max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line] == 2 * ["category", "arxiv"]
    assert "~2,345,678 ±12%" in lines[1] and "280 kB" in lines[4] and "140 kB" in lines[4]
    assert "repeated" in lines[0] and lines[3].endswith("selected files")
