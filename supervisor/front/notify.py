"""Telling a service manager how it is going, by sd_notify(3): ready, reloading, stopping, watchdog.

The protocol is one datagram of VARIABLE=VALUE lines to the unix socket that $NOTIFY_SOCKET names
("@" stands for the zero byte of an abstract one).  Whatever that socket does, no job is harmed:
the first failure is told in a warning, and then the manager is left alone.

May import: `model`, `record`, `supervise`, trio.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import trio
from attrs import frozen

from supervisor.model.state import State
from supervisor.record.eventlog import EventLog
from supervisor.supervise.instance import Instance
from supervisor.supervise.stopping import KILL_PATIENCE

CALM = 0.25
"""Seconds from a change to the STATUS that tells of it and of all others meanwhile."""

LEEWAY = 10.0
"""Seconds for our own clean-up, beyond what the jobs may take to end."""

LAST_WORD = 1.0
"""Seconds that a manager which reads nothing may keep us from ending."""


@frozen
class Address:
    """Where the manager listens, and within how many seconds it must hear of us, if at all."""

    path: str
    watchdog: float | None = None


def take(environ: MutableMapping[str, str]) -> Address | None:
    """The manager that started us, if any; its variables are taken out of `environ`.

    They are meant for this process alone: what it starts must not speak in its name.
    """
    path = environ.pop("NOTIFY_SOCKET", "")
    microseconds = environ.pop("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "")
    if not path:
        return None
    ours = microseconds.isdecimal() and int(microseconds) and pid in ("", str(os.getpid()))
    return Address(path, int(microseconds) / 1e6 if ours else None)


class Manager:
    """The manager at `address`, as long as it can be told anything."""

    def __init__(self, address: Address, log: EventLog) -> None:
        self._path = address.path
        self._log = log
        self._socket: trio.socket.SocketType | None = None
        self._turn = trio.Lock()
        self.gone = False

    async def tell(self, **variables: str | int) -> None:
        """Send `variables`; waits while the manager's queue is full, raises nothing."""
        text = "\n".join(f"{name}={value}" for name, value in variables.items())
        async with self._turn:
            try:
                if not self.gone:
                    await self._send(text.encode())
            except (OSError, ValueError) as error:
                self.gone = True
                text = f"cannot notify the service manager at {self._path}: {error}"
                self._log.emit("warning", text=f"{text}, ignoring")

    async def _send(self, data: bytes) -> None:
        if self._socket is None:
            self._socket = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM)
            await self._socket.connect(_unix_address(self._path))
        await self._socket.send(data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _unix_address(path: str) -> str:
    """$NOTIFY_SOCKET as connect(2) takes it.  Raises ValueError for another kind of address."""
    if path.startswith("@"):
        return f"\0{path[1:]}"
    if path.startswith("/"):
        return path
    raise ValueError("neither an absolute path nor an abstract socket")


@asynccontextmanager
async def informed(
    address: Address | None, instance: Instance, log: EventLog
) -> AsyncIterator[None]:
    """READY at the beginning, STOPPING at the end; STATUS and WATCHDOG while the jobs run."""
    if address is None:
        yield
        return
    manager = Manager(address, log)
    try:
        async with trio.open_nursery() as nursery:
            changed, reloads = _Changed(), _Reloads()
            log.subscribe(changed)
            log.subscribe(reloads)
            nursery.start_soon(_begin, manager, instance, changed)
            nursery.start_soon(_reloading, manager, instance, reloads)
            if address.watchdog:
                nursery.start_soon(_watchdog, manager, address.watchdog / 2)
            yield
            nursery.cancel_scope.cancel()
        with trio.move_on_after(LAST_WORD):
            await manager.tell(STOPPING=1, STATUS=status(instance))
    finally:
        manager.close()


class _Changed:
    """A subscriber of the event log that keeps in mind that something happened."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def __call__(self, _entry: Mapping[str, Any]) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


class _Reloads:
    """A subscriber of the event log that hands on when a reload begins (True) and ends (False)."""

    OF: ClassVar = {"reloading": True, "reloaded": False, "reload_failed": False}

    def __init__(self) -> None:
        self._send, self.seen = trio.open_memory_channel[bool](math.inf)

    def __call__(self, entry: Mapping[str, Any]) -> None:
        begins = self.OF.get(entry["event"])
        if begins is not None:
            self._send.send_nowait(begins)


async def _reloading(manager: Manager, instance: Instance, reloads: _Reloads) -> None:
    """RELOADING, with the time that systemd tells a stale READY by; READY when it is over."""
    async for begins in reloads.seen:
        if begins:
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            await manager.tell(RELOADING=1, MONOTONIC_USEC=now)
        else:
            await manager.tell(READY=1, STATUS=status(instance))


async def _begin(manager: Manager, instance: Instance, changed: _Changed) -> None:
    """The jobs may start: READY; STATUS after each change; STOPPING once a stop is asked for."""
    await manager.tell(READY=1, STATUS=status(instance))
    while not (manager.gone or instance.interrupted):
        await changed.wait()
        if not instance.interrupted:
            await trio.sleep(CALM)
            await manager.tell(STATUS=status(instance))
    # The manager's patience (TimeoutStopSec) knows nothing of the jobs' own.
    grace = max((job.spec.stop.grace for job in instance.jobs.values()), default=0)
    needed = grace + KILL_PATIENCE + LEEWAY
    await manager.tell(
        STOPPING=1, STATUS=status(instance), EXTEND_TIMEOUT_USEC=int(needed * 1_000_000)
    )


async def _watchdog(manager: Manager, every: float) -> None:
    """From the event loop, so that the manager hears nothing when the loop hangs."""
    while not manager.gone:
        await manager.tell(WATCHDOG=1)
        await trio.sleep(every)


_GROUP = {State.WAITING: "queued", State.BACKOFF: "queued", State.ENDED: "ended"}


def status(instance: Instance) -> str:
    """What `systemctl status` shows: "3 running, 2 queued, 5 ended"."""
    count = Counter(_GROUP.get(job.state, "running") for job in instance.jobs.values())
    shown = [name for name in ("running", "queued", "ended") if count[name] or name == "running"]
    return ", ".join(f"{count[name]} {name}" for name in shown)
