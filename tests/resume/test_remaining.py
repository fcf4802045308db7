import json
from collections import Counter

import pytest

from longattn.config import Config, Sample
from longattn.corpus.counts import Counts, ReadTotals
from longattn.corpus.records import Split, pack_task, unpack_task
from longattn.errors import FolderError
from longattn.resume import remaining as ledger
from longattn.resume.fingerprint import (
    RunRecord,
    grown_samples,
    note_samples,
    own_folder,
    read_run_record,
)
from longattn.resume.markers import IdSet, Marker, read_markers, write_markers
from longattn.resume.remaining import (
    _ids,
    drop_repeats,
    find_remaining,
    labelled_files,
    read_footer,
    row_spans,
)
from longattn.scoring.settings import ScoreParts
from longattn.windows.ids import hash_key
from tests.labelled import labelled_table, score_parts, write_labelled


def split(path="a.jsonl", start=0, version="1"):
    return Split("book", path, "content", "jsonl", None, start, None, 100, version)


def put_marker(output, part, ids, generation=1, waits_for=()):
    given = IdSet()
    for data_id in ids:
        given.add(data_id)
    marker = Marker.of(part, Counts(windows=len(ids)), given, generation, waits_for)
    write_markers(str(output), [marker])


def finish(output, part, ids, path=None):
    """Put the marker and one labelled file of a split."""
    table = labelled_table("book", ids, [0.1] * len(ids), [0.1] * len(ids))
    runs = row_spans([part.id] * len(ids), [path or part.path] * len(ids), ids)
    put_marker(output, part, ids)
    return write_labelled(output, "book", table, {"fingerprint": "f", "runs": runs})


@pytest.mark.parametrize(
    "change",
    [
        {"definition": 2}, {"weights": "v"}, {"tokenizer": "u"}, {"window": 9},
        {"min_distances": (3,)}, {"min_distances": (2, 3)}, {"rope_theta": 1e4}, {"bos": 1},
        {"dtype": "bfloat16"}, {"query_stride": 2},
    ],
)  # fmt: skip
def test_fingerprints_follow_every_part(change):
    assert score_parts().fingerprint != score_parts(**change).fingerprint
    assert ScoreParts.from_dict(score_parts(**change).to_dict()) == score_parts(**change)


def test_a_folder_is_claimed_once_and_refused_to_others(tmp_path):
    config = Config.parse({"sources": [{"category": "a", "path": "x"}], "output": str(tmp_path)})
    first = own_folder(str(tmp_path), score_parts(), config)
    assert own_folder(str(tmp_path), score_parts(), config) == first
    with pytest.raises(
        FolderError, match=r"window: there 8, here 9; choose|window: there 8, here 9\)"
    ):
        own_folder(str(tmp_path), score_parts(window=9), config)
    assert read_run_record(str(tmp_path)) == RunRecord(score_parts(), config)
    other = score_parts(dtype="bfloat16")
    assert own_folder(str(tmp_path), other, config, empty=True) == other.fingerprint
    assert read_run_record(str(tmp_path)) == RunRecord(other, config)


def test_a_folder_of_another_layout_is_refused_in_a_line(tmp_path):
    own_folder(str(tmp_path), score_parts(), None)
    path = tmp_path / "_longattn/run.json"
    stored = json.loads(path.read_text())
    del stored["format"], stored["checksum"]  # as version 0.1 wrote it
    path.write_text(json.dumps(stored))
    with pytest.raises(FolderError, match=r"has the layout 1 of another version .* choose another"):
        own_folder(str(tmp_path), score_parts(), None)


def test_tasks_pack_and_unpack():
    splits = [split("é x.jsonl"), split(start=7)]
    assert unpack_task(pack_task(splits)) == splits


def test_a_split_is_done_when_all_its_windows_are_labelled(tmp_path):
    done, half, unread, empty = split("a"), split("b"), split("c"), split("d")
    finish(tmp_path, done, ["a1", "a2"])
    url = finish(tmp_path, half, ["b1", "b2"])
    put_marker(tmp_path, half, ["b1", "b2", "b3"])
    put_marker(tmp_path, empty, [])
    left = find_remaining(str(tmp_path), [done, half, unread, empty])
    assert left.splits == [half, unread] and left.finished == 2 and left.stale == {}
    assert left.labelled == {"b1": half.id, "b2": half.id} and left.twice == {}
    assert read_footer(url).row_spans[0][:3] == (half.id, "b", 2)


def test_without_its_marker_a_split_is_read_again_but_its_windows_are_known(tmp_path):
    finish(tmp_path, split("a"), ["a1", "a2"])
    for path in (tmp_path / "_longattn/splits").iterdir():
        path.unlink()
    left = find_remaining(str(tmp_path), [split("a")])
    assert left.splits == [split("a")] and left.labelled.keys() == {"a1", "a2"}


def test_a_file_that_grew_is_read_again_and_its_old_windows_are_known(tmp_path):
    old, new = split("a", version="1"), split("a", version="2")
    finish(tmp_path, old, ["a1", "a2"])
    left = find_remaining(str(tmp_path), [new])
    assert left.splits == [new] and left.stale == {"a": 2}
    assert left.labelled == {"a1": old.id, "a2": old.id}


