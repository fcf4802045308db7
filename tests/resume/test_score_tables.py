"""Which windows get a further score: limits worked out by hand, and tables that are of other rows."""

import pyarrow as pa
import pytest

from longattn.resume.score_tables import limits_of, narrow_columns, within
from longattn.settings.selection import Bound
from longattn.storage.output_folder import OutputFolder
from longattn.storage.tables import DamagedFileError, write_table
from tests.labelled import labelled_table, write_labelled, write_score_table

RATIOS = [5.0, None, 1.0, 3.0], [4.0, 2.0, None, 2.0]
PLACES = {"ratio": "text", "none": "text", "ds": ""}


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    """An output with two labelled files of four windows, and a score table beside each."""
    folder, urls = tmp_path_factory.mktemp("limits"), []
    for name, ratios in zip("ab", RATIOS, strict=True):
        ds = [0.1, 0.2, 0.3, 0.4]
        table = labelled_table("book", [f"{name}-{i}-0" for i in range(4)], ds, ds)
        urls.append(write_labelled(folder, "book", table))
        columns = {"ratio": pa.array(ratios), "none": pa.nulls(4, pa.float64())}
        write_score_table(urls[-1], "text", columns)
    return OutputFolder(str(folder)), urls


@pytest.mark.parametrize(
    ("where", "limits"),
    [  # six windows have a ratio: 1 2 2 3 4 5
        ([{"quantiles": [0.2, 0.8]}], (2, 4)),
        ([{"quantiles": [0, 0.5]}], (1, 2)),
        ([{"quantiles": [0.5, 1]}], (3, 5)),
        ([{"quantiles": [0, 0.05]}], (1, 1)),  # of no rank: the window where it would begin
        ([{"quantiles": [0.45, 0.5]}], (3, 3)),
        ([{"quantiles": [0.99, 1]}], (5, 5)),
        ([{"quantiles": [0.2, 0.8], "min": 2.5, "max": 9}], (2.5, 4)),
        ([{"quantiles": [0.2, 0.8], "min": 0, "max": 3.5}], (2, 3.5)),
        ([{"min": 2}], (2, None)),
        ([{"max": 2}], (None, 2)),
        ([{"min": 2, "max": 4}, {"min": 1, "max": 9}], (2, 4)),
        ([{"min": 1, "max": 9}, {"min": 2, "max": 4}], (2, 4)),
        ([{"min": 2}, {"max": 4}, {"quantiles": [0, 1]}], (2, 4)),
    ],
)
def test_limits_are_of_the_ranks_among_all_windows_with_a_value(two_files, where, limits):
    bounds = [Bound(column="ratio", **of) for of in where]
    assert limits_of(*two_files, bounds, PLACES) == {"ratio": limits}


def test_what_has_no_value_is_within_nothing_and_equal_values_are_within_together(two_files):
    folder, urls = two_files
    bounds = [Bound(column="ratio", quantiles=(0, 0.34)), Bound(column="ds", max=0.3)]
    limits = limits_of(folder, urls, bounds, PLACES)
    assert limits == {"ratio": (1, 2), "ds": (None, 0.3)}
    inside = [within(narrow_columns(folder, url, PLACES), limits).tolist() for url in urls]
    assert inside == [[False, False, True, False], [False, True, False, False]]
    limits = limits_of(folder, urls, [Bound(column="none", quantiles=(0.2, 0.8))], PLACES)
    assert limits == {"none": (None, None)}
    assert not within(narrow_columns(folder, urls[0], PLACES), limits).any()


def test_a_table_of_other_rows_is_damaged(tmp_path):
    folder = OutputFolder(str(tmp_path))
    table = labelled_table("book", ["a-0-0", "a-1-0"], [0.1, 0.2], [0.1, 0.2])
    url = write_labelled(tmp_path, "book", table)
    write_score_table(url, "text", {"ratio": [1.0, 2.0]})
    narrow = narrow_columns(folder, url, {"ratio": "text"})
    assert narrow.to_pydict() == {"data_id": ["a-0-0", "a-1-0"], "ratio": [1.0, 2.0]}
    for ids in (["a-0-0", "a-2-0"], ["a-0-0", "A"]):
        other = pa.table({"data_id": ids, "ratio": [1.0, 2.0]})
        write_table(folder.score_file("text", url), other, {"fingerprint": "s"})
        with pytest.raises(DamagedFileError, match="its rows are not those of the labelled file"):
            narrow_columns(folder, url, {"ratio": "text"})
