"""A real S3 server over HTTP, and proxies before it: one counts bytes, one breaks requests."""

import http.client
import itertools
import os
import random
import socket
import struct
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
from s3fs import S3FileSystem

KEYS = {"AWS_ACCESS_KEY_ID": "access", "AWS_SECRET_ACCESS_KEY": "hidden-secret"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def environment(**values):
    """Variables for as long as a block; a file system made before does not go on with other ones."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        for name, value in old.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        S3FileSystem.clear_instance_cache()


@contextmanager
def moto_server(bucket="bucket"):
    """Yields the endpoint URL; the environment points every client at it meanwhile."""
    from moto.server import ThreadedMotoServer  # a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    with environment(AWS_ENDPOINT_URL=endpoint, AWS_DEFAULT_REGION="us-east-1", **KEYS):
        boto3.client("s3").create_bucket(Bucket=bucket)
        try:
            yield endpoint
        finally:
            server.stop()


class CountingProxy:
    """Passes bytes between clients and an upstream server; `received` counts those to the client."""

    def __init__(self, upstream: str) -> None:
        host, port = upstream.removeprefix("http://").split(":")
        self.upstream = (host, int(port))
        self.received = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.upstream)
            threading.Thread(target=self._pump, args=(client, server, 0), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, 1), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, count: int) -> None:
        try:
            while data := source.recv(1 << 16):
                self.received += count * len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            sink.close()

    def close(self) -> None:
        self.listener.close()


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to a server, but breaks a share of them, in each way as often as in the
    others; `faults` counts what it did.

    refused: 500 or 503, not passed on. reset: the connection is torn down, the request not passed on.
    lost: passed on, so it takes effect, and the connection is torn down half way through the answer.
    stalled: never answered, until the client gives up.
    """

    daemon_threads = True
    KINDS = ("500", "503", "reset", "lost", "stalled")

    def __init__(self, upstream: str, share: float = 1 / 3, seed: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _FaultyRequest)
        self.upstream = upstream.removeprefix("http://")
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.share, self.chance, self.lock = share, random.Random(seed), threading.Lock()
        self.next_kind = itertools.cycle(self.KINDS)
        self.faults: Counter[str] = Counter()
        self.ended = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def kind(self) -> str:
        with self.lock:
            broken = self.chance.random() < self.share
            kind = next(self.next_kind) if broken else "passed"
            self.faults[kind] += 1
        return kind

    def handle_error(self, *_) -> None:
        """Clients that give up are what it is for."""

    def close(self) -> None:
        self.ended.set()
        self.shutdown()
        self.server_close()


class _FaultyRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.server.kind()
        if kind in ("500", "503"):
            self._answer(int(kind), {}, b"<Error><Code>InternalError</Code></Error>")
        elif kind == "reset":
            self._tear_down()
        elif kind == "stalled":
            self.server.ended.wait(60)
            self._tear_down()
        else:
            connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            data = response.read()
            connection.close()
            self._answer(response.status, dict(response.headers), data, lost=kind == "lost")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def _answer(self, status: int, headers: dict, data: bytes, *, lost: bool = False) -> None:
        self.send_response_only(status)
        own = ("transfer-encoding", "connection")
        for name, value in headers.items():
            if name.lower() not in own:
                self.send_header(name, value)
        if "content-length" not in map(str.lower, headers) and status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        if lost and not data:  # an answer without a body ends in its head
            self._tear_down()
            return
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if lost else data)
        if lost:
            self._tear_down()

    def _tear_down(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_) -> None:
        """Nothing."""
