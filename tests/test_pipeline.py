import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from tokenizers import Tokenizer

import longattn as la
from longattn.ledger import LedgerError
from longattn.recurrence import Recurrence, far_recurrence
from longattn.storage import LABELLED, SELECTED
from tests.conftest import BUILTIN, WINDOW, config
from tests.s3 import CountingProxy, environment

pytestmark = pytest.mark.usefixtures("ray_cluster")


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
    assert sum(c["windows"] for c in summary.categories.values()) == len(table)
    assert summary.categories["book"]["too_short"] == 3


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
        told = summary.categories[category]
        assert told["kept"] == len(best) and told["kept_tokens"] == WINDOW * len(best)
        assert told["lds_threshold"] == lds[best].min()
        assert told["ds_mean"] == pytest.approx(rows["ds"].to_numpy().mean())
    assert chosen["data_id"].to_pylist() == sorted(wanted)
    stored = json.loads((Path(settings.output) / "_longattn/summary.json").read_text())
    assert stored == json.loads(json.dumps(summary.to_dict()))


def test_a_second_run_reads_and_scores_nothing(copied):
    settings, first = copied
    files = {p: p.stat().st_mtime_ns for p in Path(settings.output).glob("**/*.parquet")}
    again = la.run(settings)
    assert files == {p: p.stat().st_mtime_ns for p in Path(settings.output).glob("**/*.parquet")}
    assert again.stages["score"]["windows"] == again.stages["window"]["documents"] == 0
    assert again.categories == first.categories and again.fingerprint == first.fingerprint


def test_what_is_missing_is_scored_again_and_nothing_twice(copied):
    settings, _ = copied
    before = labelled(settings.output)
    files = sorted(Path(settings.output).glob("labelled/**/*.parquet"))
    lost = pq.read_metadata(files[0]).num_rows
    files[0].unlink()
    summary = la.run(settings)
    assert summary.stages["score"]["windows"] == lost < len(before)
    assert labelled(settings.output).equals(before)
    shutil.rmtree(
        Path(settings.output) / "_longattn/splits"
    )  # markers gone: read again, score nothing
    summary = la.run(settings)
    assert summary.stages["score"]["windows"] == 0
    assert labelled(settings.output).equals(before)


def test_a_folder_of_other_settings_is_refused_with_both_values(finished):
    settings, _ = finished
    other = settings.model_copy(
        update={"scorer": settings.scorer.model_copy(update={"min_distance": 7})}
    )
    with pytest.raises(LedgerError, match="min_distance: there 128, here 7"):
        la.run(other)


def test_s3_gives_what_local_disk_gives_and_two_actors_what_one_gives(
    finished, corpus, checkpoint, s3
):
    settings, _ = finished
    fs = s3fs.S3FileSystem(endpoint_url=s3, skip_instance_cache=True)
    fs.put(str(corpus) + "/", "bucket/corpus/", recursive=True)
    remote = config(
        "s3://bucket/corpus", "s3://bucket/out", checkpoint,
        workers={"window": [1, 1], "score": [2, 2]},
    )  # fmt: skip
    la.run(remote)
    for folder in ("labelled", "selected"):
        here = labelled(settings.output, folder).drop_columns(["source"])
        there = labelled("bucket/out", folder, fs)
        assert here.equals(there.drop_columns(["source"]))
        assert there["source"][0].as_py().startswith("s3://bucket/corpus/")
    assert la.run(remote).stages["score"]["windows"] == 0
    assert fs.exists("bucket/out/_longattn/summary.json")


def test_a_narrow_read_from_s3_fetches_that_column_alone(s3, tmp_path):
    from longattn.storage import list_files, open_parquet
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
    assert size > 200_000 and proxy.received < 60_000
    assert proxy.received - footer < 8192 + 4 * 700  # 256 doubles, and headers of 4 row groups


