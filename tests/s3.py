"""An S3 store on loopback: moto in a process of its own, and before it a proxy that answers badly when told to.

Other processes reach it through the environment variables of S3.environment.
"""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

HOST = "127.0.0.1"
ACCESS_KEY = "AKIARECOGNISABLE0KEY"
SECRET_KEY = "recognisable/secret+not/for+any+message0"
SECRETS = (ACCESS_KEY, SECRET_KEY)

Kind = Literal["error", "slow-down", "denied", "drop", "lost", "truncated", "stall", "hang", "slow"]
ANSWERS = {
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "slow-down": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}

# It ends when its standard input does, so that it outlives no test process, however that ends.
SERVER = f"""
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("{HOST}", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


class Request(NamedTuple):
    """What a client asked; `path` is decoded, with the query: /bucket/key?x-id=GetObject."""

    method: str
    path: str
    fault: Kind | None


@dataclass
class Fault:
    """See S3.fault."""

    kind: Kind
    method: str
    path: str
    times: float
    after: int
    seconds: float

    def takes(self, method: str, path: str) -> bool:
        if self.times <= 0 or not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Rules:
    """What the proxy shall answer badly, and what it has been asked."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def take(self, method: str, path: str) -> Fault | None:
        with self.lock:
            fault = next((fault for fault in self.faults if fault.takes(method, path)), None)
            self.requests.append(Request(method, path, fault.kind if fault else None))
            return fault

    def clear(self) -> None:
        """Forget faults and requests, and let go of the connections that hang."""
        with self.lock:
            self.faults.clear()
            self.requests.clear()
            self.over.set()
            self.over = threading.Event()


class Proxy(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__((HOST, 0), Handler)
        self.upstream = port
        self.rules = Rules()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # clients give up, as they should
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Proxy

    def answer(self) -> None:
        fault = self.server.rules.take(self.command, unquote(self.path))
        over = self.server.rules.over
        kind = fault.kind if fault else None
        if fault and kind == "hang":
            over.wait(fault.seconds)
        if kind in ("drop", "hang"):
            self.close_connection = True
            return
        body = self.body()
        if fault and kind in ANSWERS:
            self.refuse(*ANSWERS[fault.kind])
            return
        if fault and kind == "slow":
            over.wait(fault.seconds)
        status, reason, headers, data = self.forward(body)
        if kind == "lost":
            self.close_connection = True
            return
        self.send_response_only(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault and kind in ("truncated", "stall"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if kind == "stall":
                over.wait(fault.seconds)
            self.close_connection = True
            return
        self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def handle_expect_100(self) -> bool:
        return True  # body() says to go on

    def body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.wfile.flush()
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def forward(self, body: bytes) -> tuple[int, str, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(HOST, self.server.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            dropped = HOP_BY_HOP - ({"content-length"} if self.command == "HEAD" else set())
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in dropped]
            return response.status, response.reason, headers, response.read()
        finally:
            connection.close()

    def refuse(self, status: int, code: str, message: str) -> None:
        data = b""
        if self.command != "HEAD":
            text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>0</RequestId></Error>"
            data = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(NamedTuple):
    """A running store: the proxy, and a boto3 client that goes past it."""

    proxy: Proxy
    client: Any


@contextmanager
def serving() -> Iterator[Server]:
    """The store, for as long as the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    proxy = None
    try:
        import boto3  # a second's work, while the server starts
        import s3fs  # noqa: F401
        from botocore.config import Config

        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"moto did not start: status {process.wait()}"
        port = int(line)
        proxy = Proxy(port)
        threading.Thread(target=proxy.serve_forever, args=(0.05,), name="s3-proxy", daemon=True).start()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{HOST}:{port}",
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(proxies={}, s3={"addressing_style": "path"}),
        )
        yield Server(proxy, client)
        client.close()
    finally:
        if proxy is not None:
            proxy.rules.clear()
            proxy.shutdown()
            proxy.server_close()
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class S3:
    """A bucket of one test. Put, get, keys and uploads go past the proxy: they meet no fault and are not counted."""

    server: Server
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.server.proxy.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs; the fixture sets it in this process, and so in those that it starts."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # The user's own settings stay out of it.
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }

    def fault(
        self, kind: Kind, method: str = ".*", path: str = "", times: float = 1, after: int = 0, seconds: float = 60
    ) -> None:
        """Answer the next `times` requests (math.inf: all) badly whose method is `method` and whose decoded path,
        with the query, has `path` in it (regular expressions); `after` such requests go well before. The first of
        several faults that match comes first.

        error (500), slow-down (503), denied (403): these answers, in S3's XML; the request is not carried out.
        drop: not carried out, and closed, maybe before its body has come; lost: carried out, but closed unanswered.
        truncated: half the body, then closed; stall: half the body, then nothing for `seconds`, then closed.
        hang: not carried out, its body not even taken, nothing for `seconds`, then closed.
        slow: a good answer, after `seconds`.
        """
        rules = self.server.proxy.rules
        with rules.lock:
            rules.faults.append(Fault(kind, method, path, times, after, seconds))

    def clear(self) -> None:
        """Forget the faults and the requests so far."""
        self.server.proxy.rules.clear()

    @property
    def requests(self) -> list[Request]:
        """All requests since the start of the test or clear(), bad answers included."""
        rules = self.server.proxy.rules
        with rules.lock:
            return list(rules.requests)

    def count(self, method: str = ".*", path: str = "") -> int:
        """Requests so far, matched as in fault()."""
        return sum(bool(re.fullmatch(method, r.method) and re.search(path, r.path)) for r in self.requests)

    def put(self, key: str, data: bytes) -> None:
        self.server.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        data: bytes = self.server.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return data

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.server.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def uploads(self) -> int:
        """Multipart uploads neither completed nor aborted."""
        return len(self.server.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))

    def reset(self) -> None:
        """Drop all buckets, faults and requests."""
        self.clear()
        connection = HTTPConnection(HOST, self.server.proxy.upstream, timeout=60)
        try:
            connection.request("POST", "/moto-api/reset")
            assert connection.getresponse().status == 200
        finally:
            connection.close()


def free_port() -> int:
    """A port of loopback where nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
