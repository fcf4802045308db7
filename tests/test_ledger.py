import dataclasses

import pytest

from longattn import ledger
from longattn.config import Config
from longattn.records import Split
from longattn.storage import join, read_json
from longattn.windows import Counts
from tests.labelled import labelled_table, write_labelled


def split(path="a.jsonl", start=0, version="1"):
    return Split("book", path, "content", "jsonl", None, start, None, 100, version)


def finish(output, part, ids, path=None):
    """Put the marker and one labelled file of a split."""
    table = labelled_table("book", ids, [0.1] * len(ids), [0.1] * len(ids))
    runs = [[part.id, path or part.path, len(ids)]]
    ledger.write_markers(str(output), [ledger.marker(part, Counts(windows=len(ids)))])
    return write_labelled(output, "book", table, {"fingerprint": "f", "runs": runs})


def test_fingerprints_follow_every_part_and_no_order():
    parts = {"window": 8, "dtype": "float32"}
    assert ledger.fingerprint(parts) == ledger.fingerprint(dict(reversed(parts.items())))
    assert ledger.fingerprint(parts) != ledger.fingerprint({**parts, "window": 9})


def test_a_folder_is_claimed_once_and_refused_to_others(tmp_path):
    config = Config.parse({"sources": [{"category": "a", "path": "x"}], "output": str(tmp_path)})
    first = ledger.claim(str(tmp_path), {"window": 8, "k": 2}, config)
    assert ledger.claim(str(tmp_path), {"window": 8, "k": 2}, config) == first
    with pytest.raises(
        ledger.LedgerError, match=r"window: there 8, here 9; choose|window: there 8, here 9\)"
    ):
        ledger.claim(str(tmp_path), {"window": 9, "k": 2}, config)
    assert read_json(join(str(tmp_path), "_longattn/run.json"))["parts"] == {"window": 8, "k": 2}


def test_tasks_pack_and_unpack():
    splits = [split("é x.jsonl"), split(start=7)]
    assert ledger.unpack_task(ledger.pack_task(splits, {"b", "a"})) == (splits, {"a", "b"})


def test_a_split_is_done_when_all_its_windows_are_labelled(tmp_path):
    done, half, unread, empty = split("a"), split("b"), split("c"), split("d")
    finish(tmp_path, done, ["a1", "a2"])
    url = finish(tmp_path, half, ["b1", "b2"])
    ledger.write_markers(str(tmp_path), [ledger.marker(half, Counts(windows=3))])
    ledger.write_markers(str(tmp_path), [ledger.marker(empty, Counts(windows=0))])
    left = ledger.remaining(str(tmp_path), [done, half, unread, empty])
    assert left.splits == [half, unread] and left.finished == 2 and left.stale == []
    assert left.done == {half.id: {"b1", "b2"}}
    assert ledger.read_footer(url).runs == [[half.id, "b", 2]]


def test_without_its_marker_a_split_is_read_again_but_its_windows_are_known(tmp_path):
    finish(tmp_path, split("a"), ["a1", "a2"])
    for path in (tmp_path / "_longattn/splits").iterdir():
        path.unlink()
    left = ledger.remaining(str(tmp_path), [split("a")])
    assert left.splits == [split("a")] and left.done == {split("a").id: {"a1", "a2"}}


def test_a_file_that_grew_is_read_again_and_its_old_windows_are_known(tmp_path):
    old, new = split("a", version="1"), split("a", version="2")
    finish(tmp_path, old, ["a1", "a2"])
    left = ledger.remaining(str(tmp_path), [new])
    assert left.splits == [new] and left.stale == ["a"]
    assert left.done == {"a": {"a1", "a2"}}


def test_rows_of_one_file_belong_to_the_splits_its_footer_names(tmp_path):
    one, two = split("a"), split("b")
    table = labelled_table("book", ["x", "y", "z"], [0.1] * 3, [0.1] * 3)
    runs = [[one.id, "a", 1], [two.id, "b", 2]]
    write_labelled(tmp_path, "book", table, {"fingerprint": "f", "runs": runs})
    left = ledger.remaining(str(tmp_path), [one, two])
    assert left.done == {one.id: {"x"}, two.id: {"y", "z"}}


def test_an_unreadable_labelled_file_is_named(tmp_path):
    path = tmp_path / "labelled/category=a/x.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 half a file")
    with pytest.raises(ValueError, match=r"x\.parquet: no readable labelled file"):
        ledger.remaining(str(tmp_path), [split()])


def test_markers_carry_the_counts(tmp_path):
    counts = Counts(records=5, documents=4, windows=2)
    counts.bad["not_json"] += 1
    ledger.write_markers(
        str(tmp_path), [ledger.marker(split("a"), counts), ledger.marker(split("b"), Counts())]
    )
    markers = ledger.read_markers(str(tmp_path))
    assert markers[split("a").id].counts["bad"] == {"not_json": 1}
    assert {m.path for m in markers.values()} == {"a", "b"}
    assert dataclasses.asdict(markers[split("a").id])["windows"] == 2
