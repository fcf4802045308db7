import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem
from tokenizers import Tokenizer

import longattn as la
from longattn.config import Sample
from longattn.errors import FolderError
from longattn.reports.verify import verify
from longattn.resume.markers import forget
from longattn.resume.shards import Shard, held
from longattn.storage.digests import json_checksum
from longattn.storage.files import list_files
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import LABELLED, SELECTED
from longattn.windows.ids import document_id, is_sampled
from longattn.windows.recurrence import Recurrence, far_recurrence
from tests.conftest import BUILTIN, WINDOW, _first_document, config
from tests.s3 import CountingProxy, environment

run = partial(la.run, executor="local")


def labelled(path, folder="labelled", filesystem=None):
    return pq.read_table(f"{path}/{folder}", filesystem=filesystem).sort_by("data_id")


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to break."""
    settings, summary = finished
    shutil.copytree(settings.output, tmp_path / "out")
    return settings.model_copy(update={"output": str(tmp_path / "out")}), summary


@pytest.fixture
def documents(corpus, tmp_path):
    """A copy of the corpus, to change."""
    shutil.copytree(corpus, tmp_path / "corpus")
    return tmp_path / "corpus"


def test_a_run_labels_every_window_of_every_document(finished, corpus, checkpoint):
    settings, summary = finished
    table = labelled(settings.output)
    assert table.schema.remove_metadata() == LABELLED
    truth = Tokenizer.from_file(str(BUILTIN / "tokenizer.json"))
    wanted = {}
    texts = [("code", t) for t in pq.read_table(corpus / "code")["content"].to_pylist()]
    for path in (corpus / "book").iterdir():
        texts += [("book", json.loads(line)["content"]) for line in path.open()]
    for category, text in texts:
        ids = truth.encode(text, add_special_tokens=False).ids
        for start, stop in la.sliding_windows(len(ids), WINDOW):
            wanted[(category, tuple(ids[start:stop]))] = (start, stop, text)
    got = {(r["category"], tuple(r["input_ids"])): r for r in table.to_pylist()}
    assert got.keys() == wanted.keys() and len(got) == len(table) > 60
    for key, (start, stop, text) in wanted.items():
        row = got[key]
        assert (row["token_start"], row["token_stop"]) == (start, stop)
        told = tuple(row[name] for name in Recurrence._fields)
        assert told == far_recurrence(np.array(row["input_ids"]), WINDOW // 4)
        assert row["content"] in text
        assert (
            truth.decode(row["input_ids"], skip_special_tokens=False).strip("\ufffd")
            == row["content"]
        )
    scorer = la.AttentionScorer.from_pretrained(checkpoint)
    rows = table.slice(5, 3).to_pylist()
    scores = scorer.score(np.array([r["input_ids"] for r in rows]))
    for i, row in enumerate(rows):
        assert row["ds_heads"] == scores.ds[i].float().tolist()
        assert row["ds"] == float(scores.ds[i].mean())
        assert row["variance"] == float(scores.variance[i].mean())
    assert sum(c.windows for c in summary.categories.values()) == len(table)
    assert summary.categories["book"].counts.too_short == 3


def test_the_selected_are_the_best_half_of_each_category(finished):
    settings, summary = finished
    table, chosen = labelled(settings.output), labelled(settings.output, "selected")
    assert chosen.schema.remove_metadata() == SELECTED
    wanted = []
    for category in ("book", "code"):
        rows = table.filter(pa.compute.equal(table["category"].cast(pa.string()), category))
        lds = la.long_distance_scores(rows["ds"].to_numpy(), rows["variance"].to_numpy())
        best = np.argsort(-lds, kind="stable")[: int(len(lds) / 2 + 0.5)]
        wanted += [rows["data_id"][int(i)].as_py() for i in best]
        told = summary.categories[category].to_dict()
        assert told["kept"] == len(best) and told["kept_tokens"] == WINDOW * len(best)
        assert told["lds_threshold"] == lds[best].min()
        assert told["ds_mean"] == pytest.approx(rows["ds"].to_numpy().mean())
    assert chosen["data_id"].to_pylist() == sorted(wanted)
    stored = json.loads((Path(settings.output) / "_longattn/summary.json").read_text())
    assert stored.pop("checksum") == json_checksum(stored)
    assert stored == json.loads(json.dumps(summary.to_dict()))


def test_a_second_run_reads_and_scores_nothing(copied):
    settings, first = copied
    files = {p: p.stat().st_mtime_ns for p in Path(settings.output).glob("**/*.parquet")}
    again = run(settings)
    assert files == {p: p.stat().st_mtime_ns for p in Path(settings.output).glob("**/*.parquet")}
    assert again.score.windows == again.window.documents == 0
    assert again.categories == first.categories and again.fingerprint == first.fingerprint


def test_what_is_missing_is_scored_again_and_nothing_twice(copied):
    settings, _ = copied
    before = labelled(settings.output)
    files = sorted(Path(settings.output).glob("labelled/**/*.parquet"))
    lost = pq.read_metadata(files[0]).num_rows
    files[0].unlink()
    summary = run(settings)
    assert summary.score.windows == lost < len(before)
    assert labelled(settings.output).equals(before)
    # Markers gone: read again, score nothing.
    shutil.rmtree(Path(settings.output) / "_longattn/splits")
    summary = run(settings)
    assert summary.score.windows == 0
    assert labelled(settings.output).equals(before)


def test_a_folder_of_other_settings_is_refused_with_both_values(finished):
    settings, _ = finished
    other = settings.model_copy(
        update={"scorer": settings.scorer.model_copy(update={"min_distance": 7})}
    )
    with pytest.raises(FolderError, match="min_distance: there 128, here 7"):
        run(other)


def test_a_narrow_read_from_s3_fetches_that_column_alone(s3, tmp_path):
    from longattn.storage.files import list_files
    from longattn.storage.tables import open_parquet
    from tests.labelled import labelled_table, write_labelled

    ids = [f"{i:032x}" for i in range(256)]
    table = labelled_table("a", ids, np.linspace(0, 1, 256), np.linspace(0, 1, 256), window=2048)
    write_labelled("s3://bucket/narrow", "a", table)
    ((url, size),) = list_files("s3://bucket/narrow", ".parquet").items()
    proxy = CountingProxy(s3)
    with environment(AWS_ENDPOINT_URL=proxy.endpoint), open_parquet(url) as parquet:
        footer = proxy.received
        column = parquet.read(columns=["ds"])["ds"].to_pylist()
    proxy.close()
    assert column == np.linspace(0, 1, 256).tolist()
    assert size > 200_000
    assert 1000 < footer < (64 << 10) + 8192  # Arrow reads the last 64 KiB at once
    assert proxy.received - footer < 8192 + 4 * 700  # 256 doubles, and headers of 4 row groups


def test_what_was_read_before_counts_for_too_many_bad_records(documents, tmp_path, checkpoint):
    good = json.dumps({"content": "x"}) + "\n"
    (documents / "book" / "9.jsonl").write_text((good * 49 + "bad\n") * 40)
    settings = config(documents, tmp_path / "out", checkpoint)
    relaxed = settings.model_copy(update={"max_bad_fraction": 0.05})
    assert run(relaxed).categories["book"].quarantine["not_json"] == 40
    with pytest.raises(la.RunError, match=r"records are bad \(not_json"):  # nothing is left to read
        run(settings)


def test_a_corpus_without_a_window_fails_and_says_why_of_each_category(
    documents, tmp_path, checkpoint
):
    settings = config(documents, tmp_path / "out", checkpoint, window={"tokens": 50_000})
    with pytest.raises(la.RunError) as failed:
        run(settings)
    assert str(failed.value) == (
        "no window in the whole corpus: book: no window, because each of its 15 documents is shorter "
        "than window.tokens 50000; code: no window, because each of its 6 documents is shorter than "
        "window.tokens 50000"
    )
    summary = json.loads((tmp_path / "out/_longattn/summary.json").read_text())
    assert summary["categories"]["code"]["too_short"] == 6


def test_a_category_without_a_window_is_warned_of(documents, tmp_path, checkpoint, caplog):
    (documents / "code" / "a.parquet").unlink()
    (documents / "code" / "b.jsonl").write_text("[1]\nnot json\n")
    settings = config(documents, tmp_path / "out", checkpoint, max_bad_fraction=1)
    with caplog.at_level("WARNING", "longattn"):
        run(settings)
    assert "code: no window, because none of its 2 records could be used" in caplog.text


def test_a_failure_in_a_stage_is_told_by_its_own_words(documents, tmp_path, checkpoint):
    settings = config(documents, tmp_path / "out", checkpoint)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/labelled").touch()  # the sink cannot make its folder
    with pytest.raises(la.RunError, match=r"^writing: NotADirectoryError: .*/out/labelled/book"):
        run(settings)


def test_an_output_among_its_sources_is_refused_before_anything(documents, tmp_path, checkpoint):
    settings = config(documents, documents / "code" / "out", checkpoint)
    with pytest.raises(la.ConfigError, match=r"code/out lies with the source .*/code: "):
        run(settings)
    assert not (documents / "code" / "out").exists()


def test_a_sample_is_the_same_for_any_cluster_and_may_grow(finished, corpus, tmp_path, checkpoint):
    settings, _ = finished
    ids = labelled(settings.output)["data_id"].to_pylist()

    def share(fraction):
        sample = {"fraction": fraction, "seed": 12}
        sources = [{"category": "book", "path": f"{corpus}/book", "sample": sample}]
        wanted = [i for i in ids if i.startswith("book") and is_sampled(i, Sample(**sample))]
        return config(corpus, tmp_path / "sample", checkpoint, sources=sources), wanted

    (some, few), (more, many) = share(0.3), share(0.7)
    assert 0 < len(few) < len(many) < len(ids)
    run(some)
    assert labelled(some.output)["data_id"].to_pylist() == few
    summary = run(more)
    assert labelled(some.output)["data_id"].to_pylist() == many
    assert summary.score.windows == len(many) - len(few)
    with pytest.raises(FolderError, match="only a larger fraction of the same seed may follow"):
        run(some)


def test_records_over_a_size_cap_are_read_when_it_is_raised(
    finished, documents, checkpoint, tmp_path
):
    text = _first_document("book")[:9000]
    (documents / "book" / "large.jsonl").write_text(json.dumps({"content": text}) + "\n")
    books = {"sources": [{"category": "book", "path": f"{documents}/book"}], "max_bad_fraction": 1}
    capped = config(documents, tmp_path / "out", checkpoint, **books, max_record_bytes=8500)
    before = run(capped).categories["book"]
    assert before.quarantine["over_size_cap"] >= 1
    assert run(capped).score.windows == 0
    free = config(documents, tmp_path / "out", checkpoint, **books)
    summary = run(free)
    assert "over_size_cap" not in summary.categories["book"].quarantine
    new = summary.categories["book"].windows - before.windows
    assert 0 < new == summary.score.windows  # nothing else is scored again
    tokens = len(Tokenizer.from_file(str(BUILTIN / "tokenizer.json")).encode(text).ids)
    windows = range(len(la.sliding_windows(tokens, WINDOW)))
    large = [f"book-{document_id(text.encode())}-{index}" for index in windows]
    before = labelled(finished[0].output)["data_id"].to_pylist()
    wanted = sorted([*large, *(name for name in before if name.startswith("book-"))])
    assert labelled(free.output)["data_id"].to_pylist() == wanted
    assert list(verify(free.output)) == []


def test_files_gone_grown_and_replaced_since_are_told_and_their_windows_stay(
    copied, documents, caplog
):
    settings, _ = copied
    before = labelled(settings.output)
    gone, grown, replaced = (documents / "book" / f"{part}.jsonl" for part in range(3))
    sources = [{"category": "book", "path": f"{documents}/book"}]
    moved = settings.model_dump(mode="json") | {"sources": sources}
    run(la.Config.parse(moved))  # the same texts elsewhere: read, and not scored again
    assert labelled(settings.output).equals(before)
    text = _first_document("python")
    gone.unlink()
    with grown.open("a") as file:
        file.write(json.dumps({"content": text[:7000]}) + "\n")
    replaced.write_text(json.dumps({"content": text[7000:14_000]}) + "\n")
    caplog.clear()
    with caplog.at_level("WARNING", "longattn"):
        summary = run(la.Config.parse(moved))
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert f"{gone} is gone from the listing" in told
    assert f"{grown} has changed" in told and f"{replaced} has changed" in told
    after = labelled(settings.output)
    there = pa.compute.is_in(after["data_id"], before["data_id"])
    assert after.filter(there).equals(before)
    new = after.filter(pa.compute.invert(there))
    assert set(new["source"].to_pylist()) == {str(grown), str(replaced)}
    assert summary.score.windows == len(new) > 2
    assert list(verify(settings.output)) == []


def test_files_as_the_world_has_them(tmp_path, checkpoint):
    text = _first_document("book")
    documents = [text[p : p + 7000] for p in range(0, 35_000, 7000)]
    lines = [json.dumps({"content": document}).encode() for document in documents]
    odd = [
        b'{"content": 12}',
        b'{"content": null}',
        b'{"other": 1}',
        b'{"content": "\\ud800"}',
        b"\0\0",
        b"",
    ]
    parts = {
        "two words/é 日本/a b.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(lines[:2]) + b"\r\n",
        "two words/again.jsonl": b"\n".join([lines[0], lines[2], lines[2]]),
        "deep/er/still/x.jsonl": b"\n".join([*odd, lines[3], *odd, lines[3], lines[4]]),
        "deep/tiny.jsonl": b'{"content": "tiny"}\n' * 100_000,
        "deep/empty.jsonl": b"",
    }
    for name, data in parts.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    sources = [{"category": "book", "path": f"{tmp_path}/corpus/**/*.jsonl"}]
    settings = config("", tmp_path / "out", checkpoint, sources=sources)
    told = run(settings).categories["book"].to_dict()
    assert told["records"] == 100_000 + 2 + 3 + 13
    assert told["too_short"] == 100_000 and told["duplicates"] == 3
    reasons = {"not_a_string": 4, "no_text_column": 2, "bad_utf8": 2, "not_json": 2}
    assert told["quarantine"] == reasons
    rows = pq.read_table(tmp_path / "out/quarantine").to_pylist()
    assert Counter(row["reason"] for row in rows) == reasons
    assert {(row["source"], row["category"]) for row in rows} == {
        (str(tmp_path / "corpus/deep/er/still/x.jsonl"), "book")
    }
    raw = parts["deep/er/still/x.jsonl"]
    for row in rows:
        assert any(raw[row["position"] :].startswith(bad) for bad in odd[:-1])
    table = labelled(tmp_path / "out")
    assert set(table["document_id"].to_pylist()) == {document_id(d.encode()) for d in documents}
    assert len(set(table["data_id"].to_pylist())) == len(table)
    assert {Path(p).name for p in table["source"].to_pylist()} >= {"a b.jsonl", "x.jsonl"}
    assert list(verify(settings.output)) == []


def test_several_distances_are_columns_of_one_run(finished, corpus, tmp_path, checkpoint):
    scorer = {"model": checkpoint, "min_distance": [128, 64]}
    settings = config(corpus, tmp_path / "out", checkpoint, scorer=scorer)
    run(settings)
    one, two = labelled(finished[0].output), labelled(tmp_path / "out")
    assert two.column_names[-2:] == ["ds_k64", "variance_k64"]
    np.testing.assert_allclose(two["ds"].to_numpy(), one["ds"].to_numpy(), rtol=1e-6)
    ids = np.array(two.slice(0, 4)["input_ids"].to_pylist())
    alone = la.AttentionScorer.from_pretrained(checkpoint).score(ids, 64)
    np.testing.assert_allclose(two["ds_k64"].to_numpy()[:4], alone.ds.mean(1), rtol=1e-6)
    np.testing.assert_allclose(
        two["variance_k64"].to_numpy()[:4], alone.variance.mean(1), rtol=1e-6
    )
    assert labelled(tmp_path / "out", "selected").schema.names == SELECTED.names


def test_a_folder_without_a_window_is_taken_over_by_a_run_of_other_settings(
    documents, tmp_path, checkpoint, caplog
):
    (documents / "book" / "9.jsonl").write_text("not json\n")
    sources = [{"category": "book", "path": f"{documents}/book", "sample": {"fraction": 0.5}}]
    settings = {"max_bad_fraction": 1, "sources": sources}
    too_long = config(
        documents, tmp_path / "out", checkpoint, window={"tokens": 50_000}, **settings
    )
    for _ in range(2):  # the same settings go on where they were
        with pytest.raises(la.RunError, match="no window in the whole corpus"):
            run(too_long)
    assert "takes it over" not in caplog.text
    (quarantined,) = (tmp_path / "out/quarantine").iterdir()
    other = [{**sources[0], "sample": {"fraction": 0.4, "seed": 7}}]
    fitting = config(documents, tmp_path / "out", checkpoint, max_bad_fraction=1, sources=other)
    with caplog.at_level("WARNING", "longattn"):
        summary = run(fitting)
    (told,) = [line for line in caplog.messages if "takes it over" in line]
    assert "window: there 50000, here 512" in told
    assert [p.name for p in (tmp_path / "out/quarantine").iterdir()] == [quarantined.name]
    assert summary.categories["book"].windows == summary.score.windows > 0
    assert summary.categories["book"].to_dict()["records"] == 16
    assert list(verify(str(tmp_path / "out"))) == []
    with pytest.raises(FolderError, match="choose another output"):  # now there is something
        run(too_long)


def test_an_empty_folder_stays_as_it_is_while_another_share_is_at_work(
    documents, tmp_path, checkpoint
):
    settings = config(documents, tmp_path / "out", checkpoint, window={"tokens": 50_000})
    with pytest.raises(la.RunError, match="no window"):
        run(settings)
    other = config(documents, tmp_path / "out", checkpoint)
    with held(str(tmp_path / "out"), shard=Shard(1, 2)), pytest.raises(FolderError, match="50000"):
        run(other, shard="2/2")
    summary = run(other, shard="1/1")
    assert sum(category.windows for category in summary.categories.values()) > 60


def test_an_empty_folder_is_taken_over_where_only_its_sample_differs(
    documents, tmp_path, checkpoint
):
    sources = [{"category": "code", "path": f"{documents}/code", "sample": {"fraction": 1e-9}}]
    settings = config(documents, tmp_path / "out", checkpoint, sources=sources)
    with pytest.raises(la.RunError, match="its sample takes none"):
        run(settings)
    other = [{**sources[0], "sample": {"fraction": 0.5, "seed": 3}}]
    assert run(config(documents, tmp_path / "out", checkpoint, sources=other)).score.windows > 0


def test_a_run_into_an_object_store_goes_on_where_it_was_left(documents, checkpoint, s3, tmp_path):
    """S3 says of an object that is not there that it was removed: who asks until there is none asks for ever."""
    for part in (documents / "book").iterdir():
        part.write_text(f"no record\n{part.read_text()}")
    output = f"s3://bucket/{tmp_path.name}/out"
    sources = [{"category": "book", "path": f"{documents}/book/*.jsonl"}]
    settings = config(documents, output, checkpoint, sources=sources, max_bad_fraction=1)
    run(settings, select_after=False)
    folder, fs = OutputFolder(output), S3FileSystem()
    before = list_files(output, ".parquet")
    quarantined = sorted(list_files(folder.quarantine, ".parquet"))
    assert len(quarantined) == 3 and all(url.endswith("-0.parquet") for url in quarantined)
    for number in (1, 2):  # of a try that came further
        fs.copy(quarantined[0], quarantined[0].replace("-0.", f"-{number}."))
    split = quarantined[0].rpartition("/")[2].removesuffix("-0.parquet")
    forget(output, [split])  # as if it had been killed there
    again = run(settings)
    assert {*list_files(output, ".parquet")} - {*list_files(folder.selected, ".parquet")} == {
        *before
    }
    assert again.categories["book"].quarantine == {"not_json": 3} and list(verify(output)) == []