def test_rows_of_one_file_belong_to_the_splits_its_footer_names(tmp_path):
    one, two = split("a"), split("b")
    table = labelled_table("book", ["x", "y", "z"], [0.1] * 3, [0.1] * 3)
    runs = row_spans([one.id, two.id, two.id], ["a", "b", "b"], ["x", "y", "z"])
    assert [run[2] for run in runs] == [1, 2]
    write_labelled(tmp_path, "book", table, {"fingerprint": "f", "runs": runs})
    left = find_remaining(str(tmp_path), [one, two])
    assert left.labelled == {"x": one.id, "y": two.id, "z": two.id}


def test_a_labelled_file_that_cannot_be_read_counts_for_nothing_and_is_named(tmp_path):
    path = tmp_path / "labelled/a/x.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 half a file")
    left = find_remaining(str(tmp_path), [split()])
    assert left.damaged.keys() == {str(path)} and "Parquet" in left.damaged[str(path)]
    assert left.splits == [split()] and left.windows == {}


def test_markers_carry_the_counts(tmp_path):
    counts = Counts(records=5, documents=4, windows=2)
    counts.bad["not_json"] += 1
    write_markers(
        str(tmp_path),
        [
            Marker.of(split(p), c, IdSet(count=n), 1)
            for p, c, n in (("a", counts, 2), ("b", Counts(), 0))
        ],
    )
    markers = read_markers(str(tmp_path))
    assert markers[split("a").id].counts.bad == {"not_json": 1}
    assert {m.path for m in markers.values()} == {"a", "b"}
    assert markers[split("a").id].windows == 2


def test_a_lost_window_beside_one_there_twice_is_seen_and_the_repeat_dropped(tmp_path):
    part = split("a")
    finish(tmp_path, part, ["b-d-0", "b-d-1"])
    url = finish(tmp_path, part, ["b-d-1"])  # a straggler of a run that was killed
    put_marker(tmp_path, part, ["b-d-0", "b-d-1", "b-d-2"])  # as many as there are rows
    left = find_remaining(str(tmp_path), [part])
    assert left.splits == [part] and sum(map(len, left.twice.values())) == 1
    drop_repeats(left.twice)
    left = find_remaining(str(tmp_path), [part])
    assert left.splits == [part] and left.twice == {}
    assert left.labelled.keys() == {"b-d-0", "b-d-1"}
    put_marker(tmp_path, part, ["b-d-0", "b-d-1"], generation=left.generation)
    assert find_remaining(str(tmp_path), [part]).finished == 1
    assert url  # one of the two files is left whole


def test_rows_of_a_mixed_file_survive_the_dropping_of_their_neighbours(tmp_path):
    one, two = split("a"), split("b")
    finish(tmp_path, one, ["b-x-0", "b-x-1"])
    table = labelled_table("book", ["b-y-0", "b-x-1", "b-y-1"], [0.1, 0.2, 0.3], [0.1] * 3)
    runs = row_spans([two.id, one.id, two.id], ["b", "a", "b"], table["data_id"].to_pylist())
    write_labelled(tmp_path, "book", table, {"fingerprint": "f", "runs": runs})
    put_marker(tmp_path, two, ["b-y-0", "b-y-1"])
    left = find_remaining(str(tmp_path), [one, two])
    drop_repeats(left.twice)
    left = find_remaining(str(tmp_path), [one, two])
    assert left.finished == 2 and sum(f.rows for f in labelled_files(str(tmp_path))) == 4


def test_the_marker_of_a_later_run_replaces_that_of_an_earlier_one(tmp_path):
    part, other = split("a"), split("b")
    finish(tmp_path, part, ["b-x-0"])
    put_marker(tmp_path, part, ["b-x-0", "b-x-1"], generation=1)
    given = [Marker.of(s, Counts(), IdSet(), 2) for s in (part, other)]
    write_markers(str(tmp_path), given)
    assert read_markers(str(tmp_path))[part.id].windows == 0


def test_a_split_that_left_a_document_to_one_that_is_gone_is_read_again(tmp_path):
    gone, here = split("gone"), split("here")
    put_marker(tmp_path, here, [], waits_for=[gone.id])
    assert find_remaining(str(tmp_path), [here]).splits == [here]
    assert find_remaining(str(tmp_path), [gone, here]).splits == [gone]
    finish(tmp_path, gone, ["b-x-0"])
    assert find_remaining(str(tmp_path), [here]).splits == []


