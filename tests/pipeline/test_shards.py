"""Runs of shares of one corpus into one output folder: what they write together, and who waits for whom."""

import os

import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.corpus.sources import list_sources
from longattn.errors import ConfigError, HeldError
from longattn.reports.verify import verify
from longattn.resume.damage import set_aside
from longattn.resume.lock import Hold
from longattn.resume.shards import Shard, held, shards_held
from longattn.storage.files import read_json, write_json
from tests.conftest import config


def rows(output, folder):
    return pq.read_table(f"{output}/{folder}").sort_by("data_id")


def assert_same(output, whole):
    for folder in ("labelled", "selected"):
        assert rows(output, folder).equals(rows(whole, folder)), folder
    assert list(verify(str(output))) == []


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2"])
def test_what_is_no_share_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match=r"shard '.*': i/n is required, with i from 1 to n"):
        Shard.parse(text)


def test_every_split_is_of_one_share_and_shares_are_about_equal():
    splits = [f"{number * 2654435761 % 2**128:032x}" for number in range(8000)]
    of = [sum(Shard(i, 8).has(split) for i in range(1, 9)) for split in splits]
    assert set(of) == {1}
    sizes = [sum(Shard(i, 8).has(split) for split in splits) for i in range(1, 9)]
    assert min(sizes) > 900


def test_shares_one_after_the_other_give_what_one_run_gives(
    finished, corpus, checkpoint, tmp_path, caplog
):
    settings = config(corpus, tmp_path / "out", checkpoint)
    caplog.set_level("INFO", "longattn")
    ids = [split.id for split in list_sources(settings.sources).splits]
    # The paths decide which shares have splits: so many shares that two have some.
    parted = (sorted({Shard.of(name, count) for name in ids}) for count in range(2, 100))
    shares = [str(shard) for shard in next(found for found in parted if len(found) > 1)]
    seen, summaries = 0, []
    for share in shares:
        caplog.clear()
        summary = la.run(settings, executor="local", shard=share)
        summaries.append(summary)
        if share != shares[-1]:
            assert not (tmp_path / "out/selected").exists()
            assert "shares that are not labelled yet: " in caplog.text
            seen += sum(c.counts.records for c in summary.categories.values())
    _, whole = finished
    read = [of.splits["read"] for of in summaries]
    assert sum(read) == len(ids) and all(read) and all(of.seconds for of in summaries)
    assert summary.splits == {"all": len(ids), "read": read[-1], "done before": sum(read[:-1])}
    windows = sum(category.windows for category in whole.categories.values())
    assert sum(of.score.windows for of in summaries) == windows
    assert sum(of.window.documents for of in summaries) == whole.window.documents
    assert summary.to_dict()["categories"] == whole.to_dict()["categories"]
    assert 0 < seen < sum(c.counts.records for c in whole.categories.values())
    assert_same(tmp_path / "out", finished[0].output)
    again = la.run(settings, executor="local")
    assert (
        again.splits["read"] == 0 and again.to_dict()["categories"] == whole.to_dict()["categories"]
    )


def test_runs_that_exclude_each_other(tmp_path):
    output = str(tmp_path)
    with held(output, shard=Shard(1, 2)):
        with held(output, shard=Shard(2, 2)):
            assert shards_held(output) == [Shard(1, 2), Shard(2, 2)]
        for other in (None, Shard(1, 2), Shard(3, 3)):
            with pytest.raises(HeldError, match=f"pid {os.getpid()}"), held(output, shard=other):
                pass
        assert shards_held(output) == [Shard(1, 2)]
    with (
        held(output),
        pytest.raises(HeldError, match=f"pid {os.getpid()}"),
        held(output, shard=Shard(1, 2)),
    ):
        pass
    assert not list(tmp_path.glob("**/*.json"))


def die(output, shard):
    """A hold of a share as a run of this machine leaves it whose process is gone."""
    url = shard.hold(output)
    write_json(url, {**Hold(url).owner, "pid": 2**22 + 1, "takeovers": 2})


def test_the_hold_of_a_dead_share_stands_in_nobodys_way(tmp_path):
    output = str(tmp_path)
    die(output, Shard(1, 2))
    with held(output) as hold:
        assert shards_held(output) == [] and hold.owner["takeovers"] == 3
    die(output, Shard(1, 2))
    with held(output, shard=Shard(1, 2)) as hold:
        assert read_json(Shard(1, 2).hold(output))["token"] == hold.owner["token"]
        assert hold.owner["takeovers"] == 3


def test_the_share_of_a_dead_run_is_taken_up_by_the_next_to_end(
    finished, corpus, checkpoint, tmp_path, caplog
):
    settings = config(corpus, tmp_path / "out", checkpoint)
    die(settings.output, Shard(1, 2))
    summary = la.run(settings, executor="local", shard="2/2")
    assert summary.splits["read"] == summary.splits["all"] and not summary.splits["done before"]
    assert summary.score.windows == sum(of.windows for of in summary.categories.values())
    assert "the run of share 1/2 has died: what it left is done here" in caplog.text
    assert_same(tmp_path / "out", finished[0].output)


def test_a_damaged_file_that_another_share_has_moved_is_no_failure(tmp_path):
    there = tmp_path / "labelled/a/there.parquet"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"x")
    set_aside(str(tmp_path), {str(there.with_name("gone.parquet")): "cut", str(there): "cut"})
    assert [path.name for path in tmp_path.glob("damaged/**/*.parquet")] == ["there.parquet"]


def test_scoring_a_share_selects_nothing(corpus, checkpoint, tmp_path):
    settings = config(corpus, tmp_path / "out", checkpoint)
    la.run(settings, executor="local", shard="1/1", select_after=False)
    assert (tmp_path / "out/labelled").exists() and not (tmp_path / "out/selected").exists()
