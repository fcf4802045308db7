import fcntl
import json
import tempfile
import time

import boto3
import duckdb
import fastparquet
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from s3fs import S3FileSystem

from longattn.command import guarded
from longattn.config import Source
from longattn.corpus.sources import list_splits
from longattn.storage import files as storage
from longattn.storage.digests import row_digest
from longattn.storage.files import (
    ASIDE,
    STAGING,
    UrlOf,
    filesystem,
    list_files,
    read_bytes,
    read_json,
    staged,
    storage_errors,
    sweep,
    warn_if_slow,
    write_bytes,
    write_json,
)
from longattn.storage.output_folder import category_of, selection_of
from longattn.storage.tables import carried_fields, content_name, file_metadata, open_parquet
from tests.labelled import labelled_table, write_labelled
from tests.s3 import FaultyProxy, environment


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    url = str(tmp_path / "a" / "b.json")
    with pytest.raises(RuntimeError, match="half way"), staged(url) as path:
        path.write_bytes(b"half")
        assert read_bytes(url) is None
        raise RuntimeError("half way")
    assert read_bytes(url) is None
    assert list((tmp_path / "a").iterdir()) == []
    write_bytes(url, b"whole")
    write_bytes(url, b"again")
    assert read_bytes(url) == b"again"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]


def test_leftovers_of_killed_writers_are_swept_and_those_of_living_ones_are_not(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "staging"))
    (tmp_path / "staging").mkdir()
    done = tmp_path / "out/labelled/a/x.parquet"
    done.parent.mkdir(parents=True)
    half = done.with_name(f"{ASIDE}{'0' * 32}.tmp")
    others = [done.with_name(name) for name in (".x.tmp", ".longattn-notes.tmp", f"{ASIDE}0.tmp")]
    dead, living = (tmp_path / f"staging/{STAGING}{name}" for name in ("dead", "living"))
    other = tmp_path / "staging/other"
    for path in (done, half, dead, living, other, *others):
        path.write_bytes(b"x")
    with living.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep(str(tmp_path / "out"))
        assert [path.exists() for path in (done, half, dead, living, other)] == [
            True,
            False,
            False,
            True,
            True,
        ]
    sweep(str(tmp_path / "out"))
    assert not living.exists()
    assert all(path.exists() for path in others)


def test_uploads_of_killed_writers_are_aborted_below_the_output_alone(s3):
    client = boto3.client("s3")
    for key in ("swept/labelled/a.parquet", "swept-not/b.parquet"):
        upload = client.create_multipart_upload(Bucket="bucket", Key=key)
        client.upload_part(
            Bucket="bucket", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"x"
        )
    write_bytes("s3://bucket/swept/whole", b"x")
    sweep("s3://bucket/swept/")
    left = client.list_multipart_uploads(Bucket="bucket")["Uploads"]
    assert [upload["Key"] for upload in left] == ["swept-not/b.parquet"]
    assert read_bytes("s3://bucket/swept/whole") == b"x"
    client.abort_multipart_upload(Bucket="bucket", Key=left[0]["Key"], UploadId=left[0]["UploadId"])


@pytest.mark.parametrize("kind", ["500", "reset"])
def test_a_store_that_fails_for_good_ends_in_one_line(s3, monkeypatch, capfd, kind):
    monkeypatch.setattr(storage, "TRIES", 1)
    proxy = FaultyProxy(s3)
    proxy.kind = lambda: kind
    S3FileSystem.clear_instance_cache()
    source = Source(category="book", path="s3://bucket/broken/*.jsonl")
    with environment(AWS_ENDPOINT_URL=proxy.endpoint), pytest.raises(typer.Exit) as status:
        guarded(lambda: list_splits([source]))
    proxy.close()
    S3FileSystem.clear_instance_cache()
    said = capfd.readouterr().err
    assert status.value.exit_code == 1
    assert said.startswith("longattn: ") and said.count("\n") == 1 and "bucket" in said


def test_errors_of_storage_are_of_the_system_and_tell_no_secret():
    with (
        pytest.raises(FileNotFoundError, match=r"^http://\*\*\*@h/x\?\*\*\* is not there$"),
        storage_errors("http://u:pw@h/x"),
    ):
        raise FileNotFoundError("http://u:pw@h/x?sig=1 is not there")
    with (
        pytest.raises(OSError, match=r"^ftp://\*\*\*@h/x: LookupError: no y$"),
        storage_errors("ftp://u:pw@h/x"),
    ):
        raise LookupError("no y")

    class NotThereError(FileNotFoundError):
        """As clients of stores have kinds of their own, which another process may lack."""

    with (
        pytest.raises(FileNotFoundError, match=r"^memory://x: gone$") as error,
        storage_errors("memory://x"),
    ):
        raise NotThereError("gone")
    assert type(error.value) is FileNotFoundError


