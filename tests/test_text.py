"""Text for people: no secret and no control character is in it."""

import pytest

from longattn.text import counted, counted_are, printable, without_secrets, without_signature


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SEC/RET@bucket/x", "s3://***@bucket/x"),
        ("s3a://KEY:S+/E/@bucket", "s3a://***@bucket"),
        ("s3://KEY:SECRET/bucket/x", "s3://***"),
        ("a s3://K:S@b/x: denied, s3://b/a:b@c", "a s3://***@b/x: denied, s3://b/a:b@c"),
        ("s3://arn:aws:s3:eu:1:accesspoint/n/k@x", "s3://arn:aws:s3:eu:1:accesspoint/n/k@x"),
        ("ftp://me:pa/ss@h:21/x", "ftp://***@h:21/x"),
        ("sftp://me@h/x", "sftp://***@h/x"),
        ("http://h:8080/a@b", "http://h:8080/a@b"),
        ("https://h/x.jsonl?X-Sig=a/b&e=1 failed", "https://h/x.jsonl?*** failed"),
        ("a\nb\x1b[2J\u202e\x85 é\u00a0日", "a\\nb\\x1b[2J\\u202e\\x85 é\u00a0日"),
    ],
)
def test_without_secrets(text, shown):
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("signed", "plain"),
    [
        ("https://b/k?X-Amz-Date=1&versionId=3&x-amz-signature=a%2Fb", "https://b/k?versionId=3"),
        ("https://b/k?AWSAccessKeyId=K&Signature=a%3D&Expires=17", "https://b/k"),
        ("https://b/k?Expires=17&Policy=p&Signature=s&Key-Pair-Id=k&n=1#f", "https://b/k?n=1#f"),
        (
            "https://g/k?X-Goog-Expires=1&generation=7&X-Goog-Signature=0a",
            "https://g/k?generation=7",
        ),
        ("https://a/k?sv=2022&se=x&sr=b&sp=r&sig=a%3D&snapshot=t", "https://a/k?snapshot=t"),
        ("https://h/get?file=a.jsonl&se=x&expires=3", "https://h/get?file=a.jsonl&se=x&expires=3"),
        ("https://h/a?", "https://h/a?"),
        ("s3://b/a?X-Amz-Signature=s", "s3://b/a?X-Amz-Signature=s"),
        ("/a?sig=b", "/a?sig=b"),
    ],
)
def test_without_signature(signed, plain):
    assert without_signature(signed) == plain
    assert without_signature(plain) == plain


def test_printable_leaves_what_can_be_printed():
    assert printable("plain \\n é 日本 👩‍👩‍👧") == "plain \\n é 日本 👩‍👩‍👧"
    assert printable("\ud800\x7f\u2028") == "\\ud800\\x7f\\u2028"


def test_one_of_a_kind_is_told_as_one():
    assert [counted(n, "window") for n in (0, 1, 1234)] == [
        "0 windows",
        "1 window",
        "1,234 windows",
    ]
    assert counted(2, "batch", "batches") == "2 batches"
    assert [counted_are(n, "split") for n in (1, 2)] == ["1 split is", "2 splits are"]
