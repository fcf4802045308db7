"""Secrets that a run is given reach nothing that it writes or says, and nothing leaves its folder."""

import http.server
import json
import logging
import os
import threading

import pyarrow as pa
import pytest
import typer

import longattn as la
from longattn import command
from longattn.errors import ConfigError
from longattn.pipeline.steps import LabelledSink
from longattn.storage.files import filesystem
from longattn.storage.tables import open_parquet
from tests.conftest import _first_document, config
from tests.labelled import labelled_table

PASSWORD, SIGNATURE = "pass-wörd".encode().hex(), "5161a7u7e"


class Guarded(http.server.BaseHTTPRequestHandler):
    """Gives one JSONL file to who knows the password and the signature."""

    def do_GET(self):
        allowed = self.headers.get("Authorization", "").startswith("Basic ")
        if not (allowed and SIGNATURE in self.path):
            self.send_error(403)
            return
        first, last = 0, len(self.server.data) - 1
        if asked := self.headers.get("Range"):
            ends = asked.removeprefix("bytes=").split("-")
            first, last = int(ends[0]), min(int(ends[1] or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.server.data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.server.data[first : last + 1])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def guarded():
    """A URL with a password and a signature."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded)
    text = _first_document("book")
    lines = [json.dumps({"content": text[p : p + 7000]}) for p in range(0, 28_000, 7000)]
    server.data = "\n".join([*lines, "not json", ""]).encode()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://reader:{PASSWORD}@127.0.0.1:{server.server_port}/a.jsonl?sig={SIGNATURE}.jsonl"
    server.shutdown()
    server.server_close()


def everything(output):
    """All that lies below an output folder, as text: of Parquet every value and the footer."""
    fs, path = filesystem(output)
    for name in fs.find(path):
        if name.endswith(".parquet"):
            with open_parquet(fs.unstrip_protocol(name)) as parquet:
                yield f"{parquet.schema_arrow.metadata} {parquet.metadata.metadata}"
                yield str(parquet.read().drop_columns(["category"]).to_pylist())
        yield fs.cat_file(name).decode(errors="replace")


def test_secrets_reach_nothing_that_is_written_or_said(guarded, checkpoint, s3, caplog, capfd):
    secrets = [PASSWORD, SIGNATURE, os.environ["AWS_SECRET_ACCESS_KEY"]]
    settings = config("", "s3://bucket/secrets", checkpoint)
    source = settings.sources[0].model_copy(update={"path": guarded})
    settings = settings.model_copy(update={"sources": (source,)})
    with caplog.at_level(logging.DEBUG, "longattn"):
        summary = la.run(settings, executor="local")
    assert summary.categories["book"].quarantine == {"not_json": 1}
    told = [*everything(settings.output), caplog.text, *capfd.readouterr(), settings.to_yaml()]
    shown = f"http://***@{guarded.partition('@')[2].partition('?')[0]}?***"
    assert sum(shown in text for text in told) >= 4  # labelled, quarantine, marker, run.json
    assert [s for s in secrets if any(s in text for text in told)] == []


def test_errors_tell_no_secret(guarded, checkpoint, capfd, tmp_path):
    wrong = guarded.replace(SIGNATURE, "other")
    settings = config("", tmp_path, checkpoint)
    source = settings.sources[0].model_copy(update={"path": wrong})
    settings = settings.model_copy(update={"sources": (source,)})
    with pytest.raises(typer.Exit):
        command.guarded(lambda: la.run(settings, executor="local"))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "http://***@127.0.0.1" in said
    assert PASSWORD not in said and "other" not in said


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "a=b", "/tmp/x", "a\n", "a\\b", "é", None]
)
def test_a_category_leads_nowhere_but_below_the_output(name, tmp_path):
    with pytest.raises(ConfigError, match=r"^config: sources\.0\.category: "):
        la.Config.parse(
            {"sources": [{"category": name, "path": "x"}], "output": str(tmp_path / "out")}
        )
    table = labelled_table("a", ["a-d-0"], [0.1], [0.1]).drop_columns(["category"])
    table = table.append_column("category", pa.array([name], pa.string()))
    with pytest.raises(Exception, match="a category names a folder"):
        LabelledSink(str(tmp_path / "out/deep")).write([table], None)  # as workers of Ray do
    assert not list(tmp_path.glob("**/*.parquet"))
