"""Files behind presigned URLs are read in a run, and the query that is a key to them is kept nowhere."""

import http.server
import json
import logging
import threading
from urllib.parse import parse_qs, quote, urlsplit

import boto3
import pytest
import typer
from botocore.config import Config

import longattn as la
from longattn import command
from longattn.reports.report import write_report
from tests.conftest import _first_document, config
from tests.test_security import everything

QUERY = (
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20261126%2Fus-east-1%2Fs3%2F"
    "aws4_request&X-Amz-Date=20261126T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&"
    "X-Amz-Security-Token=VG9rZW4%2Bc2VjcmV0&X-Amz-Signature=0f1e2d3c4b5a69788796a5b4c3d2e1f0"
)
SECRETS = ["AKIDEXAMPLE", "VG9rZW4", "0f1e2d3c4b5a", "X-Amz-Signature"]


def lines() -> bytes:
    text = _first_document("book")
    documents = [json.dumps({"content": text[p : p + 7000]}) for p in range(0, 28_000, 7000)]
    return "\n".join([*documents, "not json", ""]).encode()


class Signed(http.server.BaseHTTPRequestHandler):
    """Gives a file to a GET with the whole query, as a store does: a presigned URL is of one method."""

    def do_GET(self):
        if urlsplit(self.path).query != QUERY:
            self.send_error(403)
            return
        data, asked = self.server.data, self.headers.get("Range")
        first, last = 0, len(data) - 1
        if asked:
            ends = asked.removeprefix("bytes=").split("-")
            first, last = int(ends[0]), min(int(ends[1] or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])

    def do_HEAD(self):
        self.send_error(403)

    def log_message(self, *_):
        pass


@pytest.fixture
def signed():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Signed)
    server.data = lines()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/corpus/a.jsonl?{QUERY}"
    server.shutdown()
    server.server_close()


def at(url, output, checkpoint):
    settings = config("", output, checkpoint)
    source = settings.sources[0].model_copy(update={"path": url})
    return settings.model_copy(update={"sources": (source,)})


def read_and_kept(url, tmp_path, checkpoint, caplog, capfd) -> tuple[int, list[str]]:
    """Windows of a run, and all that it, a second one, its report and `verify` wrote and said."""
    settings = at(url, tmp_path / "out", checkpoint)
    with caplog.at_level(logging.DEBUG):
        summary = la.run(settings, executor="local")
        again = la.run(settings, executor="local")
        write_report(settings.output)
        assert list(la.verify(settings.output)) == []
    assert summary.categories["book"].quarantine == {"not_json": 1}
    assert again.categories["book"].windows == summary.categories["book"].windows > 0
    said = [record.getMessage() for record in caplog.records if record.name == "longattn"]
    written = list(everything(settings.output))
    shown = f"{url.partition('?')[0]}?***"
    assert sum(shown in text for text in written) >= 4  # labelled, quarantine, marker, run.json
    out, err = capfd.readouterr()
    err = "\n".join(
        line for line in err.splitlines() if '] "' not in line
    )  # what moto's server logs
    return summary.categories["book"].windows, [*written, *said, out, err]


def test_a_presigned_url_is_read_and_its_query_kept_nowhere(
    signed, tmp_path, checkpoint, caplog, capfd
):
    windows, told = read_and_kept(signed, tmp_path, checkpoint, caplog, capfd)
    assert windows == 16
    assert [s for s in SECRETS if any(s in text for text in told)] == []


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_url_that_a_store_presigned(s3, tmp_path, checkpoint, version, caplog, capfd):
    client = boto3.client("s3", endpoint_url=s3, config=Config(signature_version=version))
    client.put_object(Bucket="bucket", Key="signed/a b.jsonl", Body=lines())
    place = {"Bucket": "bucket", "Key": "signed/a b.jsonl"}
    url = client.generate_presigned_url("get_object", Params=place)
    query = parse_qs(urlsplit(url).query)
    name = "X-Amz-Signature" if version == "s3v4" else "Signature"
    secrets = [name, *query[name], quote(query[name][0])]
    windows, told = read_and_kept(url, tmp_path, checkpoint, caplog, capfd)
    assert windows == 16
    assert [s for s in secrets if any(s in text for text in told)] == []
    later = client.generate_presigned_url("get_object", Params=place, ExpiresIn=7200)
    assert later != url
    settings = at(later, tmp_path / "out", checkpoint)
    with caplog.at_level(logging.WARNING, "longattn"):
        caplog.clear()
        assert la.run(settings, executor="local").splits["read"] == 0
    assert [line for line in caplog.messages if "gone" in line or "changed" in line] == []


def test_what_a_store_refuses_tells_no_signature(signed, tmp_path, checkpoint, capfd):
    settings = at(signed.replace("900", "1"), tmp_path, checkpoint)
    with pytest.raises(typer.Exit):
        command.guarded(lambda: la.run(settings, executor="local"))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "/corpus/a.jsonl?***" in said and "403" in said
    assert [s for s in SECRETS if s in said] == []
