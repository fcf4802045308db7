"""What a listing says of a file's version, for each kind of store that fsspec knows."""

from datetime import UTC, datetime

import pytest

from longattn.storage.identity import identity

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "kind", "mark"),
    [
        ({"ETag": '"a-2"'}, "etag", "a-2"),
        ({"etag": "a"}, "etag", "a"),
        ({"md5Hash": "h=="}, "hash", "h=="),
        ({"blob_id": "b"}, "hash", "b"),
        ({"Content-MD5": "m"}, "hash", "m"),
        *(
            ({name: WHEN}, "time", str(WHEN.timestamp()))
            for name in ("mtime", "LastModified", "last_modified", "Last-Modified", "updated",
                         "modify", "modified", "modificationTime", "created")
        ),
        ({"mtime": 17.5}, "time", "17.5"),
        ({"modify": "20260102030405"}, "time", "20260102030405"),
    ],
)  # fmt: skip
def test_each_kind_of_mark(told, kind, mark):
    assert identity({"size": 9, **told}) == (9, f"9:{mark}", ((kind, mark),))


def test_a_checksum_says_more_than_a_time_and_all_are_kept():
    told = {"size": 0, "created": 1, "mtime": 2, "blob_id": "b", "md5Hash": "h", "etag": "e"}
    assert identity(told) == (0, "0:e", (("etag", "e"), ("hash", "h"), ("time", "2")))
    del told["etag"]
    assert identity(told) == (0, "0:h", (("hash", "h"), ("time", "2")))
    assert identity({"size": 3, "ETag": "", "etag": "e", "mtime": None}) == (
        3,
        "3:e",
        (("etag", "e"),),
    )


def test_a_weak_etag_is_none():
    assert identity({"size": 1, "ETag": 'W/"a"', "mtime": 5}) == (1, "1:5", (("time", "5"),))
    assert identity({"size": 1, "ETag": 'W/"a"'}) == (1, "1:", ())
    assert identity({"size": 1, "ETag": '"W"'}) == (1, "1:W", (("etag", "W"),))


def test_a_file_without_a_size_is_refused_by_name_without_its_secret():
    for size in ({}, {"size": None}):
        with pytest.raises(
            ValueError, match=r"^http://\*\*\*@h/x: the server does not tell its size$"
        ):
            identity({"name": "http://me:pw@h/x", "ETag": "a", **size})
