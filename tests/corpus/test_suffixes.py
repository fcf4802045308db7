import pytest

from longattn.corpus.sources import list_sources
from longattn.corpus.suffixes import hint, kind_of
from longattn.errors import ConfigError
from tests.corpus.files import Source


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("a.jsonl.gzip", ".jsonl.gz"),
        ("a.JSON.ZSTD", ".json.zst"),
        ("a.zstd", ".jsonl.zst"),
        ("a.csv.bzip2", ".csv.bz2"),
        ("https://x.y/a.jsonlines", ".jsonl"),
        ("a.pq", ".parquet"),
        ("notes.md", ".txt"),
    ],
)
def test_a_suffix_like_one_that_is_read_is_told_which(name, meant):
    assert kind_of(name) is None and kind_of(f"a{meant}")
    assert hint(name).startswith(f"; did you mean {meant}?")


def test_an_archive_of_files_is_to_be_unpacked_and_others_have_no_hint():
    assert hint("a.jsonl.zip").startswith("; unpack .zip files first")
    assert [hint(name) for name in ("a.pdf", "a", ".gitignore", "a.b/c")] == [""] * 4


@pytest.mark.parametrize("place", ["in", "in/a.jsonl.gzip"])
def test_a_refused_path_names_its_setting_and_what_was_meant(tmp_path, place):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl.gzip").touch()
    (tmp_path / "b.jsonl").touch()
    sources = [Source(str(tmp_path / "b.jsonl")), Source(str(tmp_path / place))]
    with pytest.raises(ConfigError, match=r"^sources\.1\.path: .*did you mean \.jsonl\.gz\?"):
        list_sources(sources)
