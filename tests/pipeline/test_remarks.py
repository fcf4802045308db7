import pytest

from longattn.config import Config
from longattn.pipeline.remarks import remarks

MINIMAL = {
    "sources": [{"category": "book", "path": "/x"}],
    "output": "/o",
    "window": {"tokens": 512},
}


def told(keep, **category):
    config = Config.parse({**MINIMAL, "select": {"keep": keep}})
    return remarks(config, {"book": category})


def test_a_count_above_what_exists_is_told_and_one_that_fits_is_not():
    line = (
        "book: all 57 windows are kept: select.keep.count 1,000 is for each category, and more than "
        "it has"
    )
    assert told({"count": 1000}, windows=57, kept=57, kept_tokens=57 * 512) == [line]
    assert told({"count": 57}, windows=57, kept=57, kept_tokens=57 * 512) == []
    assert told({"count": 9}, windows=57, kept=9, kept_tokens=9 * 512) == []


def test_a_budget_of_tokens_above_what_exists_is_told():
    (line,) = told({"tokens": "1M"}, windows=60, duplicate_rows=3, kept=57, kept_tokens=57 * 512)
    assert "select.keep.tokens 1,000,000 is for each category, and it has 29,184" in line
    exact = 57 * 512
    for budget in (exact, exact + 511):  # no window more would fit
        assert told({"tokens": budget}, windows=57, kept=57, kept_tokens=exact) == []
    assert told({"tokens": exact + 512}, windows=57, kept=57, kept_tokens=exact) != []
    assert told({"fraction": 1}, windows=57, kept=57, kept_tokens=exact) == []


@pytest.mark.parametrize(
    ("category", "why"),
    [
        ({"records": 12, "documents": 12, "too_short": 12},
         "each of its 12 documents is shorter than window.tokens 512"),
        ({"records": 0}, "its files hold no record"),
        ({"records": 3, "documents": 0, "quarantine": {"not_json": 2, "bad_utf8": 1}},
         "none of its 3 records could be used (not_json 2, bad_utf8 1)"),
        ({"records": 5, "documents": 5, "too_short": 2, "sampled_out": 7},
         "its sample takes none of the 7 windows of 3 documents"),
        ({"records": 5, "documents": 5, "too_short": 2, "duplicates": 3},
         "of its 5 documents 2 are too short and the others repeat them"),
    ],
)  # fmt: skip
def test_a_category_without_a_window_says_why(category, why):
    assert told({"count": 3}, windows=0, **category) == [f"book: no window, because {why}"]


def test_before_a_selection_nothing_is_said_of_it():
    assert told({"count": 3}, records=12, documents=12, too_short=2, windows=5) == []


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"fraction": 0.25}, "0.25 of the windows of each category"),
        ({"tokens": "1.5B"}, "1.5 B tokens of each category"),
        ({"count": "100K"}, "100,000 windows of each category"),
    ],
)
def test_what_is_kept_is_said_to_be_of_each_category(keep, words):
    assert str(Config.parse({**MINIMAL, "select": {"keep": keep}}).select.keep) == words


def test_bounds_that_leave_less_than_the_budget_are_told():
    out = {"recurrence at most 0.5": 50}
    line = "book: 7 of 57 windows are kept, fewer than select.keep pays for: no more are within select.where"
    for keep in ({"count": 8}, {"fraction": 0.5}, {"tokens": 8 * 512}):
        assert told(keep, windows=57, kept=7, kept_tokens=7 * 512, out=out) == [line]
    for keep in ({"count": 7}, {"fraction": 0.12}, {"tokens": 8 * 512 - 1}):
        assert told(keep, windows=57, kept=7, kept_tokens=7 * 512, out=out) == []
