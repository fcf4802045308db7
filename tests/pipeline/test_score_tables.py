"""Further scores: the numbers of their own truth, row for row; whole, resumed and refused as labelled."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.config import Select
from longattn.errors import FolderError, Interrupted, RunError
from longattn.pipeline import table_stage
from longattn.pipeline.job import Job
from longattn.pipeline.stopping import Stop
from longattn.reports.verify import verify
from longattn.scoring.layers import LayerScorer
from longattn.scoring.loss_gap import LossGapScorer
from longattn.storage.digests import sealed
from longattn.storage.tables import file_metadata, write_table
from longattn.windows.measures import compression_ratio, repetition
from longattn.windows.tokenizer import load_tokenizer
from tests.conftest import BUILTIN, SHORT, WINDOW
from tests.labelled import data_files


@pytest.fixture
def copied(scored, tmp_path):
    """A copy of that run, to change: its settings."""
    settings, _ = scored
    shutil.copytree(settings.output, tmp_path / "out")
    return settings.model_copy(update={"output": str(tmp_path / "out")})


def pairs(output, name):
    """Each labelled file as a table, and its table of a score."""
    files = sorted(Path(output, "labelled").rglob("*.parquet"))
    assert len(files) > 4
    return [(pq.ParquetFile(f).read(), beside(output, name, f)) for f in files]


def beside(output, name, labelled):
    path = Path(output, "scores", name, labelled.parent.name, labelled.name)
    return pq.ParquetFile(path).read()


def test_every_table_holds_the_numbers_of_its_own_truth_row_for_row(scored, checkpoint):
    settings, summary = scored
    gaps = LossGapScorer.from_pretrained(checkpoint, tokens=WINDOW, short=SHORT)
    layers = LayerScorer.from_pretrained(checkpoint, tokens=WINDOW)
    for labelled, table in pairs(settings.output, "text"):
        assert table["data_id"] == labelled["data_id"]
        rows = labelled.to_pylist()
        ratios = [compression_ratio(row["content"].encode()) for row in rows]
        assert table["compression_ratio"].to_pylist() == ratios
        repeats = [repetition(np.array(row["input_ids"])) for row in rows]
        assert table["repetition"].to_pylist() == repeats
    for labelled, table in pairs(settings.output, "deep"):
        ids = [np.array(row) for row in labelled["input_ids"].to_pylist()]
        of = layers.score(ids, WINDOW // 4)
        for name, values in zip(("deep", "deep_variance"), of.means(), strict=True):
            assert table[name].to_pylist() == values.tolist()
        for name, lists in zip(("deep", "deep_variance"), of.layer_means(), strict=True):
            assert table[f"{name}_layers"].to_pylist() == lists.tolist()
        for name, lists in zip(("deep", "deep_variance"), of.by_head(), strict=True):
            assert table[f"{name}_heads"].to_pylist() == lists.tolist()
            about = table.schema.field(f"{name}_heads").metadata
            assert (about[b"shape"], about[b"layers"]) == (b"[1, 2]", b"[0]")
        assert table["deep"].to_numpy() == pytest.approx(labelled["ds"].to_numpy(), rel=1e-5)
    seen = 0
    for labelled, table in pairs(settings.output, "gap"):
        inside = table["gap"].is_valid().to_numpy()
        assert (table["gap_weighted"].is_valid().to_numpy() == inside).all()
        ids = [
            np.array(row)
            for row, one in zip(labelled["input_ids"].to_pylist(), inside, strict=True)
            if one
        ]
        of = gaps.score(ids)
        assert table["gap"].drop_null().to_pylist() == of.mean.tolist()
        assert table["gap_weighted"].drop_null().to_pylist() == of.weighted.tolist()
        seen += len(ids)
    assert summary.extra["scores"]["gap"]["scored"] == seen


def test_where_lets_through_the_ranks_it_names_and_the_record_keeps_the_limits(scored):
    settings, summary = scored
    files = pairs(settings.output, "text"), pairs(settings.output, "gap")
    record = json.loads(Path(settings.output, "_longattn/scores/gap.json").read_text())
    for category in ("book", "code"):
        text, gap = (
            pa.concat_tables([t for of, t in some if of["category"][0].as_py() == category])
            for some in files
        )
        ds = np.concatenate(
            [of["ds"] for of, _ in files[0] if of["category"][0].as_py() == category]
        )
        ratio = text["compression_ratio"].to_numpy()
        first, last = (int(share * len(ratio) + 0.5) for share in (0.2, 0.8))
        low, high = np.sort(ratio)[[first, last - 1]]
        inside = (ratio >= low) & (ratio <= high) & (ds >= 0.01)
        assert 0 < inside.sum() < len(inside)
        assert gap["gap"].is_valid().to_numpy().tolist() == inside.tolist()
        assert record["limits"][category] == {"compression_ratio": [low, high], "ds": [0.01, None]}
    told = summary.extra["scores"]["gap"]
    assert 0 < told["scored"] < told["windows"] == summary.extra["scores"]["text"]["scored"]


def written(settings, **options):
    """How many tables of each score a run in this process writes."""
    summary = Path(settings.output, "_longattn/summary.json")
    before = json.loads(summary.read_text())["scores"]
    after = la.run(settings, executor="local", **options).extra["scores"]
    return {name: of["written"] - before[name]["written"] for name, of in after.items()}


def test_what_is_missing_is_computed_again_bit_for_bit_and_nothing_else_is_touched(copied):
    before = data_files(copied.output)
    files = sorted(Path(copied.output, "scores").rglob("*.parquet"))
    lost, broken, kept = files[0], files[1], files[2:]
    lost.unlink()
    broken.write_bytes(broken.read_bytes()[:-20])
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    assert written(copied) == {"text": 0, "gap": 0, "deep": 2}
    after = {k: v for k, v in data_files(copied.output).items() if not k.startswith("damaged")}
    assert after == before
    assert {path: path.stat().st_mtime_ns for path in kept} == stamps
    place = broken.relative_to(copied.output)
    assert Path(copied.output, "damaged", place).exists()


def break_file(path, what, other):
    """Cut a file to half, put another's bytes there, or flip a bit: of Parquet in a column of scores."""
    data, at = bytearray(path.read_bytes()), 40
    if what == "a bit" and path.suffix == ".parquet":
        with pq.ParquetFile(path) as parquet:
            names = parquet.schema_arrow.names
            column = names.index("ds" if "ds" in names else "compression_ratio")
            chunk = parquet.metadata.row_group(0).column(column)
        at = chunk.data_page_offset + chunk.total_compressed_size - 3
    data[at] ^= what == "a bit"
    half = data[: len(data) // 2]
    path.write_bytes({"a bit": data, "half": half, "another": other.read_bytes()}[what])


def rows_of(output):
    """All rows of each kind of table, in order of their ids: two lost files may come back as one."""
    places = ("labelled", "selected", *(f"scores/{name}" for name in ("text", "gap", "deep")))
    return [
        pq.read_table(output / place, partitioning=None).sort_by("data_id").to_pylist()
        for place in places
    ]


@pytest.mark.parametrize(
    "broken",
    [
        [  # from the first the columns of a `where` are learned
            ("labelled", 0, "half"),
            ("labelled", 1, "another"),
            ("_longattn", "summary.json", "half"),
        ],
        [("labelled", 0, "a bit"), ("scores/text", 1, "a bit")],  # which no footer tells
    ],
)
def test_a_run_that_meets_damaged_files_makes_them_anew(copied, broken, caplog):
    """Nothing but `run` is asked for: a table is missing, for which all that it is made of is read."""
    output = Path(copied.output)
    before = rows_of(output)
    shutil.rmtree(output / "scores/gap")
    (output / "_longattn/scores/gap.json").unlink()
    files = {f: sorted((output / f).rglob("*.parquet")) for f in ("labelled", "scores/text")}
    paths = [files[of][name] if of in files else output / of / name for of, name, _ in broken]
    for path, (*_, what) in zip(paths, broken, strict=True):
        break_file(path, what, files["scores/text"][0])
    la.run(copied, executor="local")
    assert rows_of(output) == before
    assert list(la.verify(copied.output)) == []
    for path in paths:
        assert list((output / "damaged").rglob(path.name)) and path.name in caplog.text


def test_check_reads_whole_tables(copied):
    path = next(Path(copied.output, "scores/deep").rglob("*.parquet"))
    with pq.ParquetFile(path) as parquet:
        metadata, table = parquet.metadata.metadata[b"longattn"], parquet.read()
    before = path.read_bytes()
    changed = table.set_column(1, "deep", pa.array([0.5] * len(table)))
    pq.write_table(changed.replace_schema_metadata({b"longattn": metadata}), path)
    assert written(copied)["deep"] == 0
    assert written(copied, check=True) == {"text": 0, "gap": 0, "deep": 1}
    assert path.read_bytes() == before


def test_a_table_of_a_file_that_is_gone_is_set_aside(copied):
    path = next(Path(copied.output, "scores/deep").rglob("*.parquet"))
    orphan = path.with_name("0" * 32 + ".parquet")
    shutil.copy(path, orphan)
    la.run(copied, executor="local")
    assert not orphan.exists()
    assert Path(copied.output, "damaged", orphan.relative_to(copied.output)).exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"short": 32}, r"a score 'gap' of other settings \(settings: there .*64.*here .*32"),
        (
            {"where": [{"column": "ds", "min": 0.1}]},
            r"score 'gap' of other settings \(where: there",
        ),
        ({"dtype": "float16"}, r"dtype: there 'float32', here 'float16'.*another name"),
        ({"model": "builtin"}, r"weights: there '.*', here '"),
    ],
)
def test_tables_of_other_settings_are_refused_in_one_line(copied, change, told):
    values = copied.model_dump(mode="json", exclude_none=True)
    values["scores"][1] |= change
    with pytest.raises(FolderError, match=told) as error:
        la.run(values, executor="local")
    assert "\n" not in str(error.value)
    before = data_files(copied.output)
    values["scores"][1] = {"name": "other", "kind": "measures"}
    values["scores"] = values["scores"][1:2]
    la.run(values, executor="local")  # under another name it stands beside them
    assert before.items() <= data_files(copied.output).items()