def test_what_takes_long_is_told(caplog):
    with warn_if_slow("listing", 60):
        pass
    assert caplog.messages == []
    with warn_if_slow("listing", 0.01):
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages == [
        "still listing; a store that does not answer is asked again and again for some time"
    ]


def test_files_in_the_making_are_not_listed(tmp_path):
    url = str(tmp_path / "x.parquet")
    with staged(url) as path:
        path.write_bytes(b"1")
        assert list_files(str(tmp_path), ".parquet") == {}
    assert list_files(str(tmp_path), ".parquet") == {url: 1}
    assert list_files(str(tmp_path / "none"), ".parquet") == {}


def test_other_file_systems_by_url():
    write_json("memory://out/x.json", {"a": "é"})
    assert read_json("memory://out/x.json") == {"a": "é"}
    assert list(list_files("memory://out", ".json")) == ["memory:///out/x.json"]
    write_bytes("memory://out/bad.json", b"{")
    with pytest.raises(ValueError, match=r"bad\.json: not JSON"):
        read_json("memory://out/bad.json")


def test_the_sample_documents_have_urls():
    fs, path = filesystem("samples:book.jsonl.gz")
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
    files = sorted(list_files(path, ".parquet"))
    fast = pd.concat([fastparquet.ParquetFile(f).to_pandas() for f in files]).sort_values("data_id")
    duck = duckdb.sql(f"select * from '{path}/*/*.parquet' order by data_id").df()
    for frame in (pandas, fast, duck):
        assert frame["data_id"].tolist() == ours["data_id"].to_pylist()
        assert frame["category"].astype(str).tolist() == ours["category"].to_pylist()
        assert frame["ds"].tolist() == ours["ds"].to_pylist()
        assert [list(x) for x in frame["input_ids"]] == ours["input_ids"].to_pylist()


def test_row_groups_are_small_and_the_footer_says_what_is_inside(folder):
    (url,) = list_files(str(folder / "labelled" / "a"), ".parquet")
    with open_parquet(url) as parquet:
        assert [parquet.metadata.row_group(i).num_rows for i in range(2)] == [64, 36]
        digest = row_digest(parquet.read().replace_schema_metadata())
        assert file_metadata(parquet) == {
            "fingerprint": "f",
            "runs": [],
            "rows": 100,
            "digest": digest.hex,
        }
    footer = fastparquet.ParquetFile(url).key_value_metadata
    assert json.loads(footer["longattn"])["fingerprint"] == "f"


def test_names_follow_contents():
    one, two = pa.array(["a", "b"]), pa.array(["a", "c"])
    assert content_name(one) == content_name(pa.chunked_array([["a"], ["b"]]))
    assert content_name(one) != content_name(two)


def test_users_columns_of_single_values_are_carried():
    of_user = {
        "n": pa.int64(),
        "when": pa.timestamp("us"),
        "label": pa.dictionary(pa.int8(), pa.string()),
    }
    left = {"ids": pa.list_(pa.int64()), "at": pa.struct([("x", pa.int8())]), "id": pa.uuid()}
    own = {"ds": pa.float64(), "ds_k2": pa.float64(), "split": pa.string()}
    fields = [
        pa.field(name, kind, metadata={"k": "v"})
        for name, kind in {**of_user, **left, **own}.items()
    ]
    carried = carried_fields([pa.schema(fields[:4]), pa.schema(fields[2:])])
    assert [(field.name, field.type, field.metadata) for field in carried] == [
        (name, of_user[name], None) for name in sorted(of_user)
    ]


def test_the_folder_of_a_selected_file_tells_its_category_and_selection():
    for url, category, name in (
        ("out/selected/book/x.parquet", "book", None),
        ("s3://b/selected/out/selected/best/code/x.parquet", "code", "best"),
    ):
        assert (category_of(url), selection_of(url)) == (category, name)


def test_a_file_system_whose_urls_lack_the_host_gets_it_from_what_was_given(monkeypatch):
    class Odd:
        def unstrip_protocol(self, path):
            return f"odd://{path}"

    fs, known = Odd(), {"odd://host/x"}

    def opened(url):
        if url not in known:
            raise OSError(f"no host in {url}")
        return fs, "/x"

    monkeypatch.setattr(storage, "filesystem", opened)
    assert UrlOf("odd://host/x", fs, "/x")("/x/y") == "odd://host/x/y"
    known.add("odd:///x")
    assert UrlOf("odd://host/x", fs, "/x")("/x/y") == "odd:///x/y"
    known.clear()
    with pytest.raises(ValueError, match="odd://host/x: its file system does not tell URLs"):
        UrlOf("odd://host/x", fs, "/x")
