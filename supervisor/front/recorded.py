"""A policy's world in a replay: the recorded time, chance that is always the same, no deeds.

What a hook does beside answering would happen again, and for real: so commands, connections and
files that are written are refused, by an audit hook (PEP 578), while one is asked.  What it reads
is as it is today.  For a process of its own (`supervise replay`), as much of it cannot be undone.

May import: `policy.asking`, trio.
"""

from __future__ import annotations

import datetime as datetime_module
import os
import random
import signal
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from supervisor.policy.asking import Ask, Hung, Reply

PATIENCE = 30.0
"""Seconds that a hook may take by the real clock: then it hangs, whatever the recorded one says."""

REFUSED = (
    "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty",
    "os.kill", "os.killpg", "signal.pthread_kill", "socket.connect", "socket.bind",
    "socket.sendto", "socket.sendmsg", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
    "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.putenv", "shutil.",
    "ctypes.", "sqlite3.connect",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Clock:
    """Recorded time, Unix seconds; a hook that sleeps moves it, for itself alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1_000_000_000)

    def sleep(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        self.now += seconds


class World:
    """What policies find instead of the time of day and of chance; `ask` is an engine's Caller."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.seed = ""
        self._asking = False

    def install(self) -> None:
        """Before any policy is loaded: it may take functions of `time` by their names."""
        clock = self.clock
        for name in ("time", "monotonic", "perf_counter"):
            setattr(time, name, clock.time)
            setattr(time, f"{name}_ns", clock.time_ns)
        time.sleep = clock.sleep  # type: ignore[assignment]
        datetime_module.datetime = _recorded_datetime(clock)  # type: ignore[misc]
        datetime_module.date = _recorded_date(clock)  # type: ignore[misc]
        os.urandom = random.randbytes
        random._urandom = random.randbytes  # type: ignore[attr-defined]
        sys.dont_write_bytecode = True
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._asking:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if writes or event.startswith(REFUSED):
            raise PermissionError(f"a policy does nothing but answer in a replay: {event}")

    async def ask(self, who: str, ask: Ask, deadline: float) -> Reply:
        """An engine's Caller: in this very thread, so that nothing depends on who is faster."""
        began = self.clock.now
        random.seed(f"{self.seed} {who}")
        try:
            with self._watched():
                reply = ask(lambda hook: _finish(hook, deadline))
            if self.clock.now - began > deadline:
                raise Hung
        finally:
            self.clock.now = began
        return reply

    @contextmanager
    def _watched(self) -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, _hangs)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, 1.0)
        self._asking = True
        try:
            yield
        finally:
            self._asking = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def _hangs(_number: int, _frame: FrameType | None) -> None:
    raise Hung


def _finish(hook: Coroutine[Any, Any, object], deadline: float) -> object:
    """Run an `async def` hook; its sleeps take no time, but count against the deadline."""
    import trio
    import trio.testing

    async def within() -> object:
        with trio.move_on_after(deadline):
            return await hook
        raise Hung

    return trio.run(within, clock=trio.testing.MockClock(autojump_threshold=0))


def _recorded_datetime(clock: Clock) -> type[datetime_module.datetime]:
    class Recorded(datetime_module.datetime):
        @classmethod
        def now(cls, tz: datetime_module.tzinfo | None = None) -> Recorded:
            return cls.fromtimestamp(clock.now, tz)

        @classmethod
        def utcnow(cls) -> Recorded:
            return cls.fromtimestamp(clock.now, datetime_module.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Recorded:
            return cls.fromtimestamp(clock.now)

    return Recorded


def _recorded_date(clock: Clock) -> type[datetime_module.date]:
    class Recorded(datetime_module.date):
        @classmethod
        def today(cls) -> Recorded:
            return cls.fromtimestamp(clock.now)

    return Recorded
