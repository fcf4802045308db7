import json

import duckdb
import fastparquet
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longattn import storage
from tests.labelled import labelled_table, write_labelled


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    url = str(tmp_path / "a" / "b.json")
    with pytest.raises(RuntimeError, match="half way"), storage.staged(url) as path:
        path.write_bytes(b"half")
        assert storage.read_bytes(url) is None
        raise RuntimeError("half way")
    assert storage.read_bytes(url) is None
    assert list((tmp_path / "a").iterdir()) == []
    storage.write_bytes(url, b"whole")
    storage.write_bytes(url, b"again")
    assert storage.read_bytes(url) == b"again"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]


def test_files_in_the_making_are_not_listed(tmp_path):
    url = str(tmp_path / "x.parquet")
    with storage.staged(url) as path:
        path.write_bytes(b"1")
        assert storage.list_files(str(tmp_path), ".parquet") == {}
    assert storage.list_files(str(tmp_path), ".parquet") == {url: 1}
    assert storage.list_files(str(tmp_path / "none"), ".parquet") == {}


def test_other_file_systems_by_url():
    storage.write_json("memory://out/x.json", {"a": "é"})
    assert storage.read_json("memory://out/x.json") == {"a": "é"}
    assert list(storage.list_files("memory://out", ".json")) == ["memory:///out/x.json"]
    storage.write_bytes("memory://out/bad.json", b"{")
    with pytest.raises(ValueError, match=r"bad\.json: not JSON"):
        storage.read_json("memory://out/bad.json")


def test_the_sample_documents_have_urls():
    fs, path = storage.filesystem("samples:book.jsonl.gz")
    assert fs.size(path) > 10_000


@pytest.fixture
def folder(tmp_path):
    for category in ("a", "b"):
        ids = [f"{category}{i}" for i in range(100)]
        table = labelled_table(category, ids, [i / 100 for i in range(100)], [1e-7] * 100)
        write_labelled(tmp_path, category, table, {"fingerprint": "f", "runs": []})
    return tmp_path


def test_readers_agree(folder):
    path = str(folder / "labelled")
    ours = pq.read_table(path).sort_by("data_id")
    pandas = pd.read_parquet(path).sort_values("data_id")
    files = sorted(storage.list_files(path, ".parquet"))
    fast = pd.concat([fastparquet.ParquetFile(f).to_pandas() for f in files]).sort_values("data_id")
    duck = duckdb.sql(f"select * from '{path}/*/*.parquet' order by data_id").df()
    for frame in (pandas, fast, duck):
        assert frame["data_id"].tolist() == ours["data_id"].to_pylist()
        assert frame["category"].astype(str).tolist() == ours["category"].to_pylist()
        assert frame["ds"].tolist() == ours["ds"].to_pylist()
        assert [list(x) for x in frame["input_ids"]] == ours["input_ids"].to_pylist()


def test_row_groups_are_small_and_the_footer_says_what_is_inside(folder):
    (url,) = storage.list_files(str(folder / "labelled" / "category=a"), ".parquet")
    with storage.open_parquet(url) as parquet:
        assert [parquet.metadata.row_group(i).num_rows for i in range(2)] == [64, 36]
        assert storage.file_metadata(parquet) == {"fingerprint": "f", "runs": []}
    footer = fastparquet.ParquetFile(url).key_value_metadata
    assert json.loads(footer["longattn"])["fingerprint"] == "f"


def test_names_follow_contents():
    one, two = pa.array(["a", "b"]), pa.array(["a", "c"])
    assert storage.content_name(one) == storage.content_name(pa.chunked_array([["a"], ["b"]]))
    assert storage.content_name(one) != storage.content_name(two)