def test_windows_of_other_settings_are_told_before_the_tables_of_their_scores(copied):
    values = copied.model_dump(mode="json", exclude_none=True)
    values["window"]["tokens"] = WINDOW // 2
    with pytest.raises(FolderError, match=rf"holds scores of other settings .*there {WINDOW}"):
        la.run(values, executor="local")


def test_a_table_of_another_fingerprint_is_refused(copied):
    path = next(Path(copied.output, "scores/text").rglob("*.parquet"))
    other = Path(copied.output, "scores/deep", *path.parts[-2:])
    shutil.copy(path, other)
    with pytest.raises(FolderError, match=r"of another fingerprint, .* than the score 'deep' has"):
        la.run(copied, executor="local")


def test_what_fails_is_told_and_the_other_tables_are_there(copied, monkeypatch):
    shutil.rmtree(Path(copied.output, "scores/deep"))
    total = len(list(Path(copied.output, "labelled").rglob("*.parquet")))
    write = table_stage.write_table

    def broken(url, table, metadata):
        if table["data_id"][0].as_py().startswith("code"):
            raise OSError(f"{url}: the store is away")
        return write(url, table, metadata)

    monkeypatch.setattr(table_stage, "write_table", broken)
    with pytest.raises(
        RunError, match=rf"of {total} tables of score deep are missing: .*the store is away"
    ) as error:
        la.run(copied, executor="local")
    assert "\n" not in str(error.value)
    folders = {path.parent.name for path in Path(copied.output, "scores/deep").rglob("*.parquet")}
    assert folders == {"book"}
    monkeypatch.undo()
    assert written(copied)["deep"] > 0


