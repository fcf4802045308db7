"""A run that goes on, in this process: files that come, grow, change and go on a real S3 server."""

import json
import signal
import threading
import time
from contextlib import contextmanager

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

import longattn as la
from longattn.errors import Interrupted, RunError
from longattn.pipeline import feed, in_process, stopping
from longattn.pipeline.follow import Follow
from longattn.pipeline.job import Job
from longattn.pipeline.score_actor import ScoreWindows
from longattn.pipeline.stopping import Stop
from longattn.pipeline.streamed import TaskQueue, packed, unpacked
from longattn.reports.verify import verify
from longattn.resume.shards import held
from longattn.storage.files import read_json
from tests.conftest import WINDOW

SECONDS = 30  # that a test waits for something at most


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(feed, "TICK", 0.1)
    monkeypatch.setattr(stopping, "POLL", 0.1)


@pytest.fixture(scope="module")
def texts(corpus):
    lines = (corpus / "book").glob("*.jsonl")
    found = [json.loads(line)["content"] for file in sorted(lines) for line in file.open()]
    return [text for text in found if len(text) > 100]


@pytest.fixture
def bucket(s3, tmp_path):
    """Puts files into a folder of its own; `.url` names it."""
    return Bucket(s3, tmp_path.name.replace("_", "-"))


class Bucket:
    def __init__(self, endpoint, folder):
        self.client, self.folder = boto3.client("s3", endpoint_url=endpoint), folder
        self.files = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
        self.url = f"s3://bucket/{folder}"

    def put(self, name, texts):
        body = "".join(json.dumps({"content": text}) + "\n" for text in texts).encode()
        self.client.put_object(Bucket="bucket", Key=f"{self.folder}/{name}", Body=body)

    def delete(self, name):
        self.client.delete_object(Bucket="bucket", Key=f"{self.folder}/{name}")

    def read(self, output, folder="labelled"):
        place = f"bucket/{output}/{folder}"
        self.files.invalidate_cache()
        if not self.files.exists(place):
            return pa.table({"data_id": pa.array([], pa.string())})
        return pq.read_table(place, filesystem=self.files).sort_by("data_id")


def settings(bucket, output, checkpoint, **select):
    values = {
        "sources": [{"category": "book", "path": f"{bucket.url}/"}],
        "output": f"s3://bucket/{output}",
        "window": {"tokens": WINDOW},
        "scorer": {"model": checkpoint},
        "select": {"keep": {"fraction": 0.5}, **select},
    }
    return la.Config.parse(values)


@contextmanager
def following(config, *, idle=600.0, interval=0.3):
    """A run that goes on in a thread; stopped, as by SIGTERM, at the end of the block."""
    stop, raised = Stop(), []

    def work():
        try:
            job = Job(config, "local")
            job.check()
            with held(config.output, stop.end) as hold:
                Follow(job, interval, idle).run(stop, hold)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield raised
    finally:
        stop.end(Interrupted(signal.SIGTERM))
        thread.join(SECONDS)
    assert not thread.is_alive()
    if not isinstance(raised[0], Interrupted):
        raise raised[0]
    assert raised[0].exit_status == 75


def wait_until(true):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def ids(table):
    return table["data_id"].to_pylist()


def plain(bucket, output, checkpoint, **select):
    """A run over the files that are there, into a folder of its own."""
    config = settings(bucket, output, checkpoint, **select)
    la.run(config, executor="local")
    return bucket.read(output), bucket.read(output, "selected")


def test_what_comes_is_scored_once_and_selected_as_a_run_over_the_final_files_does(
    bucket, texts, checkpoint, tmp_path
):
    out, whole = f"{tmp_path.name}-out", f"{tmp_path.name}-whole"
    config = settings(bucket, out, checkpoint, every="1 windows")
    record = f"{config.output}/_longattn/selection.json"
    bucket.put("a.jsonl", texts[:3])
    kept = []
    with following(config):
        for n in range(3):
            if n:
                bucket.put(f"{n}.jsonl", texts[2 + n : 5 + n])  # the first of them is not new
            wait_until(lambda: len(bucket.read(out)) > sum(kept))
            kept.append(len(bucket.read(out)) - sum(kept))
            wait_until(lambda: (read_json(record) or {}).get("files"))
            named = read_json(record)["files"]
            selected = pq.read_table([f.removeprefix("s3://") for f in named], filesystem=bucket.files)
            assert 0 < len(selected) <= sum(kept)
    labelled, selected = plain(bucket, whole, checkpoint)
    assert bucket.read(out).equals(labelled)
    again = la.run(config, executor="local")
    assert again.score.windows == 0
    assert ids(bucket.read(out, "selected")) == ids(selected)
    assert list(verify(config.output)) == []


