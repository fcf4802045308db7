"""Files on other people's stores: what tells that a file is the same, hosts, names, secrets, silence."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote, unquote

import boto3
import fsspec
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from longattn.config import Config
from longattn.corpus.reading import read_split
from longattn.corpus.records import check_unchanged, pack_task, unpack_task
from longattn.corpus.sources import list_splits
from longattn.errors import ConfigError
from longattn.storage.files import UrlOf, filesystem, list_files, storage_errors
from longattn.storage.identity import identity
from tests.corpus.files import ROWS, TEXTS, Source, jsonl, parquet, put, read, splits_of, texts
from tests.s3 import moto_server

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)

# ------------------------------------------------------------------------------- the same file or not


@pytest.mark.parametrize(
    ("listed", "opened", "same"),
    [
        ({"ETag": '"a"'}, {"ETag": '"a"'}, True),
        ({"ETag": '"a"'}, {"ETag": '"b"'}, False),
        ({"ETag": '"a"'}, {"etag": "a"}, True),
        ({"ETag": '"a"'}, {}, True),
        ({}, {"ETag": '"a"'}, True),
        ({"ETag": 'W/"a"'}, {"ETag": 'W/"b"'}, True),
        ({"ETag": '"a"'}, {"ETag": 'W/"a"'}, True),
        ({"ETag": '"a"'}, {"LastModified": NOW}, True),
        ({"ETag": '"a"', "LastModified": NOW}, {"LastModified": NOW.replace(hour=1)}, False),
        ({"ETag": '"a"', "LastModified": NOW}, {"ETag": '"a"', "LastModified": NOW.replace(hour=1)}, True),
        ({"LastModified": NOW}, {"LastModified": NOW.replace(microsecond=0)}, True),
        ({"LastModified": NOW}, {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}, True),
        ({"LastModified": NOW}, {"Last-Modified": "Fri, 02 Jan 2026 03:04:07 GMT"}, False),
        ({"mtime": NOW.timestamp()}, {"modify": "20260102030405"}, True),
        ({"mtime": NOW.timestamp()}, {"modificationTime": int(NOW.timestamp() * 1000)}, True),
        ({"mtime": NOW.timestamp()}, {"mtime": NOW.timestamp() + 0.5}, False),
        ({"updated": "2026-01-02T03:04:05.678Z"}, {"mtime": NOW}, True),
        ({"mtime": "yesterday"}, {"mtime": NOW}, True),
        ({}, {}, True),
        ({}, {"size": 11}, False),
        ({"ETag": '"a"'}, {"ETag": '"a"', "size": 11}, False),
    ],
)  # fmt: skip
def test_marks_of_one_kind_that_both_tell_decide(listed: dict, opened: dict, same: bool) -> None:
    class Store(MemoryFileSystem):
        def info(self, path: str, **_: object) -> dict:
            return {"name": path, "type": "file", "size": 10, **listed}

    fsspec.register_implementation("told", Store, clobber=True)
    (split,) = splits_of("told://a.jsonl")
    (split,) = unpack_task(pack_task([split]))
    size, version, marks = identity({"size": 10, **opened})
    if same:
        check_unchanged(split, size, version, marks)
    else:
        with pytest.raises(ValueError, match=r"a\.jsonl: changed since it was listed"):
            check_unchanged(split, size, version, marks)


def test_ids_of_splits_stay_what_they_were(tmp_path: Path) -> None:
    """An output folder of an earlier version goes on with what it has."""
    file = put(tmp_path / "a.jsonl", b"{}")
    os.utime(file, ns=(1, 1_700_000_000_123_456_789))
    (split,) = splits_of(file)
    assert split.version == "2:1700000000123456789"
    assert identity({"size": 5, "ETag": '"abc-2"', "LastModified": NOW})[1] == "5:abc-2"
    assert identity({"size": 5, "created": NOW})[1] == f"5:{NOW.timestamp()}"
    from dataclasses import replace

    fixed = replace(split, path="/data/a.jsonl", columns=(("id", ""),), marks=(("etag", "x"),))
    assert fixed.id == "94e0d9cbb8655c8a2a2beb525a61d3e6"


# ------------------------------------------------------------------------------------------ web


@contextmanager
def web(files: dict[str, bytes], etag: str = '"{}"', ranges: bool = True) -> Iterator[str]:
    """A web server of some files, with or without ETags and ranges; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            name = unquote(self.path.partition("?")[0])
            if name.endswith("/"):
                names = [n[len(name) :] for n in files if n.startswith(name)]
                links = "".join(f'<a href="{quote(n)}">x</a>' for n in names)
                self.reply(200, links.encode(), {"Content-Type": "text/html"})
                return
            if name not in files:
                self.reply(404 if "denied" not in name else 403, b"no", {})
                return
            data, headers = files[name], {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}
            if etag:
                headers["ETag"] = etag.format(md5(data).hexdigest() if "{}" in etag else "")
            asked = self.headers.get("Range")
            if not ranges or not asked:
                headers["Accept-Ranges"] = "bytes" if ranges else "none"
                self.reply(200, data, headers)
                return
            first, last = asked.removeprefix("bytes=").split("-")
            end = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(data)}"
            self.reply(206, data[int(first) : end + 1], headers)

        do_HEAD = do_GET  # noqa: N815

        def reply(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for header in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(*header)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


NAMES = [
    "a.jsonl",
    "two words.jsonl",
    "é 日本.jsonl",
    "100%.jsonl",
    "a#b.jsonl",
    "-x.jsonl",
    "a+b&c.jsonl",
]


@pytest.mark.parametrize("etag", ['"{}"', 'W/"{}"', ""])
@pytest.mark.parametrize("ranges", [True, False])
def test_http(etag: str, ranges: bool) -> None:
    files = {f"/d/{name}": jsonl(ROWS) for name in NAMES}
    with web(files, etag, ranges) as address:
        for name in NAMES:
            assert texts(read(f"{address}/d/{quote(name)}")) == TEXTS
        assert texts(read(f"{address}/d/a.jsonl?X-Signature=ab/c%2F.d&e=1")) == TEXTS
        splits = splits_of(f"{address}/d/")
        assert len(splits) == len(NAMES)
        assert all(texts(list(read_split(split))) == TEXTS for split in splits)
        (split,) = splits_of(f"{address}/d/a.jsonl")
        files["/d/a.jsonl"] = jsonl(ROWS[::-1])
        if etag == '"{}"':
            with pytest.raises(ValueError, match="changed since it was listed"):
                list(read_split(split))


def test_http_parquet_and_parts() -> None:
    import pyarrow as pa

    files = {
        "/a.parquet": parquet(pa.table({"text": TEXTS}), row_group_size=10),
        "/a.jsonl": jsonl(ROWS),
    }
    with web(files) as address:
        for name in files:
            assert texts(read(f"{address}{name}", split_bytes=500)) == TEXTS
            assert len(splits_of(f"{address}{name}", split_bytes=500)) > 1


def test_http_that_refuses_or_is_dead_is_named() -> None:
    with web({}) as address:
        with pytest.raises(ValueError, match="matches nothing"):
            splits_of(f"{address}/none.jsonl")
        with pytest.raises(OSError, match=r"denied.*403"):
            splits_of(f"{address}/denied.jsonl")
    with pytest.raises(OSError, match=r"a\.jsonl: ClientConnectorError.*onnect"):
        splits_of(f"{address}/a.jsonl")


# ----------------------------------------------------------------------------------------- hosts


class Hosted(MemoryFileSystem):
    """A file system with its host in the URL, as FTP, SFTP, HDFS and SMB have."""

    protocol = "hosted"
    cachable = True
    root_marker = "/"

    def __init__(
        self, host: str = "", port: int = 0, username: str = "", password: str = "", **kw
    ) -> None:
        assert host == "example.org" and port == 2121, "the host is lost"
        super().__init__(**kw)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        rest = path.partition("://")[2]
        return ("/" + rest.partition("/")[2]).rstrip("/") if "://" in path else path

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict:
        from fsspec.utils import infer_storage_options

        told = infer_storage_options(url)
        return {k: told[k] for k in ("host", "port", "username", "password") if k in told}


@pytest.mark.parametrize("user", ["", "me@", "me:secret@"])
@pytest.mark.parametrize("where", ["", "/", "/*.jsonl", "/a.jsonl"])
def test_the_host_of_a_url_is_kept(user: str, where: str) -> None:
    fsspec.register_implementation("hosted", Hosted, clobber=True)
    base = f"hosted://{user}example.org:2121/hosted-corpus"
    filesystem(base)[0].pipe("/hosted-corpus/a.jsonl", jsonl(ROWS))
    (split,) = splits_of(base + where)
    assert split.path == f"{base}/a.jsonl"
    assert (
        split.source == f"hosted://{'***@' if user else ''}example.org:2121/hosted-corpus/a.jsonl"
    )
    assert texts(list(read_split(split))) == TEXTS
    assert list(list_files(base, ".jsonl")) == [f"{base}/a.jsonl"]


@pytest.mark.parametrize(
    ("url", "member", "expected"),
    [
        ("s3://bucket/a", "bucket/a/x", "s3://bucket/a/x"),
        ("s3a://bucket/a/", "bucket/a/x", "s3://bucket/a/x"),
        ("memory://a", "/a/x", "memory:///a/x"),
        ("https://h/a", "https://h/a/x", "https://h/a/x"),
        ("webhdfs://h:9870/a", "/a/x", "webhdfs://h:9870/a/x"),
        ("/data", "/data/x", "/data/x"),
    ],
)
def test_urls_of_members(url: str, member: str, expected: str) -> None:
    fs, path = filesystem(url)
    assert UrlOf(url, fs, path)(member) == expected
    assert filesystem(expected)[1] == member


# ------------------------------------------------------------------------------------ local names

HARD = [
    "-rf.jsonl",
    "a::b.jsonl",
    "a%20b.jsonl",
    "x?y.jsonl",
    "#1.jsonl",
    "back\\slash.jsonl",
    "~.jsonl",
    "a\nb.jsonl",
    "\x1b[31mred.jsonl",
    "{a,b}.jsonl",
    "a;b|c&.jsonl",
    "日本 é\u00a0.jsonl",
    "a:b@c.jsonl",
    "trailing .jsonl",
    "'\".jsonl",
    "\u202egpj.jsonl",
]


def test_any_name_is_read_and_shown_in_one_line(tmp_path: Path) -> None:
    for name in HARD:
        put(tmp_path / "d" / name, jsonl(ROWS))
    splits = splits_of(tmp_path / "d")
    assert sorted(Path(split.path).name for split in splits) == sorted(HARD)
    for split in splits:
        assert texts(list(read_split(split))) == TEXTS
        assert split.source.isprintable() or "\u00a0" in split.source
        assert texts(read(split.path)) == TEXTS
    put(tmp_path / "odd\x1b[2J\n" / "a.txt\x1b]0;x", b"")
    for path in (tmp_path / "odd\x1b[2J\n" / "a.txt\x1b]0;x", tmp_path / "no\x1b\nne"):
        with pytest.raises(ValueError, match=r"suffix|matches") as raised:
            splits_of(path)
        assert str(raised.value).isprintable()


# --------------------------------------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[object]:
    with moto_server("corpora"):
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        yield client
        s3fs.S3FileSystem.clear_instance_cache()


KEYS = [n for n in HARD if n != "a\nb.jsonl"] + [
    "deep/er/a.jsonl",
    "two//slashes.jsonl",
]


def test_s3_names_markers_and_empty_objects(bucket) -> None:
    for key in KEYS:
        bucket.put_object(Bucket="corpora", Key=f"names/{key}", Body=jsonl(ROWS))
    for key in (
        "names/",
        "names/deep/",
        "names/deep/er/",
        "names/deep_$folder$",
        "names/empty.jsonl",
    ):
        bucket.put_object(Bucket="corpora", Key=key, Body=b"")
    splits = splits_of("s3://corpora/names")
    assert {s.path for s in splits} == {f"s3://corpora/names/{k}" for k in [*KEYS, "empty.jsonl"]}
    for split in splits:
        assert texts(list(read_split(split))) == ([] if "empty" in split.path else TEXTS)
        assert texts(read(split.path)) == ([] if "empty" in split.path else TEXTS)


@pytest.mark.parametrize("listed", ["same", "none", "weak"])
@pytest.mark.parametrize("opened", ["none", "weak", "seconds"])
def test_s3_stores_whose_listing_and_head_differ(bucket, listed: str, opened: str) -> None:
    bucket.put_object(Bucket="corpora", Key="marks/a.jsonl", Body=jsonl(ROWS))
    change = {
        "same": lambda info: info,
        "none": lambda info: {k: v for k, v in info.items() if k not in ("ETag", "LastModified")},
        "weak": lambda info: {**info, "ETag": f"W/{info['ETag']}", "LastModified": None},
        "seconds": lambda info: {
            **{k: v for k, v in info.items() if k != "ETag"},
            "LastModified": info["LastModified"].replace(microsecond=0),
        },
    }
    plain = s3fs.S3FileSystem._info
    mode = listed

    async def told(self, path, *args, **kwargs):  # type: ignore[no-untyped-def]
        return change[mode](await plain(self, path, *args, **kwargs))

    with patch.object(s3fs.S3FileSystem, "_info", told):
        splits = splits_of("s3://corpora/marks/a.jsonl")
        mode = opened
        assert texts([item for split in splits for item in read_split(split)]) == TEXTS


# ---------------------------------------------------------------------------- secrets, and silence


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAKEY:SeCrEt@bucket/x",
        "s3://AKIAKEY:Se/Cr/Et@bucket/x",
        "s3a://AKIAKEY:Se/CrEt@bucket",
        "s3://AKIAKEY:SeCrEt/bucket/x",
        "s3://SeCrEt@bucket/x",
    ],
)
@pytest.mark.parametrize("read", [lambda url: list_splits([Source(url)]), Config.from_yaml])
def test_credentials_in_an_s3_url_are_refused_unseen(
    url: str, read: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level("DEBUG"),
        patch.object(
            s3fs.S3FileSystem, "__init__", side_effect=AssertionError("seen by the client")
        ),
        pytest.raises(ConfigError, match="set AWS_ACCESS_KEY_ID") as raised,
    ):
        read(url)
    for part in ("SeCrEt", "Se/", "Cr/Et", "CrEt"):
        assert part not in str(raised.value) + caplog.text