def test_a_run_that_is_told_to_stop_writes_what_is_in_flight(scored, copied, monkeypatch):
    shutil.rmtree(Path(copied.output, "scores"))
    one, stop = table_stage.ScoreTables._one, Stop()

    def stopped(self, url, read):
        stop.asked.set()
        self.reports._monitor.ask("stop")
        return one(self, url, read)

    monkeypatch.setattr(table_stage.ScoreTables, "_one", stopped)
    job = Job(copied, "local")
    with pytest.raises(Interrupted):
        job._score(stop)
    assert len(list(Path(copied.output, "scores").rglob("*.parquet"))) == 1
    monkeypatch.undo()
    la.run(copied, executor="local")
    assert data_files(copied.output) == data_files(scored[0].output)


def test_a_model_with_another_tokenizer_is_given_its_own_ids(copied, checkpoint, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    vocabulary = json.loads((BUILTIN / "tokenizer.json").read_text())
    vocabulary["model"]["merges"] = vocabulary["model"]["merges"][:2000]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    own = {"name": "own", "kind": "loss_gap", "model": str(other), "short": SHORT}
    told = la.score_tables(copied.output, [own], executor="local")
    gaps = LossGapScorer.from_pretrained(str(other), tokens=4 * WINDOW, short=SHORT)
    tokenizer = load_tokenizer(str(other))
    for labelled, table in pairs(copied.output, "own")[::3]:
        ids = [tokenizer.encode(text.encode()).ids for text in labelled["content"].to_pylist()]
        assert {len(ids_l) for ids_l in ids} != {WINDOW}
        assert table["own"].to_pylist() == gaps.score(ids).mean.tolist()
        about = table.schema.field("own").metadata
        assert about == {b"ids": b"of the text, by the tokenizer of other"}
    assert told["own"].progress.scored == told["own"].progress.windows > 0
    same = pairs(copied.output, "gap")[0][1]
    assert same.schema.field("gap").metadata is None


def test_a_folder_without_a_run_is_scored_as_well(scored, tmp_path, checkpoint):
    shutil.copytree(Path(scored[0].output, "labelled"), tmp_path / "labelled")
    own = {"name": "gap", "kind": "loss_gap", "model": checkpoint, "short": SHORT}
    text = {"name": "text", "kind": "measures"}
    la.score_tables(str(tmp_path), [text, own], executor="local")
    for labelled, table in pairs(tmp_path, "gap")[:1]:
        assert table.schema.field("gap").metadata  # nobody knows whose ids those of the windows are
        assert table["gap"].null_count == 0 and len(table) == len(labelled)
    first = {k: v for k, v in data_files(scored[0].output).items() if k.startswith("scores/text")}
    assert first.items() <= data_files(tmp_path).items()
    with pytest.raises(ValueError, match="short 256: allowed: less than half"):
        la.score_tables(str(tmp_path), [{**own, "name": "x", "short": 256}], executor="local")


def test_footers_say_what_a_table_is(scored):
    settings, _ = scored
    record = json.loads(Path(settings.output, "_longattn/scores/deep.json").read_text())
    for path in Path(settings.output, "scores/deep").rglob("*.parquet"):
        with pq.ParquetFile(path) as parquet:
            told = file_metadata(parquet)
            rows = parquet.metadata.num_rows
        assert told["fingerprint"] == record["fingerprint"]
        assert (told["score"], told["rows"], told["scored"]) == ("deep", rows, rows)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ([{"name": "gap", "kind": "loss_gap", "model": "no/such/folder"}], "no such folder"),
        (
            [{"name": "a", "kind": "measures", "where": [{"column": "nothing", "min": 0}]}],
            r"where: no column 'nothing' of numbers.* there are compression_ratio, .*, ds, ",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(copied, change, told):
    with pytest.raises(ValueError, match=told) as error:
        la.score_tables(copied.output, change, executor="local")
    assert "\n" not in str(error.value)


def test_a_record_that_is_lost_is_written_again_and_no_table(copied):
    before = data_files(copied.output)
    record = Path(copied.output, "_longattn/scores/gap.json")
    told = record.read_bytes()
    record.unlink()
    assert written(copied) == {"text": 0, "gap": 0, "deep": 0}
    assert record.read_bytes() == told and data_files(copied.output) == before


def test_tables_of_a_version_without_heads_go_on_as_they_were_and_have_none(copied):
    """Nothing is refused or scored again but what is missing, and no file differs from those beside it."""
    earlier = ["deep", "deep_variance", "deep_layers", "deep_variance_layers"]
    path = Path(copied.output, "_longattn/scores/deep.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(sealed({**record, "columns": earlier})))
    files = sorted(Path(copied.output, "scores/deep").rglob("*.parquet"))
    for file in files:
        with pq.ParquetFile(file) as parquet:
            told, rows = file_metadata(parquet), parquet.read(["data_id", *earlier])
        write_table(str(file), pa.table({name: rows[name] for name in rows.column_names}), told)
    before = pq.ParquetFile(files[0]).read()
    files[0].unlink()
    assert written(copied)["deep"] == 1
    assert pq.ParquetFile(files[0]).read().equals(before)
    assert la.report(copied.output) and list(verify(copied.output)) == []
    with pytest.raises(
        ValueError, match="was computed before scores of heads were kept"
    ) as refused:
        la.select(copied.output, heads={"score": "deep", "layer": 0, "head": 1})
    assert "\n" not in str(refused.value)
    asked = copied.model_copy(update={"select": Select(heads={"score": "deep"})})
    with pytest.raises(ValueError, match="was computed before scores of heads were kept"):
        la.run(asked, executor="local")
