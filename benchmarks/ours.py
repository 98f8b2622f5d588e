"""Our side of the comparison: the same container, by the project's own layers.

`containers` is a persistent supervisor reduced to what starts and ends a job: cgroup, launcher,
exit record, reaping.  All its CPU time is counted, launcher and event loop included.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from benchmarks import measure, peers
from benchmarks.accounting import Account
from benchmarks.measure import Block
from supervisor.cgroup.api import CgroupManager, JobCgroup
from supervisor.cgroup.detect import detect
from supervisor.container import build, devices, hiding
from supervisor.container.host import Host
from supervisor.container.layers import Layers
from supervisor.container.spawn import Container, Launcher, Streams, open_launcher
from supervisor.model import JobSpec, Limits
from supervisor.record import exit_record
from supervisor.supervise.mirror import Mirrors
from supervisor.supervise.network import Bridge, Connection, Place
from supervisor.supervise.reaper import Child, ExitStatus, Lost, Reaper


@dataclass
class Shown:
    """What a job is shown of itself (`supervise.mirror`)."""

    id: str
    spec: JobSpec
    limits: Limits
    cgroup: JobCgroup

    def warn(self, text: str) -> None:
        raise RuntimeError(text)


@dataclass(frozen=True)
class Bench:
    """The parts that a start needs, made once."""

    spec: JobSpec
    records: Path
    cgroups: CgroupManager
    host: Host
    launcher: Launcher
    reaper: Reaper
    network: Bridge
    mirrors: Mirrors
    confined: bool = True
    """Whether the cgroup has a rule about devices."""

    async def job(self, name: str) -> None:
        """One job, from nothing to nothing.  Raises RuntimeError when it does not succeed."""
        cgroup = self.cgroups.create(name)
        record = self.records / name
        try:
            cgroup.apply(self.spec.limits)
            if self.confined:
                cgroup.confine(devices.rules(self.spec))
            ended = await self._connected(name, cgroup, record)
            found = exit_record.read(record)
        finally:
            cgroup.remove()
        record.unlink()
        if not isinstance(found, exit_record.ExitRecord) or found.status:
            raise RuntimeError(f"job {name}: {found}, its init {ended}")

    async def _connected(self, name: str, cgroup: JobCgroup, record: Path) -> ExitStatus | Lost:
        if self.spec.network != "bridge":
            return await self._run(self.spec, name, cgroup, record)
        async with self.network.seat(self.spec, name) as connection:
            return await self._run(connection.spec, name, cgroup, record, connection)

    async def _run(
        self,
        spec: JobSpec,
        name: str,
        cgroup: JobCgroup,
        record: Path,
        connection: Connection | None = None,
    ) -> ExitStatus | Lost:
        output = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        streams = Streams(measure.NOTHING, measure.NOTHING, measure.NOTHING, output)
        try:
            layers = Layers(None)
            with self._mirrored(spec, name, cgroup, layers):
                request = build.request(spec, name, cgroup.entry, self.host.facts(), layers)
                container = await self.launcher.start(request, streams)
                return await self._end(container, connection)
        finally:
            os.close(output)

    async def _end(self, container: Container, connection: Connection | None) -> ExitStatus | Lost:
        try:
            if connection is not None:
                await connection.connect(container)
            await container.started()
            return await self.reaper.wait_init(container.pidfd)
        finally:
            container.close()

    @contextmanager
    def _mirrored(
        self, spec: JobSpec, name: str, cgroup: JobCgroup, layers: Layers
    ) -> Iterator[None]:
        if spec.proc == "host":
            yield
            return
        shown = Shown(name, spec, spec.limits, cgroup)
        with self.mirrors.opened(shown, time_namespaces=True) as one:
            layers.mirror = str(one.directory)
            yield


@asynccontextmanager
async def opened(root: Path, work: Path) -> AsyncIterator[Bench]:
    """A launcher and cgroups for the length of a block."""
    limits = Limits(memory=peers.MEMORY, pids=peers.PIDS, cpus=peers.CPUS)
    spec = JobSpec(name="true", command=peers.COMMAND, root=str(root), limits=limits)
    reaper, host = Reaper(), Host(str(work / "launcher"))
    cgroups = detect(f"bench{os.getpid()}")

    def start(argv: Sequence[str], descriptor: int) -> Child:
        return reaper.spawn(argv, pass_fds=[descriptor])

    try:
        hidden = hiding.coverable(host.facts())
        async with (
            open_launcher(start, work / "launcher", hidden=hidden) as launcher,
            trio.open_nursery() as nursery,
        ):
            host.cover(hidden)
            network = Bridge(Place(work, None, None), (spec,), nursery, _say_nothing)
            mirrors = Mirrors(work / "proc", nursery, _fail)
            yield Bench(spec, work, cgroups, host, launcher, reaper, network, mirrors)
            await network.close()
            mirrors.clear()
            nursery.cancel_scope.cancel()
    finally:
        cgroups.close()
        host.close()


def _fail(text: str) -> None:
    raise RuntimeError(text)


def _say_nothing(_event: str, **_fields: object) -> None:
    """There is no event log here."""


def containers(work: Path, jobs: int, at_a_time: int, account: Account) -> Block:
    """`jobs` jobs by one supervisor, `at_a_time` of them at any moment."""
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        return trio.run(_containers, work / "root", Path(scratch), jobs, at_a_time, account)


async def _containers(root: Path, work: Path, jobs: int, at_a_time: int, account: Account) -> Block:
    latencies: list[float] = []

    async def worker(numbers: Iterator[int]) -> None:
        for number in numbers:
            start = time.perf_counter()
            await bench.job(f"job{number}")
            latencies.append(time.perf_counter() - start)

    async with opened(root, work) as bench:
        for number in range(measure.WARM_UP):
            await bench.job(f"warm{number}")
        numbers = iter(range(jobs))
        before, start = account.seconds(), time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_a_time):
                nursery.start_soon(worker, numbers)
        wall, cpu = time.perf_counter() - start, account.seconds() - before
    return measure.block(latencies, wall, cpu)
