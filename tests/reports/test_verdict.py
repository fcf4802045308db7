import numpy as np
import pyarrow.parquet as pq
import pytest

import longattn as la
from longattn.reports.verdict import verdict_of
from tests.reports.test_report import selected


@pytest.mark.parametrize("standardize", ["zscore", "minmax"])
def test_it_has_the_lds_and_the_fate_of_each_window(tmp_path, standardize):
    output = selected(tmp_path)
    la.select(output, keep={"fraction": 0.25}, standardize=standardize, alpha=0.7)
    rows = pq.read_table(f"{output}/labelled/b").to_pylist()
    lds = la.long_distance_scores(
        [r["ds"] for r in rows], [r["variance"] for r in rows], 0.7, standardize
    )
    kept = set(pq.read_table(f"{output}/selected/b")["data_id"].to_pylist())
    for row, value in zip(rows[::7], lds[::7], strict=True):
        verdict = verdict_of(output, row["data_id"], row)
        assert verdict.kept == (row["data_id"] in kept)
        assert verdict.lds == pytest.approx(value) and verdict.ranked_by == "LDS"
        assert verdict.threshold == np.sort(lds)[-15]
        assert verdict.sentence().startswith("Kept: LDS" if verdict.kept else "Dropped: LDS")


def test_it_names_what_ranked(tmp_path):
    output = selected(tmp_path)
    la.select(output, keep={"count": 5}, rank_by="recurrence_pairs", overlap="prefer_distinct")
    row = pq.read_table(f"{output}/labelled/a").to_pylist()[0]
    verdict = verdict_of(output, row["data_id"], row)
    assert (verdict.ranked_by, verdict.value) == ("recurrence_pairs", row["recurrence_pairs"])
    assert "after overlaps are taken off, LDS" in verdict.sentence()


def test_before_a_selection_there_is_none(tmp_path):
    output = selected(tmp_path)
    (tmp_path / "_longattn" / "selection.json").unlink()
    assert verdict_of(output, "a-0000", {"category": "a"}) is None