def test_a_missing_package_and_an_unknown_scheme_are_settings() -> None:
    with pytest.raises(ConfigError, match=r"gs://bucket/x: gs:// lacks a package: .*gcsfs"):
        splits_of("gs://bucket/x")
    with pytest.raises(ConfigError, match=r"nosuch://x/y: Protocol not known: nosuch"):
        splits_of("nosuch://x/y")


def test_no_credentials_say_what_to_set(tmp_path: Path) -> None:
    from botocore.exceptions import NoCredentialsError

    with (
        pytest.raises(ConfigError, match=r"s3://b/x: Unable to locate.*: set AWS_ACCESS_KEY_ID"),
        storage_errors("s3://b/x"),
    ):
        raise NoCredentialsError


@pytest.mark.parametrize("path", ["x", "x/*.jsonl", "**/x.jsonl", "{a,b}/x.jsonl"])
def test_no_credentials_name_the_url_as_it_was_given(bucket, tmp_path: Path, path: str) -> None:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    bare |= {"AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
    bare["HOME"] = str(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()
    with patch.dict(os.environ, bare, clear=True), pytest.raises(ConfigError) as refused:
        splits_of(f"s3://corpora/{path}")
    s3fs.S3FileSystem.clear_instance_cache()
    assert str(refused.value).startswith(f"s3://corpora/{path}: Unable to locate credentials: set ")


def test_a_suffix_and_an_alternative_are_named_by_their_urls(bucket) -> None:
    client = boto3.client("s3")
    client.put_object(Bucket="corpora", Key="of-a-suffix/a.pdf", Body=b"x")
    client.put_object(Bucket="corpora", Key="of-a-suffix/b.jsonl", Body=jsonl(ROWS))
    with pytest.raises(
        ValueError, match=r"^sources.0.path: s3://corpora/of-a-suffix/a.pdf: suffix not known"
    ):
        splits_of("s3://corpora/of-a-suffix/a.pdf")
    with pytest.raises(
        ValueError,
        match=r"^sources.0.path: 's3://corpora/of-a-suffix/c.jsonl' matches nothing \(an alt",
    ):
        splits_of("s3://corpora/of-a-suffix/{b,c}.jsonl")


def test_a_dead_endpoint_is_named_soon() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    with patch.dict(os.environ, environment):
        s3fs.S3FileSystem.clear_instance_cache()
        started = time.monotonic()
        with pytest.raises(
            OSError, match=rf"s3://b/x: no answer from http://127.0.0.1:{port} .*: set AWS_END"
        ):
            splits_of("s3://b/x")
        assert time.monotonic() - started < 15
        s3fs.S3FileSystem.clear_instance_cache()


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in (
        "a.parquet",
        ".b.parquet",
        "d/.c.parquet",
        "d/e.parquet",
        "f.txt",
        ".g.parquet.tmp",
    ):
        put(tmp_path / name, b"12")
    listed = list_files(str(tmp_path), ".parquet")
    assert listed == {str(tmp_path / "a.parquet"): 2, str(tmp_path / "d/e.parquet"): 2}
