import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import longattn as la
from longattn.reports.repetition import Repetition
from longattn.reports.report import report_page
from longattn.resume.fingerprint import own_folder
from tests.labelled import labelled_table, score_parts, write_labelled
from tests.reports.test_report import Page


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=25))
def test_it_is_the_share_of_pairs_in_which_the_kept_window_repeats_more(windows):
    values, kept = (np.array(column) for column in zip(*windows, strict=True))
    found = Repetition.of(values / 4, kept)
    wins = [(a > b) + (a == b) / 2 for a in values[kept] for b in values[~kept]]
    assert found.favoured == (pytest.approx(np.mean(wins)) if wins else None)
    assert found.repeated == (values[kept] == 4).sum() and found.windows == kept.sum()
    assert found.dropped == (pytest.approx(values[~kept].mean() / 4) if (~kept).any() else None)


def test_where_it_is_not_stored_nothing_is_said():
    assert Repetition.of(np.array([0.5, np.nan]), np.array([True, False])) is None


@pytest.mark.parametrize(
    ("kept", "dropped", "warned"),
    [
        ([0.5] * 10, [0.2] * 10, True),
        ([0.5] * 9, [0.2] * 10, False),  # too few to tell
        ([0.22] * 10, [0.2] * 10, False),  # more, but hardly
        ([0.2] * 10, [0.5] * 10, False),
        ([0.2] * 19 + [0.9], [0.3] * 20, True),  # one in twenty repeats itself
        ([0.2] * 20 + [0.9], [0.3] * 20, False),
        ([0.9] * 12, [], True),  # all is kept, and all of it repeats
    ],
)
def test_it_warns_where_much_of_what_is_kept_repeats(kept, dropped, warned):
    mask = np.arange(len(kept) + len(dropped)) < len(kept)
    assert Repetition.of(np.array([*kept, *dropped]), mask).warned == warned


def test_the_report_warns_of_the_category_whose_kept_windows_repeat(tmp_path):
    rng = np.random.default_rng(2)
    for category, slope in (("copies", 2.0), ("prose", 0.0)):
        ds = rng.uniform(0.1, 0.4, 40)
        table = labelled_table(category, [f"{category}-{i}" for i in range(40)], ds, [1e-7] * 40)
        pairs = pa.array(0.05 + slope * (ds - 0.1) + rng.uniform(0, 0.05, 40))
        index = table.column_names.index("recurrence_pairs")
        write_labelled(
            tmp_path, category, table.set_column(index, table.schema.field(index), pairs)
        )
    own_folder(str(tmp_path), score_parts(), None)
    la.select(str(tmp_path), keep={"fraction": 0.5})
    text = Page(report_page(str(tmp_path))).text
    warning = text[text.index("Repetitive windows rank high") : text.index("Read a few")]
    assert "copies" in warning and "prose" not in warning
    stored = pq.read_table(f"{tmp_path}/labelled/copies").to_pydict()
    kept_ids = set(pq.read_table(f"{tmp_path}/selected/copies")["data_id"].to_pylist())
    kept = [
        p
        for i, p in zip(stored["data_id"], stored["recurrence_pairs"], strict=True)
        if i in kept_ids
    ]
    assert f"{100 * np.mean(kept):.3g} % of the token pairs" in warning
    assert "in 100 of 100 cases" in warning
