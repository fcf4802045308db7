"""What became of records: sums that can be taken back, what is no count, and when there is too much of bad."""

import json

import pytest

from longattn.corpus.counts import ENOUGH_BYTES, Counts, ReadTotals
from longattn.corpus.records import BadRecord, Reason, bad_record


def counted(*bad: BadRecord, good: int = 0) -> Counts:
    counts = Counts(records=good, tokens=7 * good, seconds=0.5)
    for each in bad:
        counts.add_bad(each)
    counts.end()
    return counts


NULLS = bad_record(3, Reason.NOT_A_STRING, "null", records=4)
CUT = bad_record(0, Reason.TRUNCATED_ARCHIVE, "cut", lost_bytes=90)


def test_nothing_is_counted_before_anything_is_read() -> None:
    assert not any(Counts().to_dict().values()) and not any(vars(ReadTotals()).values())


def test_bad_records_are_counted_by_reason_and_the_first_is_told() -> None:
    counts = counted(NULLS, CUT, NULLS, good=2)
    assert (counts.records, counts.lost_bytes, counts.unread) == (11, 90, 0)
    assert counts.bad == {"not_a_string": 8, "truncated_archive": 1}
    assert counts.first_bad == "not_a_string: null"


def test_a_split_with_records_and_none_that_can_be_used_is_unread() -> None:
    assert [counted(NULLS).unread, counted(NULLS, good=1).unread, counted().unread] == [1, 0, 0]


def test_counts_are_added_and_taken_back() -> None:
    one, other = counted(NULLS, good=3), counted(CUT)
    total = counted(NULLS, good=3)
    total.add(other)
    assert (total.records, total.tokens, total.seconds, total.unread) == (8, 21, 1.0, 1)
    assert total.bad == {"not_a_string": 4, "truncated_archive": 1} and total.lost_bytes == 90
    assert total.first_bad == one.first_bad
    total.subtract(other)
    assert total == one


@pytest.mark.parametrize("counts", [counted(), counted(NULLS, CUT, good=5)])
def test_counts_are_stored_as_json(counts: Counts) -> None:
    stored = json.loads(json.dumps(counts.to_dict()))
    assert Counts.from_dict(stored) == counts
    assert ("first_bad" in stored) == bool(counts.first_bad)


@pytest.mark.parametrize(
    "change",
    [
        {"records": -1},
        {"seconds": float("nan")},
        {"tokens": "7"},
        {"windows": None},
        {"bad": {"not_json": -1}},
        {"bad": {"not_json": "x"}},
        {"bad": 3},
        {"more": 1},
    ],
)
def test_what_is_no_count_is_refused(change: dict) -> None:
    with pytest.raises((ValueError, TypeError)):
        Counts.from_dict({**counted(NULLS).to_dict(), **change})
    with pytest.raises(KeyError):
        Counts.from_dict({"records": 1})


def totals(good: int, *bad: BadRecord, stored: int = 1000, times: int = 1) -> ReadTotals:
    found = ReadTotals(stored=stored)
    for _ in range(times):
        found.add(counted(*bad))
    found.add(counted(good=good))
    return found


def test_one_bad_record_of_few_does_not_decide() -> None:
    assert totals(998, bad_record(0, Reason.NOT_JSON, "")).too_bad(0) == ""
    assert totals(999, bad_record(0, Reason.NOT_JSON, "")).too_bad(0) == (
        "1 of 1,000 records are bad (not_json 1), over max_bad_fraction 0; they are in quarantine/"
    )


def test_the_share_that_may_be_bad_is_allowed_itself() -> None:
    bad = bad_record(0, Reason.NOT_JSON, "", records=100)
    assert totals(900, bad).too_bad(0.1) == ""
    assert totals(899, bad).too_bad(0.1) == ""  # too few to decide
    assert totals(1798, bad, times=2).too_bad(0.1).startswith("200 of 1,998 records are bad")
    assert totals(1800, bad, times=2).too_bad(0.1) == ""


def test_bytes_of_broken_files_count_by_themselves() -> None:
    told = totals(2000, CUT, NULLS, stored=899).too_bad(0.1)
    assert told == (
        "5 of 2,005 records are bad (not_a_string 4, truncated_archive 1), 90 bytes in broken files, "
        "over max_bad_fraction 0.1; they are in quarantine/"
    )
    assert totals(2000, CUT, stored=900).too_bad(0.1) == ""
    assert totals(900, CUT, stored=10).too_bad(0.1) == ""  # few records, and few bytes
    lost = bad_record(0, Reason.UNREADABLE, "x", lost_bytes=ENOUGH_BYTES // 2 + 1)
    assert totals(0, lost, stored=ENOUGH_BYTES).too_bad(0.5) != ""
    assert totals(0, lost, stored=ENOUGH_BYTES - 1).too_bad(0.5) == ""


def test_totals_are_taken_back_and_files_are_named_once() -> None:
    found = ReadTotals(stored=10)
    for path in ("b", "a", "b", ""):
        found.add(counted(NULLS), path)
    found.add(counted(CUT, good=1), "c")
    assert found.unread_lines() == [
        "a: nothing could be read: not_a_string: null",
        "b: nothing could be read: not_a_string: null",
    ]
    assert found.unread_lines(1)[1:] == ["of 1 more files nothing could be read"]
    before = found.records, found.lost_bytes, dict(found.bad)
    found.add(counted(CUT, NULLS, good=9))
    found.subtract(counted(CUT, NULLS, good=9))
    assert (found.records, found.lost_bytes, dict(found.bad)) == before == (18, 90, {
        "not_a_string": 16, "truncated_archive": 1
    })  # fmt: skip
