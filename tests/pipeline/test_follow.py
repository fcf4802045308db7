"""A run that goes on, in this process: files that come, grow, change and go on a real S3 server."""

import json
import signal
import threading
import time
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.corpus.reading import read_split
from longattn.errors import Interrupted, RunError
from longattn.pipeline import feed, in_process, stopping, window_actor
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
    return [text[:3500] for text in found if len(text) > 100]  # of a window or two


@pytest.fixture
def bucket(s3, tmp_path):
    """A folder of its own on the server, to put files into; `.url` names it."""
    return Bucket(s3, tmp_path.name.replace("_", "-"))


class Bucket:
    def __init__(self, endpoint, folder):
        self.client, self.folder = boto3.client("s3", endpoint_url=endpoint), folder
        self.url = f"s3://bucket/{folder}"

    def put(self, name, texts):
        body = "".join(json.dumps({"content": text}) + "\n" for text in texts).encode()
        self.client.put_object(Bucket="bucket", Key=f"{self.folder}/{name}", Body=body)

    def delete(self, name):
        self.client.delete_object(Bucket="bucket", Key=f"{self.folder}/{name}")


def settings(bucket, output, checkpoint, **select):
    values = {
        "sources": [{"category": "book", "path": f"{bucket.url}/"}],
        "output": str(output),
        "window": {"tokens": WINDOW},
        "scorer": {"model": checkpoint},
        "select": {"keep": {"fraction": 0.5}, **select},
    }
    return la.Config.parse(values)


def read(output, folder="labelled"):
    files = sorted(Path(output, folder).rglob("*.parquet"))
    if not files:
        return pa.table({"data_id": pa.array([], pa.string())})
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("data_id")


def plain(bucket, output, checkpoint):
    """What a run over the files that are there labels and selects, into a folder of its own."""
    la.run(settings(bucket, output, checkpoint), executor="local")
    return read(output), read(output, "selected")


class Following:
    """A run that goes on in a thread; stopped, as by SIGTERM, at the end of the block."""

    def __init__(self, config, *, idle=600.0, interval=0.3):
        self.config, self.stop, self.error = config, Stop(), None
        self.follow = Follow(Job(config, "local"), interval, idle)
        self.thread = threading.Thread(target=self._work)

    def _work(self):
        try:
            with held(self.config.output, self.stop.end) as hold:
                self.follow.run(self.stop, hold)
        except Exception as error:  # noqa: BLE001 - raised at the end of the block
            self.error = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.end(Interrupted(signal.SIGTERM))
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        if not isinstance(self.error, Interrupted):
            raise self.error
        assert self.error.exit_status == 75


def wait_until(true):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def ids(table):
    return table["data_id"].to_pylist()


def test_what_comes_is_scored_once_and_selected_as_a_run_over_the_final_files_does(
    bucket, texts, checkpoint, tmp_path
):
    out = tmp_path / "out"
    config = settings(bucket, out, checkpoint, every="1 windows")
    record, seen = f"{out}/_longattn/selection.json", [0]
    bucket.put("0.jsonl", texts[:2])
    with Following(config) as run:
        for n in range(3):
            if n:
                bucket.put(f"{n}.jsonl", texts[n : n + 2])  # the first of them is not new
            wait_until(lambda: len(read(out)) > seen[-1] and not run.follow.feed.lag.unscored)
            seen.append(len(read(out)))
            wait_until(lambda: _selected_of(record) == seen[-1])
            named = read_json(record)["files"]  # all of it is there before the record says so
            kept = sum(pq.read_metadata(file).num_rows for file in named)
            assert 0 < kept == sum(c["kept"] for c in read_json(record)["categories"].values())
        assert str(run.follow.feed.lag).endswith("ago, all scored")
    labelled, selected = plain(bucket, tmp_path / "whole", checkpoint)
    assert read(out).equals(labelled)
    assert la.run(config, executor="local").score.windows == 0
    assert ids(read(out, "selected")) == ids(selected)
    assert list(verify(config.output)) == []


def _selected_of(record):
    """Windows that the last selection counts."""
    told = read_json(record) or {"categories": {}}
    return sum(category["windows"] for category in told["categories"].values())


def test_a_file_that_grows_is_taken_once_it_stands_still(bucket, texts, checkpoint, tmp_path):
    out = tmp_path / "out"
    bucket.put("a.jsonl", texts[:1])
    with Following(settings(bucket, out, checkpoint)) as run:
        looks = run.follow.feed.watch
        for n in range(1, 6):  # another file at each look
            bucket.put("b.jsonl", [f"{texts[1]} {n}"])
            now = looks.looks
            wait_until(lambda now=now: looks.looks > now)
        bucket.put("b.jsonl", texts[1:3])
        labelled, _ = plain(bucket, tmp_path / "whole", checkpoint)
        wait_until(lambda: len(read(out)) >= len(labelled))
    assert ids(read(out)) == ids(labelled)


