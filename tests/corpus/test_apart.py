from types import SimpleNamespace

import pytest

from longattn.corpus.apart import require_apart
from longattn.errors import ConfigError


def check(source, output):
    require_apart([SimpleNamespace(path=source)], output)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("/data", "/data/out"),
        ("/data/", "/data"),
        ("/data/*", "/data/out"),
        ("/data/**/*.parquet", "/data/deep/out"),
        ("/data/{raw,out}/**", "/data/out"),
        ("/data/out/labelled", "/data/out"),
        ("/d?ta/*/*/*/*.parquet", "/data/out"),
        ("s3://bucket/corpus", "s3://bucket/corpus/out"),
        ("s3://bucket/**", "s3://bucket/out"),
        ("/data/out", "/data/out/"),
        ("/data/[no]ut/*/a/*.parquet", "/data/out"),
        ("/data/out/labelled/a/x.parquet", "/data/out"),
        ("/{data,d}/out/selected/a/*.parquet", "/data/out"),
        ("/data/out/quarantine/*", "/data/out"),
        ("https://h/data", "https://h/data/out"),
    ],
)
def test_an_output_that_a_source_reads_is_refused_with_both_names(source, output):
    with pytest.raises(ConfigError) as refused:
        check(source, output)
    assert source in str(refused.value) and output in str(refused.value)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("/data/raw", "/data/out"),
        ("/data/raw", "/data/raw-out"),
        ("/data/*.jsonl", "/data/out"),
        ("/data/*/*.jsonl.zst", "/data/out"),
        ("/data", "s3://data/out"),
        ("s3://bucket/a", "s3://other/a"),
        ("samples:book.jsonl.gz", "/data/out"),
        ("/data/{raw,more}/**", "/data/out"),
        ("/data/outer/*", "/data/out"),
        ("/data/out*/*.jsonl", "/data/out"),
        ("webhdfs://a:9870/data", "webhdfs://b:9870/data/out"),
    ],
)
def test_others_are_not(source, output):
    check(source, output)


@pytest.mark.parametrize(("source", "output"), [("raw", "link/out"), ("link", "raw/out")])
def test_a_symbolic_link_does_not_hide_that_they_are_one(tmp_path, source, output):
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    for pattern in ("", "/**/*.parquet"):
        with pytest.raises(ConfigError):
            check(f"{tmp_path}/{source}{pattern}", f"{tmp_path}/{output}")
