"""HTTP servers on loopback that do as a test tells them, faults included.

`serve(answer)` starts one in threads of its own, so that tests of a coroutine and tests of the
command both can use it.  What it was asked is in `seen`.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request; the names of its headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """One answer, and what is wrong with it.

    cut       bytes of the body after which the connection is closed
    endless   the body is sent again and again, without a length
    drip      seconds between two bytes of the body
    silent    nothing is sent at all, until the client goes
    hold      with `cut`: the connection stays open, and nothing more comes
    raw       sent instead of an answer, then the connection is closed (endless: again and again)
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    endless: bool = False
    drip: float = 0.0
    silent: bool = False
    hold: bool = False
    raw: bytes | None = None


Answering = Callable[[Asked], Reply]


class Web(ThreadingHTTPServer):
    """A server; `host` is where, `seen` what it was asked, in order."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, answer: Answering) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.seen: list[Asked] = []
        self.stopping = threading.Event()
        self.tls: ssl.SSLContext | None = None
        self._open: set[socket.socket] = set()
        self._serving: list[threading.Thread] = []

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def paths(self, method: str = "GET") -> list[str]:
        return [one.path for one in self.seen if one.method == method]

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        thread = threading.Thread(target=self._serve_one, args=(request, client_address))
        self._serving.append(thread)
        thread.start()

    def _serve_one(self, request: socket.socket, client_address: Any) -> None:
        wrapped = request
        try:
            if self.tls is not None:
                wrapped = self.tls.wrap_socket(request, server_side=True)
                self._open.add(wrapped)
            self.finish_request(wrapped, client_address)
        except (OSError, ValueError):
            pass  # the client has gone: what it makes of that is what is tested
        finally:
            self._open -= {request, wrapped}
            wrapped.close()
            request.close()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        self.hang_up()
        for thread in self._serving:
            thread.join(10)
            assert not thread.is_alive()

    def hang_up(self) -> None:
        """Break every connection there is."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self.rfile.read(length))
        self.server.seen.append(asked)
        self._send(self.server.answer(asked))

    do_GET = do_HEAD = do_POST = do_CONNECT = _do

    def _send(self, reply: Reply) -> None:
        if reply.silent:
            self.rfile.read(1)  # the end, when the client goes
            self.close_connection = True
            return
        if reply.raw is not None:
            self.wfile.write(reply.raw)
            while reply.endless and not self.server.stopping.is_set():
                self.wfile.write(reply.raw)
            self.close_connection = True
            return
        self.send_response(reply.status)
        told = {name.lower() for name in reply.headers}
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if not told & {"content-length", "transfer-encoding"} and not reply.endless:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self._body(reply)

    def _body(self, reply: Reply) -> None:
        while reply.endless and not self.server.stopping.is_set():
            self.wfile.write(reply.body)
        if reply.drip:
            for index in range(len(reply.body)):
                self.wfile.write(reply.body[index : index + 1])
                if self.server.stopping.wait(reply.drip):
                    break
            return
        self.wfile.write(reply.body[: reply.cut])
        if reply.hold:
            self.rfile.read(1)  # the end, when the client goes
        if reply.cut is not None or reply.endless:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@contextmanager
def serve(answer: Answering, tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    """A server that answers so, gone with its connections at the end."""
    web = Web(answer)
    web.tls = tls
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield web
    finally:
        web.stop()
        thread.join()