def test_of_finished_work_a_resume_reads_footers_and_keeps_the_documents(tmp_path, monkeypatch):
    done, half = split("a"), split("b")
    finish(tmp_path, done, ["b-x-0", "b-x-1", "b-y-0"])
    url = finish(tmp_path, half, ["b-z-0"])
    put_marker(tmp_path, half, ["b-z-0", "b-z-1"])
    read, ids = [], _ids
    monkeypatch.setattr(ledger, "_ids", lambda file: read.append(file.url) or ids(file))
    left = find_remaining(str(tmp_path), [done, half])
    assert read == [url] and left.labelled == {"b-z-0": half.id}
    assert left.documents.tolist() == sorted([hash_key("b-x"), hash_key("b-y")])
    read.clear()
    put_marker(tmp_path, half, ["b-z-0"])
    assert find_remaining(str(tmp_path), [done, half]).splits == [] and read == []


def test_a_row_that_a_finished_split_has_too_is_dropped(tmp_path):
    done, half = split("a"), split("b")
    finish(tmp_path, done, ["b-x-0", "b-x-1"])
    url = finish(tmp_path, half, ["b-x-1", "b-x-2"])
    put_marker(tmp_path, half, ["b-x-2"])  # the other row is of a run that was killed
    left = find_remaining(str(tmp_path), [done, half])
    assert left.twice == {url: [0]} and left.labelled == {"b-x-2": half.id}
    drop_repeats(left.twice)
    assert find_remaining(str(tmp_path), [done, half]).splits == []
    assert sum(file.rows for file in labelled_files(str(tmp_path))) == 3


def test_a_larger_sample_of_the_same_seed_is_read_again_and_no_other_may_follow(tmp_path):
    output, part = str(tmp_path), split("a")
    small, large = Sample(fraction=0.1, seed=3), Sample(fraction=0.3, seed=3)
    assert grown_samples(output, {"book": small}) == set()
    note_samples(output, {"book": small}, set())
    finish(tmp_path, part, ["book-x-0"])
    assert grown_samples(output, {"book": small, "code": large}) == set()
    for other in (Sample(fraction=0.05, seed=3), Sample(fraction=0.3, seed=4)):
        with pytest.raises(FolderError, match=r"'book' with sample .*0\.1.*only a larger"):
            grown_samples(output, {"book": other})
    for grown in (large, Sample(fraction=1, seed=9), None):
        assert grown_samples(output, {"book": grown}) == {"book"}
        left = find_remaining(output, [part], {"book"})
        assert left.splits == [part] and left.labelled == {"book-x-0": part.id}
    assert find_remaining(output, [part]).splits == []  # a run that was refused changed nothing
    note_samples(output, {"book": None}, {"book"})
    assert find_remaining(output, [part]).splits == [part]
    with pytest.raises(FolderError, match=r"here \{'fraction': 0\.3"):
        grown_samples(output, {"book": large})


def test_a_document_left_from_split_to_split_to_one_that_is_gone_is_read_again(tmp_path):
    gone, between, here = split("gone"), split("between"), split("here")
    put_marker(tmp_path, here, [], waits_for=[between.id])
    put_marker(tmp_path, between, [], waits_for=[gone.id])
    assert find_remaining(str(tmp_path), [here]).splits == [here]
    assert find_remaining(str(tmp_path), [gone, between, here]).splits == [gone]


def test_what_remains_of_a_file_may_be_what_another_one_held(tmp_path):
    """Written again without its repeated row, the second file has the name of the third."""
    part = split("a")
    one, both, other = (
        finish(tmp_path, part, i) for i in (["b-d-1"], ["b-d-0", "b-d-1"], ["b-d-0"])
    )
    drop_repeats({both: [1], other: [0]})
    left = find_remaining(str(tmp_path), [part])
    assert left.labelled.keys() == {"b-d-0", "b-d-1"} and left.twice == {}
    assert {file.url for file in labelled_files(str(tmp_path))} == {one, other}


def test_bad_records_count_over_runs_and_broken_files_by_their_bytes():
    seen = ReadTotals(stored=1000)
    seen.add(Counts(records=999, bad=Counter(not_json=99)))
    assert seen.too_bad(0.01) == ""  # too few to tell
    seen.add(Counts(records=1))
    assert seen.too_bad(0.01).startswith("99 of 1,000 records are bad (not_json 99), over")
    assert seen.too_bad(0.099) == ""
    seen.add(Counts(records=1, bad=Counter(truncated_archive=1), lost_bytes=101))
    assert "truncated_archive 1), 101 bytes in broken files, over" in seen.too_bad(0.1)
    few = ReadTotals(stored=1 << 30, records=5, lost_bytes=1 << 25)
    assert few.too_bad(0.05) == "" and few.too_bad(0.01)


def test_a_split_with_a_record_over_the_cap_is_read_again_for_a_larger_cap_alone(tmp_path):
    part, counts = split("a"), Counts(bad=Counter(over_size_cap=1))
    write_markers(str(tmp_path), [Marker.of(part, counts, IdSet(), 1, max_record_bytes=100)])
    for largest, todo in ((50, []), (100, []), (101, [part])):
        assert find_remaining(str(tmp_path), [part], max_record_bytes=largest).splits == todo
    write_markers(str(tmp_path), [Marker.of(part, Counts(), IdSet(), 2, max_record_bytes=100)])
    assert find_remaining(str(tmp_path), [part], max_record_bytes=101).splits == []
