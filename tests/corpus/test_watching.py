"""Which files of watched sources are taken, and when: on local disk, by a clock of the test's own."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longattn.config import Source
from longattn.corpus.sources import list_sources
from longattn.corpus.watching import Arrivals, SourceWatch


class Clock:
    now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def write(path, text):
    path.write_text("".join(json.dumps({"content": line}) + "\n" for line in text))
    os.utime(path, ns=(0, hash(text) % 10**9))  # two writes within a tick of the clock differ


@pytest.fixture
def watch(tmp_path):
    source = Source(category="book", path=str(tmp_path))
    return SourceWatch([source], clock=Clock())


def names(splits):
    return [split.path.rpartition("/")[2] for split in splits]


def test_a_file_is_taken_once_two_looks_found_it_the_same(watch, tmp_path):
    write(tmp_path / "a.jsonl", "1")
    assert watch.look() == Arrivals()
    write(tmp_path / "a.jsonl", "12")
    assert watch.look().taken == [] and watch.waiting_since == 2.0
    assert names(watch.look().taken) == ["a.jsonl"]
    assert watch.look() == Arrivals()
    assert watch.newest == 2.0 and watch.waiting_since is None and watch.looks == 4
    key = ("book", str(tmp_path / "a.jsonl"), "content")
    assert (watch.since(key, 9.0), watch.since(("code", *key[1:]), 9.0)) == (2.0, 9.0)
    write(tmp_path / "b.jsonl", "3")
    watch.look()
    assert (watch.newest, watch.waiting_since) == (5.0, 5.0)
    assert watch.paths == [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    watch.look()
    assert watch.splits == list_sources(watch.sources).splits


def test_a_file_that_changes_is_taken_again_and_one_that_goes_is_reported(watch, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", name)
    watch.look(), watch.look()
    write(tmp_path / "a.jsonl", "other")
    (tmp_path / "b.jsonl").unlink()
    came = watch.look()
    assert came == Arrivals([], [str(tmp_path / "a.jsonl")], [str(tmp_path / "b.jsonl")])
    assert watch.splits == []
    assert names(watch.look().taken) == ["a.jsonl"]
    assert watch.splits == list_sources(watch.sources).splits


def test_a_source_that_is_empty_or_fails_is_said_once_and_asked_again(watch, tmp_path, caplog):
    caplog.set_level("INFO", "longattn")
    write(tmp_path / "a.jsonl", "1")
    watch.look(), watch.look()
    (tmp_path / "a.jsonl").unlink()
    assert watch.look().gone == [str(tmp_path / "a.jsonl")]
    watch.look()
    assert caplog.text.count("no file is there; it is listed again") == 1
    write(tmp_path / "b.jsonl", "2")
    watch.look()
    assert caplog.text.count("there again") == 1
    assert names(watch.look().taken) == ["b.jsonl"]


def test_a_listing_that_failed_is_no_second_look(tmp_path, monkeypatch, caplog):
    write(tmp_path / "a.jsonl", "1")
    watch = SourceWatch([Source(category="book", path=str(tmp_path))], clock=Clock())
    watch.look()
    with monkeypatch.context() as patch:
        patch.setattr("longattn.corpus.watching.list_files", _away)
        assert watch.look() == Arrivals() and watch.look() == Arrivals()
    assert caplog.text.count("the store is away") == 1
    assert names(watch.look().taken) == ["a.jsonl"]


def _away(*_, **__):
    raise OSError("the store is away")


def test_one_source_that_fails_keeps_no_other_from_being_read(tmp_path, caplog):
    (tmp_path / "x.bin").write_text("no format of ours")
    (tmp_path / "good").mkdir()
    write(tmp_path / "good" / "a.jsonl", "1")
    sources = [
        Source(category="a", path=str(tmp_path / "*.bin")),
        Source(category="b", path=str(tmp_path / "good")),
    ]
    watch = SourceWatch(sources, clock=Clock())
    watch.look()
    assert names(watch.look().taken) == ["a.jsonl"]
    assert "suffix not known" in caplog.text


def test_large_files_are_cut_as_a_run_cuts_them(tmp_path):
    table = pa.table({"content": [str(n) * 500 for n in range(400)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=40, compression="none")
    (source,) = sources = [Source(category="book", path=str(tmp_path))]
    watch = SourceWatch(sources, split_bytes=100_000, clock=Clock())
    watch.look()
    taken = watch.look().taken
    assert len(taken) > 3
    assert taken == watch.splits == list_sources([source], split_bytes=100_000).splits