def test_a_file_that_grows_is_taken_once_it_stands_still(bucket, texts, checkpoint, tmp_path):
    out = f"{tmp_path.name}-out"
    bucket.put("a.jsonl", texts[:1])
    with following(settings(bucket, out, checkpoint), interval=0.6):
        for n in range(1, 13):  # another file at each look
            bucket.put("b.jsonl", [texts[1] + "x" * n])
            time.sleep(0.15)
        bucket.put("b.jsonl", texts[1:3])
        wait_until(lambda: len(ids(bucket.read(out))) >= 2)
        labelled, _ = plain(bucket, f"{tmp_path.name}-whole", checkpoint)
        wait_until(lambda: len(bucket.read(out)) >= len(labelled))
    assert ids(bucket.read(out)) == ids(labelled)


def test_a_file_that_is_replaced_or_removed_is_reported_and_what_was_labelled_of_it_stays(
    bucket, texts, checkpoint, tmp_path, caplog
):
    caplog.set_level("INFO", "longattn")
    out = f"{tmp_path.name}-out"
    config = settings(bucket, out, checkpoint)
    bucket.put("a.jsonl", texts[:2])
    bucket.put("b.jsonl", texts[2:3])
    first, _ = plain(bucket, f"{tmp_path.name}-first", checkpoint)
    with following(config):
        wait_until(lambda: len(bucket.read(out)) == len(first))
        bucket.put("a.jsonl", texts[1:2] + texts[4:6])  # one of its documents is the old one's
        bucket.delete("b.jsonl")
        wait_until(lambda: "/a.jsonl has changed since it was taken" in caplog.text)
        wait_until(lambda: "/b.jsonl is gone from the listing" in caplog.text)
        wait_until(lambda: len(bucket.read(out)) > len(first))
        final, _ = plain(bucket, f"{tmp_path.name}-final", checkpoint)
        wait_until(lambda: len(bucket.read(out)) >= len({*ids(first), *ids(final)}))
    assert ids(bucket.read(out)) == sorted({*ids(first), *ids(final)})
    assert la.run(config, executor="local").score.windows == 0
    assert list(verify(config.output)) == []


def test_scorers_stay_between_arrivals_until_the_run_is_idle_and_it_selects_then(
    bucket, texts, checkpoint, tmp_path, monkeypatch
):
    out, made = f"{tmp_path.name}-out", []

    class Counted(ScoreWindows):
        def __init__(self, *arguments):
            made.append(time.monotonic())
            super().__init__(*arguments)

    monkeypatch.setattr(in_process, "ScoreWindows", Counted)
    config = settings(bucket, out, checkpoint)
    summary = f"{config.output}/_longattn/summary.json"
    sizes = [0]

    def arrives(name, *which):
        bucket.put(name, [texts[n] for n in which])
        wait_until(lambda: len(bucket.read(out)) > sizes[-1])
        sizes.append(len(bucket.read(out)))

    with following(config, idle=2.5):
        arrives("a.jsonl", 0)
        arrives("b.jsonl", 1)
        assert len(made) == 1 and read_json(summary) is None
        wait_until(lambda: read_json(summary) is not None)  # a time without files
        assert read_json(summary)["splits"]["all"] == 2
        arrives("c.jsonl", 2)
        assert len(made) == 2
        bucket.delete("c.jsonl")
        bucket.delete("b.jsonl")
        bucket.delete("a.jsonl")  # no file at all is no reason to end
        time.sleep(1)


def test_what_cannot_be_read_is_tried_again_and_then_ends_the_run(
    bucket, texts, checkpoint, tmp_path, monkeypatch, caplog
):
    from longattn.pipeline import window_actor

    read = window_actor.read_split

    def broken(split, **settings):
        if split.path.endswith("b.jsonl"):
            raise OSError("the store is away")
        return read(split, **settings)

    def reading(split, **settings):
        yield from broken(split, **settings)

    monkeypatch.setattr(window_actor, "read_split", reading)
    bucket.put("a.jsonl", texts[:1])
    bucket.put("b.jsonl", texts[1:2])
    config = settings(bucket, f"{tmp_path.name}-out", checkpoint)
    with pytest.raises(RunError, match=r"1 splits are unfinished.*store is away.*tried 3 times"):
        with following(config, idle=0.2, interval=0.2) as raised:
            wait_until(lambda: raised)
    assert caplog.text.count("they are tried again") == 2
    assert len(bucket.read(f"{tmp_path.name}-out")) > 0
    monkeypatch.undo()
    assert la.run(config, executor="local").splits["read"] == 1


def test_a_table_goes_through_a_row_and_back():
    table = pa.table({"ids": pa.array([[1, 2], [3]], pa.list_(pa.int32())), "text": ["a", "ü"]})
    row = packed(table)
    assert len(row) == 1 and unpacked(row).equals(table)
    assert unpacked(pa.concat_tables([row, row])).equals(pa.concat_tables([table, table]))
    assert len(unpacked(pa.table({}))) == 0


def test_a_queue_gives_the_same_tasks_to_whoever_begins_again():
    queue = TaskQueue()
    queue.put("a")
    assert queue.after(0) == (["a"], False) and queue.after(1) == ([], False)
    queue.put("b")
    queue.close()
    assert queue.after(0) == (["a", "b"], True) and queue.after(2) == ([], True)