def test_bad_records_are_quarantined_with_their_reason_and_the_rest_goes_on(
    documents, tmp_path, checkpoint
):
    with (documents / "book" / "0.jsonl").open("ab") as file:
        file.write(b'not json\n{"other": 1}\n{"content": 5}\n{"content": "\xff"}\n')
    settings = config(documents, tmp_path / "out", checkpoint)
    summary = la.run(settings)
    reasons = {"not_json": 1, "no_text_column": 1, "not_a_string": 1, "bad_utf8": 1}
    assert summary.categories["book"]["quarantine"] == reasons
    rows = pq.read_table(tmp_path / "out/quarantine").to_pylist()
    assert {r["reason"] for r in rows} == set(reasons)
    raw = (documents / "book" / "0.jsonl").read_bytes()
    for row in rows:
        assert row["source"].endswith("book/0.jsonl") and row["category"] == "book"
        assert raw[row["position"] - 1 : row["position"]] == b"\n"


def test_too_many_bad_records_stop_the_run(documents, tmp_path, checkpoint):
    good = json.dumps({"content": "x"}) + "\n"
    (documents / "book" / "9.jsonl").write_text((good * 49 + "bad\n") * 40)
    settings = config(documents, tmp_path / "out", checkpoint)
    with pytest.raises(la.RunError, match=r"records are bad \(not_json"):
        la.run(settings)
    relaxed = settings.model_copy(update={"max_bad_fraction": 0.05})
    assert la.run(relaxed).categories["book"]["quarantine"]["not_json"] == 40


def test_documents_all_too_short_give_an_empty_result(documents, tmp_path, checkpoint):
    settings = config(documents, tmp_path / "out", checkpoint, window={"tokens": 50_000})
    summary = la.run(settings)
    assert {c["windows"] for c in summary.categories.values()} == {0}
    assert summary.categories["code"]["too_short"] == 6


def test_a_sample_is_the_same_for_any_cluster(finished, corpus, tmp_path, checkpoint):
    settings, _ = finished
    sources = [
        {"category": "book", "path": f"{corpus}/book", "sample": {"fraction": 0.3, "seed": 12}}
    ]
    la.run(config(corpus, tmp_path / "sample", checkpoint, sources=sources))
    part = labelled(tmp_path / "sample")["data_id"].to_pylist()
    everything = labelled(settings.output)
    book = [i for i in everything["data_id"].to_pylist() if i.startswith("book")]
    assert set(part) < set(book) and 0 < len(part) < 0.6 * len(book)


def test_several_distances_are_columns_of_one_run(finished, corpus, tmp_path, checkpoint):
    scorer = {"model": checkpoint, "min_distance": [128, 64]}
    settings = config(corpus, tmp_path / "out", checkpoint, scorer=scorer)
    la.run(settings)
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


def test_composition_with_a_filter_of_ones_own(finished, corpus, tmp_path, checkpoint):
    settings, _ = finished
    texts = la.read_documents([{"category": "book", "path": f"{corpus}/book"}])
    windows = la.window_documents(texts, model=checkpoint, window=WINDOW)
    odd = windows.filter(lambda row: row["window_index"] % 2 == 1)
    scored = la.score_windows(odd, model=checkpoint, workers=(1, 1))
    la.write_labelled(scored, str(tmp_path / "mine"))
    mine = labelled(tmp_path / "mine")
    whole = labelled(settings.output)
    keep = pa.compute.and_(
        pa.compute.equal(whole["category"].cast(pa.string()), "book"),
        pa.compute.equal(pa.compute.bit_wise_and(whole["window_index"], 1), 1),
    )
    assert mine.to_pylist() == whole.filter(keep).to_pylist()
    again = la.read_labelled(str(tmp_path / "mine"), columns=["data_id", "ds"])
    assert sorted(r["data_id"] for r in again.take_all()) == mine["data_id"].to_pylist()
    assert la.select(str(tmp_path / "mine"), keep={"count": 3})["book"].kept == 3
