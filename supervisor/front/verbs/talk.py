"""A conversation with an instance on a connection that was taken over: objects, a line each.

The other side is `control.exec`.  May import: `errors`, `front.verbs.client`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from supervisor.front.verbs.client import Client, Lost, Reply

CHUNK = 64 * 1024
_LOST = "the connection to the instance is lost: it has ended, most likely"
GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Talk:
    """One conversation.  `descriptor` is the last that has come, or -1; it is closed with it."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._data = reply.early
        self.descriptor = -1
        self.queue: list[dict[str, Any]] = []
        """What has come and was not taken yet."""
        self.say({"ready": True})

    @classmethod
    def open(
        cls,
        client: Client,
        protocol: str,
        *path: str,
        body: Mapping[str, Any],
        descriptors: Sequence[int] = (),
    ) -> Talk:
        """Raises Refused, Lost, NoInstance."""
        headers = {"Connection": "upgrade", "Upgrade": protocol}
        return cls(client.open("POST", *path, body=body, headers=headers, descriptors=descriptors))

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._reply.stream.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def fileno(self) -> int:
        return self._reply.stream.fileno()

    def say(self, told: Mapping[str, Any]) -> None:
        """Raises Lost."""
        try:
            self._reply.stream.sendall(json.dumps(told).encode() + b"\n")
        except OSError as error:
            raise Lost(_LOST) from error

    def next(self) -> dict[str, Any]:
        """Wait for an object.  Raises Lost at the end."""
        while not self.queue:
            self.receive()
        return self.queue.pop(0)

    def receive(self) -> None:
        """Put what has come into the queue; waits until something has.  Raises Lost at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self._reply.stream, CHUNK, 4)
        except OSError as error:
            raise Lost(f"the connection to the instance is lost: {error.strerror}") from error
        for fd in fds:
            if self.descriptor >= 0:
                os.close(self.descriptor)
            self.descriptor = fd
        if not data:
            raise Lost(_LOST)
        *whole, self._data = (self._data + data).split(b"\n")
        self.queue += [json.loads(line) for line in whole]


class Heard:
    """Signals that have come: `fd` is readable when there are some, a call gives them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __call__(self) -> list[int]:
        try:
            return list(os.read(self.fd, CHUNK))
        except BlockingIOError:
            return []


@contextmanager
def signals(numbers: Sequence[int]) -> Iterator[Heard]:
    """Within the block these are collected, and do nothing else."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _ignore) for number in numbers}
    try:
        yield Heard(reader)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(reader)
        os.close(writer)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Python has written its number to the wake-up descriptor already."""


class Dialogue(ABC):
    """From the request to the end, copying meanwhile: what `exec` and `attach` have in common.

    `copying` has `wanted()`, `ready(fd, events)`, `fit()`, `drain()` and `left`.
    """

    def __init__(self, talk: Talk, copying: Any, heard: Heard) -> None:
        self._talk = talk
        self._copying = copying
        self._heard = heard

    def held(self) -> int:
        """The exit status.  Raises Lost."""
        status = self._heed()
        while status is None:
            status = self._wait()
        return status

    def _wait(self) -> int | None:
        """For whatever comes first; the exit status when it is over."""
        look = select.poll()
        for fd, events in self._copying.wanted().items():
            look.register(fd, events)
        for fd in (self._heard.fd, self._talk.fileno()):
            look.register(fd, select.POLLIN)
        for fd, events in look.poll():
            status = self._ready(fd, events)
            if status is not None:
                return status
        return None

    def _ready(self, fd: int, events: int) -> int | None:
        if fd == self._heard.fd:
            found = (self.obey(number) for number in self._heard())
            return next((status for status in found if status is not None), None)
        if fd == self._talk.fileno():
            self._talk.receive()
            return self._heed()
        self._copying.ready(fd, events)
        return self.leave() if self._copying.left else None

    def _heed(self) -> int | None:
        """What the instance has said; the exit status if that was the end."""
        while self._talk.queue:
            status = self.heed(self._talk.queue.pop(0))
            if status is not None:
                return status
        return None

    @abstractmethod
    def obey(self, number: int) -> int | None:
        """A signal has come; the exit status if it ends us."""

    @abstractmethod
    def heed(self, told: Mapping[str, Any]) -> int | None:
        """The instance has said this; the exit status if it was the last."""

    def leave(self) -> int:
        """The operator has typed the keys that detach; the exit status."""
        return 0


def typed() -> bytes | None:
    """What has come on stdin: None if nothing has, empty at its end."""
    try:
        return os.read(0, CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def write_all(fd: int, data: bytes) -> None:
    """All of it, also where somebody has made the descriptor not wait.  Raises OSError."""
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            room = select.poll()
            room.register(fd, select.POLLOUT)
            room.poll()
