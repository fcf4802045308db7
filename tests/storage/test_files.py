import fcntl
import json
import os
import tempfile
import threading
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
from longattn.errors import ConfigError
from longattn.storage import files as storage
from longattn.storage.digests import row_digest
from longattn.storage.files import (
    ASIDE,
    STAGING,
    UrlOf,
    absolute,
    exists,
    filesystem,
    join,
    list_files,
    move,
    parallel,
    read_bytes,
    read_json,
    remove,
    require_answer,
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
    dead.write_bytes(b"x")
    with monkeypatch.context() as patch:  # of another user, who may be at work in another container
        patch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        sweep(str(tmp_path / "out"))
        assert dead.exists()
    sweep("memory://out")
    assert not dead.exists()


def test_uploads_that_may_not_be_listed_are_told_and_do_no_harm(s3, monkeypatch, caplog):
    def refused(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(S3FileSystem, "call_s3", refused)
    sweep("s3://bucket/swept")
    assert caplog.messages == ["unfinished uploads may remain: s3://bucket/swept: Access Denied"]


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


class ClientError(OSError):
    """As aiohttp names what a web server answered."""

    def __init__(self, status):
        super().__init__(f"{status}, message='no'")
        self.status = status


ClientError.__module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize("status", [0, 403, 404, 410, 500])
def test_only_what_a_web_server_says_is_not_there_is_not_there(status):
    """fsspec calls everything that fails on the web a file that is not found."""
    error = FileNotFoundError("http://h/x")
    error.__cause__ = ClientError(status)
    with pytest.raises(OSError, match="http://h/x") as caught, storage_errors("http://h/x"):
        raise error
    assert isinstance(caught.value, FileNotFoundError) == (status in (404, 410))
    if status not in (404, 410):
        assert str(caught.value) == f"http://h/x: ClientError: {status}, message='no'"


@pytest.mark.parametrize(
    "name", ["NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"]
)
def test_a_client_without_credentials_says_what_to_set(name):
    error = type(name, (Exception,), {})
    with pytest.raises(ConfigError) as caught, storage_errors("s3://b/x"):
        raise error("none")
    assert str(caught.value) == (
        "s3://b/x: none: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    )


def test_an_error_without_words_is_told_by_its_kind():
    with pytest.raises(OSError, match=r"^memory://x: TimeoutError$"), storage_errors("memory://x"):
        raise type("TimeoutError", (Exception,), {})
    with (
        pytest.raises(OSError, match=r"^memory://x: gone$") as caught,
        storage_errors("memory://x"),
    ):
        raise OSError("memory://x: gone")
    assert caught.value.__context__ is None  # as it was raised


def answered(monkeypatch, url, endpoint, fails, proxies=None):
    """How often an address was asked, and which, where the first `fails` times nothing answers."""
    asked = []

    class Socket:
        close = staticmethod(lambda: asked.append("closed"))

    def connection(address, timeout):
        asked.append(address)
        assert 0 < timeout * 3 < 15
        if len(asked) <= fails:
            raise ConnectionRefusedError(111, "Connection refused")
        return Socket

    class Client:
        meta = type("Meta", (), {"endpoint_url": endpoint})

    monkeypatch.setattr(storage.socket, "create_connection", connection)
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage, "getproxies", lambda: proxies or {})
    monkeypatch.setattr(S3FileSystem, "connect", lambda fs: setattr(fs, "_s3", Client))
    S3FileSystem.clear_instance_cache()
    try:
        require_answer(url)
    finally:
        S3FileSystem.clear_instance_cache()
    return asked


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://h:9000", ("h", 9000)),
        ("http://h", ("h", 80)),
        ("https://s3.amazonaws.com", ("s3.amazonaws.com", 443)),
    ],
)
def test_a_store_is_asked_three_times_at_its_address(monkeypatch, endpoint, address):
    for fails in (0, 1, 2):
        asked = answered(monkeypatch, "s3://bucket/x", endpoint, fails)
        assert asked == [address] * (fails + 1) + ["closed"]
    with pytest.raises(
        OSError, match=rf"^s3://bucket/x: no answer from {endpoint} \(.*refused\): set AWS"
    ):
        answered(monkeypatch, "s3://bucket/x", endpoint, 3)


