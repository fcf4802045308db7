import numpy as np
import pyarrow as pa
import pytest

from longattn.pipeline.labelled_sink import token_ids, write_labelled_windows


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([1, 2], "lists of integers are required; given int64"),
        (["ab", "c"], "lists of integers are required; given string"),
        ([[1.0], [1.5]], "lists of integers are required; given list<item: double>"),
        ([[1], None], "given list<item: int64>, 1 of them null"),
        ([[1, None], [2, 3]], "lists of integers are required"),
        ([[1], [1, 2]], "windows of one length are required; given lengths 1, 2"),
    ],
)
def test_what_is_no_window_is_refused_with_what_was_given(given, told):
    with pytest.raises(ValueError, match=rf"^input_ids: .*{told}"):
        token_ids(pa.table({"input_ids": pa.array(given)}))


def test_a_slice_of_several_chunks_is_read_from_where_it_begins():
    table = pa.table({"input_ids": pa.array([[1, 2], [3, 4], [5, 6]], pa.large_list(pa.int32()))})
    part = pa.concat_tables([table, table]).slice(1, 4)
    assert np.array_equal(token_ids(part), [[3, 4], [5, 6], [1, 2], [3, 4]])


def test_windows_without_an_id_are_not_written(tmp_path):
    scored = pa.table({"input_ids": [[1, 2]], "category": ["book"], "ds": [0.5]})
    with pytest.raises(ValueError, match="no column data_id among input_ids, category, ds"):
        write_labelled_windows(str(tmp_path), [scored])
    assert not list(tmp_path.iterdir())
