"""An HTTP proxy on the loopback interface, between a sender and a tracking server, that can be told to misbehave."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What the sender asked for: when (``time.monotonic``), and what."""

    at: float
    method: str
    path: str
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """An answer of the proxy's own; the server is not asked."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error_code": "INTERNAL_ERROR", "message": "made up"}'


@dataclass(frozen=True)
class Late:
    """The request is passed on after so many seconds."""

    seconds: float


#: The connection ends at once; nothing is ever answered; half of the request reaches the server; the server does what
#: was asked but its answer is cut in the middle, or is not what it said.
RESET, SILENCE, HALF_REQUEST, HALF_ANSWER, WRONG_ANSWER = "reset", "silence", "half request", "half answer", "wrong"

Fault = str | Answer | Late | None


class Proxy:
    """Passes requests on to `upstream` (a port), unless `fault`, asked for each of them, says otherwise."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault: Callable[[Request], Fault] = lambda request: None
        self.requests: list[Request] = []
        #: What became of each request, in the order in which they were finished.
        self.met: list[tuple[Request, Fault]] = []
        self._lifted = threading.Event()
        self._server: http.server.ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self.port = 0
        self.listen()
        self.uri = f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Take connections, again on the same port."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def refuse(self) -> None:
        """Take no connections, and end those that are open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._open):
            _reset(connection)

    def heal(self) -> None:
        """Pass everything on from here."""
        self.fault = lambda request: None
        self._lifted.set()
        self._lifted = threading.Event()
        if self._server is None:
            self.listen()

    def close(self) -> None:
        self._lifted.set()
        self.refuse()


def _reset(connection: socket.socket) -> None:
    # Closed with something to say and no time to say it, a connection ends by RST.
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Proxy

    def setup(self) -> None:
        super().setup()
        self.owner._open.add(self.connection)

    def finish(self) -> None:
        self.owner._open.discard(self.connection)
        try:
            super().finish()
        except (OSError, ValueError):
            pass

    def log_message(self, *args: object) -> None:
        pass

    def _handle(self) -> None:
        at = time.monotonic()
        length = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if "Transfer-Encoding" in self.headers else self.rfile.read(length)
        request = Request(at, self.command, self.path, body)
        self.owner.requests.append(request)
        fault = self.owner.fault(request)
        try:
            self._meet(request, fault)
        except OSError:
            self.close_connection = True
        self.owner.met.append((request, fault))

    def _chunks(self) -> bytes:
        """The body of a request whose length is not said before, as that of an empty file is not by ``requests``."""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _meet(self, request: Request, fault: Fault) -> None:
        if isinstance(fault, Answer):
            return self._answer(fault.status, fault.headers, fault.body)
        if isinstance(fault, Late):
            time.sleep(fault.seconds)
        if fault in (RESET, SILENCE):
            if fault == SILENCE:
                self.owner._lifted.wait(60)
            self.close_connection = True
            return _reset(self.connection)
        if fault == HALF_REQUEST:
            self._send_half(request)
            self.close_connection = True
            return _reset(self.connection)
        connection = http.client.HTTPConnection("127.0.0.1", self.owner.upstream, timeout=60)
        own = ("connection", "accept-encoding", "content-length", "transfer-encoding")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
        connection.request(request.method, request.path, request.body or None, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kept = {k: v for k, v in answer.getheaders() if k.lower() in ("content-type", "content-disposition")}
        if fault == WRONG_ANSWER:
            content = bytes(byte ^ 0x5A for byte in content) or b"\xff"
        self._answer(answer.status, kept, content, cut=fault == HALF_ANSWER)
        return None

    def _send_half(self, request: Request) -> None:
        with socket.create_connection(("127.0.0.1", self.owner.upstream), timeout=10) as upstream:
            head = f"{request.method} {request.path} HTTP/1.1\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            upstream.sendall(head.encode() + b"\r\n" + request.body[: len(request.body) // 2])
            time.sleep(0.1)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.close_connection = True
            _reset(self.connection)
