"""Speaking to an instance: a request, its answer, HTTP/1.1 by hand.

The other side is `control.http`, which sends what h11 does; this reads just that, and starts in
no time.  May import: `errors`, `front.verbs.place`.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from supervisor.errors import SupervisorError
from supervisor.front.verbs import place

PREFIX = "/v1"


class Refused(SupervisorError):
    """An answer that is an error: `status` as in HTTP, `answer` all that it said."""

    def __init__(self, status: int, answer: Mapping[str, Any]) -> None:
        super().__init__(str(answer.get("error", status)), hint=str(answer.get("hint", "")))
        self.status = status
        self.answer = answer
        self.exit_status = {400: 2, 404: 2, 409: 1}.get(status, 125)


class Lost(SupervisorError):
    """The connection ended before the answer did: the instance has gone, most likely."""


class Client:
    """An instance, by its socket; each request has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, args: argparse.Namespace) -> Client:
        """The instance that the flags of `place.instance_flags` mean.  Raises NoInstance."""
        return cls(place.find(args, os.environ))

    def get(self, *path: str, query: Mapping[str, Any] | None = None) -> Any:
        """What is at a path, whose parts are quoted here.  Raises Refused, Lost, NoInstance."""
        return self.ask("GET", *path, query=query)

    def post(self, *path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The same, of something that is done."""
        return self.ask("POST", *path, body=body)

    def ask(
        self,
        method: str,
        *path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        """A whole answer, from JSON."""
        with self.open(method, *path, query=query, body=body) as reply:
            return json.loads(reply.read())

    def lines(self, *path: str, query: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """A stream's objects, as they come."""
        with self.open("GET", *path, query=query) as reply:
            for line in reply.lines():
                yield json.loads(line)

    def open(
        self,
        method: str,
        *path: str,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> Reply:
        """Ask, and read the head of the answer.  Raises Refused, Lost, NoInstance.

        With `Upgrade` among the `headers`, a 101 leaves the connection to the caller:
        `Reply.stream`, after `Reply.early`.
        """
        stream = self._connect()
        try:
            self._send(stream, _request(method, path, query, body, headers or {}), descriptors)
            reply = Reply(stream)
            if reply.status >= 400:
                raise Refused(reply.status, _error(reply))
        except OSError as error:
            stream.close()
            raise Lost(f"{self.path}: the connection is lost: {error.strerror}") from error
        except BaseException:
            stream.close()
            raise
        return reply

    def _connect(self) -> socket.socket:
        try:
            return place.connect(self.path)
        except PermissionError as error:
            hint = "ask as root or as its owner; socket_group lets others look"
            raise place.NoInstance(f"{self.path}: you may not connect", hint=hint) from error
        except OSError as error:
            hint = "start it by supervise CONFIG"
            text = f"{self.path}: no instance listens there: {str(error.strerror).lower()}"
            raise place.NoInstance(text, hint=hint) from error

    @staticmethod
    def _send(stream: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
        """The descriptors go with the first bytes.  One who refuses early may not read it all."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        try:
            sent = stream.sendmsg([data], [rights] if descriptors else [])
            stream.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError):
            pass  # its answer says why


def _request(
    method: str,
    path: Sequence[str],
    query: Mapping[str, Any] | None,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
) -> bytes:
    given = {key: value for key, value in (query or {}).items() if value is not None}
    words = urlencode(given, doseq=True)
    target = "/".join((PREFIX, *(quote(part, safe="") for part in path)))
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{method} {target}{'?' if words else ''}{words} HTTP/1.1",
        "Host: supervise",
        f"Content-Length: {len(content)}",
        *([] if "Upgrade" in headers else ["Connection: close"]),
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def _error(reply: Reply) -> Mapping[str, Any]:
    try:
        answer = json.loads(reply.read())
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": f"HTTP status {reply.status}"}


class Reply:
    """An answer whose head has been read.  `stream` is the connection, for a take-over."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._data = b""
        head = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        self.status = int(head[0].split(" ", 2)[1])
        pairs = (line.partition(":") for line in head[1:])
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stream.close()

    @property
    def early(self) -> bytes:
        """What has been read beyond the head."""
        return self._data

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self.parts())

    def lines(self) -> Iterator[bytes]:
        """Line by line, as they come."""
        rest = b""
        for part in self.parts():
            *whole, rest = (rest + part).split(b"\n")
            yield from whole
        if rest:
            yield rest

    def parts(self) -> Iterator[bytes]:
        """As it comes.  Raises Lost when the end is missing."""
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._until(b"\r\n"), 16):
                yield self._exactly(size)
                self._exactly(2)
        else:
            yield self._exactly(int(self.headers.get("content-length", "0")))

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self._more()
        data, self._data = self._data[:size], self._data[size:]
        return data

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._more()
        data, _, self._data = self._data.partition(end)
        return data

    def _more(self) -> None:
        try:
            data = self.stream.recv(65536)
        except OSError as error:
            raise Lost(f"the connection to the instance is lost: {error.strerror}") from error
        if not data:
            raise Lost("the connection to the instance is lost: it has ended, most likely")
        self._data += data
