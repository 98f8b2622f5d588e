"""One blob on its way from a registry into the store: the parts, what is tried again, the check.

May import: `image.progress`, `image.trouble`, trio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio
from attrs import define, frozen

from supervisor.image.progress import Listener, Progress
from supervisor.image.trouble import Patience, Trouble, pause, printable

if TYPE_CHECKING:
    from supervisor.image.transport import Answer

BLOCK = 1024 * 1024
"""Bytes that are gathered before they are written."""

T = TypeVar("T")
S = TypeVar("S")


class Sink(Protocol):
    """Where a blob goes.  `write` and `finish` are called in a worker thread."""

    @property
    def offset(self) -> int:
        """Bytes that are there already, of this try or of an earlier one."""

    def write(self, data: bytes) -> None:
        """Append."""

    def reset(self) -> None:
        """Throw away what is there."""

    @property
    def found(self) -> str:
        """The digest of what is there."""

    def finish(self) -> None:
        """Called when it is whole and has its digest."""


class Asked(Protocol):
    """Who is asked for a blob: `registry.Source`."""

    @property
    def name(self) -> str:
        """For people."""

    def open(
        self, method: str, what: str, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Answer]:
        """The answer to a request."""


@define
class Download:
    """One blob on its way; `attempt` is called until it is there."""

    digest: str
    size: int
    sink: Sink
    listener: Listener
    spoilt: bool = False

    async def attempt(self, source: Asked) -> None:
        if self.sink.offset > self.size:
            self.sink.reset()
        started = self.sink.offset
        try:
            if started < self.size:
                await self._rest(source)
            self._verify(started)
        except Trouble as trouble:
            if trouble.restart:
                self.sink.reset()
            raise
        await trio.to_thread.run_sync(self.sink.finish)

    def _verify(self, started: int) -> None:
        """What was there before may have been wrong: then it is tried once from the beginning."""
        found = self.sink.found
        if found != self.digest:
            again, self.spoilt = started > 0 and not self.spoilt, True
            raise Trouble(f"it sent something with the digest {found}", again=again, restart=True)

    async def _rest(self, source: Asked) -> None:
        start = self.sink.offset
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with source.open("GET", f"blobs/{self.digest}", headers) as answer:
            self._continue(answer, start)
            if answer.status not in (200, 206):
                raise await answer.refusal(source.name)
            await self._take(answer)
        if self.sink.offset < self.size:
            text = f"it ended after {self.sink.offset} of {self.size} bytes"
            raise Trouble(text, again=True)

    def _continue(self, answer: Answer, start: int) -> None:
        """Whether what comes belongs where we are (RFC 9110, 14.2); else from the beginning."""
        if answer.status == 416:
            raise Trouble("it has no such part of the blob", again=start > 0, restart=True)
        if answer.status == 200 and start:
            self.sink.reset()
        if answer.status == 206:
            told = answer.headers.get("content-range", "")
            span = f"bytes {start}-{self.size - 1}/"
            if told not in (f"{span}{self.size}", f"{span}*"):
                text = f"it sent the part {printable(told)!r} instead of {span}{self.size}"
                raise Trouble(text, again=start > 0, restart=True)
        left = self.size - self.sink.offset
        if answer.status in (200, 206) and answer.length not in (None, left):
            raise Trouble(f"it has {answer.length} bytes where the manifest says {left}")

    async def _take(self, answer: Answer) -> None:
        """The body into the sink, in large blocks, what came before a failure too."""
        block = bytearray()
        try:
            while chunk := await answer.read():
                block += chunk
                come = self.sink.offset + len(block)
                if come > self.size:
                    block.clear()
                    text = f"it sent more than the {self.size} bytes of the manifest"
                    raise Trouble(text, restart=True)
                self.listener(Progress(self.digest, "downloading", come, self.size))
                if len(block) >= BLOCK:
                    data, block = bytes(block), bytearray()
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(self.sink.write, data)
        finally:
            if block:
                self.sink.write(bytes(block))


@frozen
class Notes:
    """Tells what goes wrong on the way, and knows how far it has come."""

    digest: str
    listener: Listener
    download: Download | None = None

    @property
    def offset(self) -> int:
        return self.download.sink.offset if self.download else 0

    def tell(self, note: str) -> None:
        size = self.download.size if self.download else 0
        self.listener(Progress(self.digest, "retrying", self.offset, size, note))


async def persist(
    source: S, attempt: Callable[[S], Awaitable[T]], notes: Notes, patience: Patience
) -> T:
    """Try until it succeeds, or brings nothing `tries` times in a row.  Raises the last Trouble."""
    failures, mark = 0, notes.offset
    while True:
        try:
            return await attempt(source)
        except Trouble as trouble:
            if notes.offset - mark >= patience.step:
                failures = 0
            failures, mark = failures + 1, notes.offset
            if not trouble.again or failures >= patience.tries:
                raise
            wait = pause(trouble, failures, patience)
            notes.tell(f"{trouble.text}; again in {wait:.1f} s")
        await trio.sleep(wait)
