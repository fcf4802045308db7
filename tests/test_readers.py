"""The selected set of a real run, opened by the libraries of those who will train on it."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

COLUMNS = ["data_id", "category", "content", "input_ids", "lds"]


def pyarrow(folder, _):
    return pq.read_table(folder, columns=COLUMNS).to_pylist()


def pyarrow_dataset(folder, _):
    import pyarrow.dataset as ds

    return ds.dataset(folder).to_table(columns=COLUMNS).to_pylist()


def pyarrow_hive(folder, _):
    import pyarrow.dataset as ds

    return ds.dataset(folder, partitioning="hive").to_table(columns=COLUMNS).to_pylist()


def polars(folder, _):
    import polars as pl

    return pl.read_parquet(f"{folder}/**/*.parquet", columns=COLUMNS).to_dicts()


def pandas(folder, _):
    import pandas as pd

    return pd.read_parquet(folder, columns=COLUMNS).to_dict("records")


def fastparquet(folder, _):
    import pandas as pd

    return pd.read_parquet(folder, engine="fastparquet", columns=COLUMNS).to_dict("records")


def duckdb(folder, _):
    import duckdb

    found = duckdb.sql(f"select {', '.join(COLUMNS)} from '{folder}/**/*.parquet'")
    return [dict(zip(COLUMNS, row, strict=True)) for row in found.fetchall()]


def huggingface(folder, cache):
    import datasets

    found = datasets.load_dataset(
        "parquet", data_files=f"{folder}/**/*.parquet", split="train", cache_dir=str(cache)
    )
    return found.select_columns(COLUMNS).to_list()


@pytest.mark.parametrize(
    "reader",
    [pyarrow, pyarrow_dataset, pyarrow_hive, pandas, fastparquet, duckdb, polars, huggingface],
)
def test_it_reads_the_selected_set(reader, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_read(reader, finished, tmp_path)


def assert_read(reader, finished, tmp_path):
    settings, _ = finished
    folder = f"{settings.output}/selected"
    stored = [
        row
        for file in Path(folder).glob("*/*.parquet")
        for row in pq.ParquetFile(file).read(columns=COLUMNS).to_pylist()
    ]
    got = {
        row["data_id"]: {**row, "input_ids": list(row["input_ids"])}
        for row in reader(folder, tmp_path)
    }
    assert got == {row["data_id"]: row for row in stored} and len(got) == len(stored) > 20
    assert {type(row["category"]) for row in got.values()} == {str}