def test_a_file_that_is_replaced_or_removed_is_reported_and_what_was_labelled_of_it_stays(
    bucket, texts, checkpoint, tmp_path, caplog
):
    caplog.set_level("INFO", "longattn")
    out = tmp_path / "out"
    config = settings(bucket, out, checkpoint)
    bucket.put("a.jsonl", texts[:2])
    bucket.put("b.jsonl", texts[2:3])
    first, _ = plain(bucket, tmp_path / "first", checkpoint)
    with Following(config):
        wait_until(lambda: len(read(out)) == len(first))
        bucket.put("a.jsonl", texts[1:2] + texts[4:5])  # one of its documents is the old one's
        bucket.delete("b.jsonl")
        wait_until(lambda: "/a.jsonl has changed since it was taken" in caplog.text)
        wait_until(lambda: "/b.jsonl is gone from the listing" in caplog.text)
        final, _ = plain(bucket, tmp_path / "final", checkpoint)
        wait_until(lambda: len(read(out)) >= len({*ids(first), *ids(final)}))
    assert ids(read(out)) == sorted({*ids(first), *ids(final)})
    assert la.run(config, executor="local").score.windows == 0
    assert list(verify(config.output)) == []


def test_scorers_stay_between_arrivals_until_the_run_is_idle_and_it_selects_then(
    bucket, texts, checkpoint, tmp_path, monkeypatch, caplog
):
    out, made = tmp_path / "out", []

    class Counted(ScoreWindows):
        def __init__(self, *arguments):
            made.append(time.monotonic())
            super().__init__(*arguments)

    monkeypatch.setattr(in_process, "ScoreWindows", Counted)
    summary, sizes = f"{out}/_longattn/summary.json", [0]

    def arrives(name, which):
        bucket.put(name, [texts[which]])
        wait_until(lambda: len(read(out)) > sizes[-1])
        sizes.append(len(read(out)))

    bucket.put("a.jsonl", texts[:1])
    with Following(settings(bucket, out, checkpoint)) as run:
        arrives("a.jsonl", 0)
        arrives("b.jsonl", 1)
        assert len(made) == 1 and read_json(summary) is None
        run.follow.feed.idle = 0.0
        wait_until(lambda: read_json(summary) is not None)
        assert read_json(summary)["splits"]["all"] == 2
        arrives("c.jsonl", 2)
        assert len(made) == 2
        for name in "abc":
            bucket.delete(f"{name}.jsonl")
        wait_until(lambda: "no file is there" in caplog.text)  # which is no reason to end
        arrives("d.jsonl", 3)


def test_further_scores_are_computed_before_each_selection(bucket, texts, checkpoint, tmp_path):
    out, record = tmp_path / "out", f"{tmp_path}/out/_longattn/selection.json"
    of = {"every": "1 windows", "rank_by": "compression_ratio"}
    values = settings(bucket, out, checkpoint, **of).model_dump(exclude_unset=True)
    config = la.Config.parse({**values, "scores": [{"name": "text", "kind": "measures"}]})
    seen = [0]
    bucket.put("0.jsonl", texts[:1])
    with Following(config):
        for n in range(2):
            if n:
                bucket.put("1.jsonl", texts[1:2])
            wait_until(lambda: len(read(out)) > seen[-1] and _selected_of(record) == len(read(out)))
            seen.append(len(read(out)))
            assert ids(read(out, "scores/text")) == ids(read(out))


def test_what_cannot_be_read_is_tried_again_and_then_ends_the_run(
    bucket, texts, checkpoint, tmp_path, monkeypatch, caplog
):
    def reading(split, **settings):
        if split.path.endswith("b.jsonl"):
            raise OSError("the store is away")
        yield from read_split(split, **settings)

    monkeypatch.setattr(window_actor, "read_split", reading)
    bucket.put("a.jsonl", texts[:1])
    bucket.put("b.jsonl", texts[1:2])
    config = settings(bucket, tmp_path / "out", checkpoint)
    with (
        pytest.raises(RunError, match=r"1 split is unfinished.*store is away.*tried 3 times"),
        Following(config, idle=0.2, interval=0.2) as run,
    ):
        wait_until(lambda: run.error)
    assert caplog.text.count("they are tried again") == 2
    assert len(read(config.output)) > 0
    monkeypatch.undo()
    assert la.run(config, executor="local").splits["read"] == 1


def test_a_table_goes_through_a_row_and_back():
    table = pa.table({"ids": pa.array([[1, 2], [3]], pa.list_(pa.int32())), "text": ["a", "ü"]})
    row = packed(table)
    assert len(row) == 1 and unpacked(row).equals(table)
    two = pa.concat_tables([row, row])
    assert unpacked(two).equals(pa.concat_tables([table, table]))
    assert unpacked(two.combine_chunks().slice(1)).equals(table)
    assert len(unpacked(pa.table({}))) == 0


def test_a_queue_gives_the_same_tasks_to_whoever_begins_again():
    queue = TaskQueue()
    queue.put("a")
    assert queue.after(0) == (["a"], False) and queue.after(1) == ([], False)
    queue.put("b")
    queue.close()
    assert queue.after(0) == (["a", "b"], True) and queue.after(2) == ([], True)