def test_nothing_is_asked_behind_a_proxy_or_of_another_file_system(monkeypatch):
    assert answered(monkeypatch, "s3://b/x", "http://h", 9, proxies={"http": "http://proxy"}) == []
    for url in ("/data/x", "memory://x"):
        assert answered(monkeypatch, url, "http://h", 9) == []


def test_a_listing_is_never_of_before(s3):
    """Others write, too; fsspec would keep the first listing of a folder for good."""
    assert list_files("s3://bucket/fresh", ".json") == {}
    for name in ("b", "a", "c"):
        boto3.client("s3").put_object(Bucket="bucket", Key=f"fresh/{name}.json", Body=b"12")
        assert f"s3://bucket/fresh/{name}.json" in list_files("s3://bucket/fresh/", ".json")
    listed = {f"s3://bucket/fresh/{name}.json": 2 for name in "abc"}
    assert list(list_files("s3://bucket/fresh", ".json").items()) == list(listed.items())
    boto3.client("s3").put_object(Bucket="bucket", Key="fresh/a.json", Body=b"again")
    assert read_bytes("s3://bucket/fresh/a.json") == b"again"
    remove("s3://bucket/fresh/b.json")
    assert not exists("s3://bucket/fresh/b.json") and exists("s3://bucket/fresh/c.json")


def test_a_failed_upload_leaves_nothing_at_its_place_nor_here(s3, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for url in ("s3://bucket/half", "memory://half"):
        with pytest.raises(RuntimeError, match="half way"), staged(url) as path:
            path.write_bytes(b"half")
            assert path.name.startswith(STAGING)
            raise RuntimeError("half way")
        assert read_bytes(url) is None and list(tmp_path.iterdir()) == []
        write_bytes(url, b"whole")
        assert read_bytes(url) == b"whole" and list(tmp_path.iterdir()) == []


def test_files_are_moved_and_removed(tmp_path):
    for base in (str(tmp_path), "memory://moved"):
        write_bytes(f"{base}/a", b"new")
        write_bytes(f"{base}/b/c", b"old")
        move(f"{base}/a", f"{base}/b/c")
        assert read_bytes(f"{base}/b/c") == b"new" and not exists(f"{base}/a")
        move(f"{base}/b/c", f"{base}/d/e/f")
        assert exists(f"{base}/d/e/f")
        remove(f"{base}/d/e/f")
        assert not exists(f"{base}/d/e/f")
        with pytest.raises(FileNotFoundError):
            remove(f"{base}/d/e/f")


def test_paths_are_joined_and_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert join("s3://b/", "x", "y.json") == join("s3://b", "x/y.json") == "s3://b/x/y.json"
    assert absolute("x/y") == absolute(f"file://{tmp_path}/x/y") == f"{tmp_path}/x/y"
    assert absolute("s3://b/x") == "s3://b/x"


def test_items_are_worked_on_together_and_given_in_order():
    together = threading.Barrier(4, timeout=20)

    def work(item):
        together.wait()
        return -item

    assert parallel(work, iter(range(8))) == [-item for item in range(8)]
    assert parallel(work, []) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "no credentials are taken from a URL"),
        ("s3a://key@bucket/x", "no credentials are taken from a URL"),
        ("nosuch://me:secret@h/x", "Protocol not known: nosuch"),
        ("gs://bucket/x", "gs:// lacks a package: "),
    ],
)
def test_urls_that_no_file_system_takes(url, said):
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        filesystem(url)
    assert said in str(refused.value) and "secret" not in str(refused.value)


def test_an_access_point_is_a_bucket_whose_name_has_colons():
    name = "arn:aws:s3:us-east-1:123456789012:accesspoint/mine"
    assert filesystem(f"s3://{name}/x")[1] == f"{name}/x"


def test_what_takes_long_is_told(caplog):
    with warn_if_slow("listing", 60):
        pass
    with warn_if_slow("listing", 0.05):
        pass
    time.sleep(0.1)
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
