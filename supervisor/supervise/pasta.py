"""The network of jobs without root: one pasta(1) for each, a child of the supervisor's.

    supervisor ── posix_spawn ── setpriv --pdeathsig KILL ── exec ── pasta
        │  status: GO              joins the namespaces of ──┐          │ ready (a fifo): its pid
      job's init ◄───────────────────────────────────────────┴──────────┘

The init waits for GO meanwhile.  pasta is killed when the job has ended, and by the kernel when
the supervisor dies: then the job goes on without a network.  One that ends by itself is told of.
What it is told, and which rules hold inside, is planned in `container.pasta`.

May import: everything above `front`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import trio

from supervisor.container.spawn import Container
from supervisor.errors import KernelError, SpawnError
from supervisor.linux import nft, pasta
from supervisor.model.job import JobSpec
from supervisor.supervise.forwarder import check_free
from supervisor.supervise.netfiles import EtcFiles, as_spawn_error
from supervisor.supervise.network import Place
from supervisor.supervise.reaper import Child, ExitStatus, Lost

PATIENCE = 10.0
"""Seconds in which a pasta must be ready."""

Spawn = Callable[..., Child]


class Pasta:
    """One instance's.  `spawn` is the reaper's."""

    def __init__(
        self, place: Place, nursery: trio.Nursery, spawn: Spawn, emit: Callable[..., None]
    ) -> None:
        self._place = place
        self._nursery = nursery
        self._spawn = spawn
        self._emit = emit
        self._lock = trio.Lock()
        self._pool: IPv4Network | None = None

    def know(self, jobs: Iterable[JobSpec]) -> None:
        """Nobody reaches another job here."""

    @asynccontextmanager
    async def seat(self, spec: JobSpec, run: str) -> AsyncIterator[Link]:
        """As `network.Bridge.seat`."""
        with as_spawn_error():
            link = Link(self, spec, run, await self._open())
        try:
            with as_spawn_error():
                link.prepare()
            yield link
        finally:
            with trio.CancelScope(shield=True):
                await link.close()

    async def _open(self) -> IPv4Network:
        """A pool that no route of the host leads to: else the job could not go there."""
        async with self._lock:
            if self._pool is None:
                self._pool = await trio.to_thread.run_sync(_choose_pool, self._place)
        return self._pool

    @property
    def directory(self) -> Path:
        return self._place.runtime / "net"

    def start(self, argv: list[str], said: int) -> Child:
        """A pasta, whose complaints go to the descriptor `said`."""
        with open(os.devnull, "r+b") as null:  # noqa: PTH123
            fd = null.fileno()
            return self._spawn(argv, env={}, stdin=fd, stdout=fd, stderr=said)

    def watch(self, link: Link) -> None:
        self._nursery.start_soon(link.watch)

    def tell(self, event: str, job: str, run: str, text: str) -> None:
        self._emit(event, job=job, run=run, text=text)

    async def sweep(self) -> None:
        """Files of a supervisor that died; its pastas have died with it."""
        if self.directory.exists():
            shutil.rmtree(self.directory)

    async def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class Link:
    """One run's: `spec` is the job with its files in /etc, `connect` what lets it start."""

    def __init__(self, instance: Pasta, spec: JobSpec, run: str, pool: IPv4Network) -> None:
        from supervisor.container.pasta import Own

        self._instance = instance
        self._job = spec
        self._run = run
        self._own = Own(pool)
        self._files = EtcFiles(instance.directory, run)
        self._ready = instance.directory / f"{run}.ready"
        self._log = instance.directory / f"{run}.log"
        self._child: Child | None = None
        self._closing = False
        self.spec = spec

    def prepare(self) -> None:
        """Write the files, see that the ports are free.  OSError, SpawnError."""
        self._files.write(self._job, (self._own.address,), {})
        check_free(self._job.ports)
        self.spec = self._files.seen_by(self._job)

    async def connect(self, container: Container) -> None:
        """As `network.Connection.connect`."""
        try:
            with as_spawn_error():
                await self._connect(container.pid)
        except SpawnError:
            if container.has_news():
                await container.started()
            raise
        if container.has_news():  # it has failed, and the pid may have been somebody else's
            await container.started()
        container.go()

    async def _connect(self, pid: int) -> None:
        from supervisor.container.pasta import argv

        program, setpriv = pasta.find("pasta"), pasta.find("setpriv")
        if program is None or setpriv is None:
            what, hint = pasta.lacking() or ("pasta is gone", "")
            raise SpawnError("network", 0, "", what, hint=hint)
        os.mkfifo(self._ready, 0o600)
        fifo = os.open(self._ready, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        said = os.memfd_create("pasta", os.MFD_CLOEXEC)
        try:
            files = str(self._ready), str(self._log)
            words = [setpriv, "--pdeathsig", "KILL", "--"]
            words += argv(program, self._job, self._own, files, pid)
            self._child = self._instance.start(words, said)
            await trio.to_thread.run_sync(_close_in, self._job, pid)
            with trio.move_on_after(PATIENCE):
                if await _is_ready(fifo, self._child):
                    self._instance.watch(self)
                    return
            raise SpawnError("network", 0, program, _complaint(said))
        finally:
            os.close(fifo)
            os.close(said)
            self._ready.unlink()

    async def watch(self) -> None:
        """Tell of an end that nobody has asked for."""
        assert self._child is not None
        status = await self._child.wait()
        if not self._closing:
            text = f"pasta {_how(status)}: the job has no network any more"
            self._instance.tell("warning", self._job.name, self._run, text)

    async def close(self) -> None:
        """End it, and take its files away."""
        self._closing = True
        if self._child is not None:
            try:
                self._child.send_signal(signal.SIGKILL)
            except KernelError as error:
                self._instance.tell("cleanup_failed", self._job.name, self._run, str(error))
            await self._child.wait()
        self._files.remove()
        self._log.unlink(missing_ok=True)


def _choose_pool(place: Place) -> IPv4Network:
    from supervisor.container import network as plans
    from supervisor.linux import netlink

    tag = plans.tag_of(str(place.runtime))
    return plans.choose_pool(tag, netlink.routes(), place.pool, None)


def _close_in(job: JobSpec, pid: int) -> None:
    """The rules that hold inside; they are there before the interface is of use to anybody."""
    from supervisor.container.pasta import rules
    from supervisor.linux import netlink

    nft.apply(rules(job, netlink.addresses()), inside=pid)


async def _is_ready(fifo: int, child: Child) -> bool:
    """Wait until it says so, or has ended."""
    said = False

    async def listen(scope: trio.CancelScope) -> None:
        nonlocal said
        await trio.lowlevel.wait_readable(fifo)
        said = bool(os.read(fifo, 64))
        if said:
            scope.cancel()  # an end of file alone: it has died, and `wait` tells of it

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(listen, nursery.cancel_scope))
        await child.wait()
        nursery.cancel_scope.cancel()
    return said


def _complaint(said: int) -> str:
    text = os.pread(said, 1 << 16, 0).decode(errors="replace")
    return pasta.complaint(text) or f"not ready within {PATIENCE:g} s"


def _how(status: ExitStatus | Lost) -> str:
    if isinstance(status, Lost):
        return "has ended"
    if status.signal is not None:
        return f"was killed ({signal.Signals(status.signal).name})"
    return f"has ended with {status.code}"
