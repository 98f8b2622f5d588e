"""The network of an instance that is root's: the bridge, the rules, and a seat for each job.

Nothing is made before the first job asks for it, and all is removed at the end, or by the next
supervisor after a crash.  What is done is planned in `container.network` and `container.firewall`,
which are imported when they are needed, as is pyroute2.  Netlink and nft wait for the kernel, so
they run in worker threads.

May import: everything above `front`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from supervisor.container.spawn import Container
from supervisor.errors import KernelError, SpawnError, SupervisorError
from supervisor.model.job import JobSpec
from supervisor.supervise.forwarder import Forwarder
from supervisor.supervise.netfiles import EtcFiles, as_spawn_error

if TYPE_CHECKING:
    from supervisor.container.firewall import Opening
    from supervisor.container.network import Leases, Plan, Seat
    from supervisor.linux.netlink import Wire

FORWARD4 = Path("/proc/sys/net/ipv4/ip_forward")
FORWARD6 = Path("/proc/sys/net/ipv6/conf/all/forwarding")


@frozen
class Place:
    """Where an instance's network belongs: `lease_file` None for a one-shot run."""

    runtime: Path
    lease_file: Path | None
    pool: str | None


class Bridge:
    """One instance's network.  `jobs` are all that the configuration has."""

    def __init__(
        self,
        place: Place,
        jobs: Iterable[JobSpec],
        nursery: trio.Nursery,
        emit: Callable[..., None],
    ) -> None:
        self._place = place
        self._jobs = tuple(jobs)
        self._nursery = nursery
        self._emit = emit
        self._lock = trio.Lock()
        self._opened: tuple[Plan, Leases] | None = None

    def know(self, jobs: Iterable[JobSpec]) -> None:
        self._jobs = tuple(jobs)

    @asynccontextmanager
    async def seat(self, spec: JobSpec, run: str) -> AsyncIterator[Connection]:
        """What a run needs of it, from before its container is made until that is gone.

        Raises SpawnError (stage `network`).
        """
        with as_spawn_error():
            plan, leases = await self._open()
            seats = self._take(spec, plan, leases)
        connection = Connection(spec, plan, seats, self._place.runtime / "net", run)
        try:
            connection.prepare(self._nursery)
            yield connection
        finally:
            with trio.CancelScope(shield=True):
                for error in await connection.close():
                    self._emit("cleanup_failed", job=spec.name, run=run, text=str(error))

    def _take(self, spec: JobSpec, plan: Plan, leases: Leases) -> dict[str, Seat]:
        """Its own seat, and those of the jobs it may reach, by their names."""
        wanted = {job.name for job in self._jobs if {job.name, job.group} & set(spec.reach)}
        needed = {job.name for job in self._jobs if job.network == "bridge"} | {spec.name}
        return {
            name: plan.seat(leases.take(name, plan.numbers, needed))
            for name in (spec.name, *sorted(wanted - {spec.name}))
        }

    async def _open(self) -> tuple[Plan, Leases]:
        async with self._lock:
            if self._opened is None:
                make = partial(_make, self._place, self._warn)
                self._opened = await trio.to_thread.run_sync(make)
        return self._opened

    def _warn(self, text: str) -> None:
        trio.from_thread.run_sync(partial(self._emit, "warning", text=text))

    async def sweep(self) -> None:
        """Remove what supervisors that died have left: this instance's, and what nobody uses."""
        found = bridges()
        if found:
            for text in await trio.to_thread.run_sync(_sweep, found, str(self._place.runtime)):
                self._emit("warning", text=text)
        if (self._place.runtime / "net").exists():
            shutil.rmtree(self._place.runtime / "net")

    async def close(self) -> None:
        """Remove the bridge and the rules, if they were made."""
        if self._opened is None:
            return
        plan, _leases = self._opened
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(_unmake, plan.bridge)
            except SupervisorError as error:
                self._emit("cleanup_failed", text=str(error))
        shutil.rmtree(self._place.runtime / "net", ignore_errors=True)


class Connection:
    """One run's: `spec` is the job with its files in /etc, `connect` what lets it start."""

    def __init__(
        self, spec: JobSpec, plan: Plan, seats: Mapping[str, Seat], directory: Path, run: str
    ) -> None:
        self._plan = plan
        self._seats = seats
        self._own = seats[spec.name]
        self._files = EtcFiles(directory, run)
        self._job = spec
        self._forwarder: Forwarder | None = None
        self._wire: Wire | None = None
        self._opening: Opening | None = None
        self.spec = spec

    def prepare(self, nursery: trio.Nursery) -> None:
        """Take the ports, write the files.  SpawnError: a port is taken, a file not written."""
        with as_spawn_error():
            if self._job.ports:
                forwarder = Forwarder(self._job.ports, self._own.v4)
                if forwarder:
                    self._forwarder = forwarder
                    nursery.start_soon(forwarder.run)
            others = {name: self._addresses(seat) for name, seat in self._seats.items()}
            self._files.write(self._job, others.pop(self._job.name), others)
            self.spec = self._files.seen_by(self._job)

    def _addresses(self, seat: Seat) -> tuple[str, ...]:
        """Those at which jobs find each other: IPv6 only where it is forwarded."""
        both = seat.v6 is not None and (self._plan.forward6 or seat is self._own)
        return (seat.v4, seat.v6) if both and seat.v6 else (seat.v4,)

    async def connect(self, container: Container) -> None:
        """Complete the job's network, and let it start.

        SpawnError (stage `network`), unless the init has failed before: then it says at which.
        """
        try:
            with as_spawn_error():
                await trio.to_thread.run_sync(self._connect, container.pid)
        except SpawnError:
            if container.has_news():
                await container.started()
            raise
        container.go()

    def _connect(self, pid: int) -> None:
        from supervisor.container.firewall import Opening
        from supervisor.container.network import INSIDE
        from supervisor.linux import netlink, nft

        plan, seat, job = self._plan, self._own, self._job
        wire = netlink.Wire(
            bridge=plan.bridge,
            outside=seat.outside,
            inside=INSIDE,
            mac=seat.mac,
            v4=seat.v4,
            gateway4=plan.gateway4,
            v6=seat.v6,
            gateway6=plan.gateway6,
            route6=plan.forward6,
            rate=job.bandwidth,
        )
        opening = Opening(
            plan,
            seat,
            ports=job.ports,
            reach=tuple(seat for name, seat in self._seats.items() if name != job.name),
            egress=job.egress,
            rate=job.bandwidth,
        )
        nft.apply(opening.added())
        self._opening = opening
        netlink.connect(pid, wire)
        self._wire = wire

    async def close(self) -> list[Exception]:
        """Take everything back; what failed, after all was tried."""
        if self._forwarder is not None:
            await self._forwarder.stop()
        failed = await trio.to_thread.run_sync(self._disconnect)
        self._files.remove()
        return failed

    def _disconnect(self) -> list[Exception]:
        from supervisor.linux import netlink, nft

        failed: list[Exception] = []
        try:
            if self._wire is not None:
                netlink.disconnect(self._wire)
        except SupervisorError as error:
            failed.append(error)
        try:
            if self._opening is not None:
                nft.apply(self._opening.removed())
        except SupervisorError as error:
            failed.append(error)
        return failed


def bridges() -> tuple[str, ...]:
    """The interfaces that have a name as our bridges have."""
    names = [name for _index, name in socket.if_nameindex() if name.startswith("sv")]
    if not names:
        return ()
    from supervisor.container.network import is_bridge

    return tuple(filter(is_bridge, names))


def _make(place: Place, warn: Callable[[str], None]) -> tuple[Plan, Leases]:
    """The bridge, then the rules, then forwarding: in this order a crash leaves what is found."""
    from supervisor.container import firewall
    from supervisor.container import network as plans
    from supervisor.linux import netlink, nft

    nft.require()
    tag = plans.tag_of(str(place.runtime))
    leases = plans.Leases(place.lease_file)
    pool = plans.choose_pool(tag, netlink.routes(), place.pool, leases.pool)
    leases.use(pool)
    has_six = _reads(Path("/proc/sys/net/ipv6/conf/default/disable_ipv6"), "0")
    pool6 = plans.pool6_of(tag) if has_six else None
    plan = plans.Plan(tag, pool, pool6, pool6 is not None and _reads(FORWARD6, "1"))
    forwards = _reads(FORWARD4, "1")
    alias = plans.alias_of(str(place.runtime), forwarding=not forwards)
    try:
        netlink.make_bridge(plan.bridge, plan.mac, alias, plan.addresses)
        _write(Path(f"/proc/sys/net/ipv4/conf/{plan.bridge}/rp_filter"), "1")
        nft.apply(firewall.table_text(plan))
        if not forwards:
            _write(FORWARD4, "1")
            warn("net.ipv4.ip_forward was 0, and is 1 as long as the bridge is there")
    except BaseException:
        _unmake(plan.bridge)
        raise
    return plan, leases


def _unmake(bridge: str) -> None:
    """The reverse; each step also where the ones before it were never taken."""
    from supervisor.container import network as plans
    from supervisor.container.firewall import removal_text
    from supervisor.linux import netlink, nft

    aliases = netlink.aliases()
    told = plans.read_alias(aliases.get(bridge, ""))
    nft.apply(removal_text(plans.table_of(bridge)))
    if told is not None and told[1]:
        _hand_over_forwarding(bridge, aliases)
    for name in netlink.ports(bridge) if bridge in aliases else ():
        netlink.remove(name)
    netlink.remove(bridge)


def _hand_over_forwarding(bridge: str, aliases: Mapping[str, str]) -> None:
    """Switch it off again; as long as another instance needs it, that one is to do so."""
    from supervisor.container import network as plans
    from supervisor.linux import netlink

    for other, alias in aliases.items():
        told = plans.read_alias(alias) if other != bridge and plans.is_bridge(other) else None
        if told is not None:
            netlink.set_alias(other, plans.alias_of(told[0], forwarding=True))
            return
    _write(FORWARD4, "0")


def _sweep(found: Iterable[str], runtime: str) -> list[str]:
    """See `Bridge.sweep`: one line for each bridge that was removed."""
    from supervisor.container import network as plans
    from supervisor.linux import netlink

    own = plans.bridge_of(plans.tag_of(runtime))
    aliases = netlink.aliases()
    removed = []
    for bridge in found:
        told = plans.read_alias(aliases.get(bridge, ""))
        if told is None:
            continue  # somebody else's, by chance of that name
        if bridge == own or (not _is_locked(Path(told[0]) / "lock") and not netlink.ports(bridge)):
            _unmake(bridge)
            removed.append(f"removed the network that an earlier supervisor left behind: {bridge}")
    return removed


def _is_locked(path: Path) -> bool:
    """Whether an instance has the lock file; one that is not there is nobody's."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # not ours to see, so not ours to judge
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _reads(path: Path, text: str) -> bool:
    """Whether a setting of the kernel is there and has this value."""
    try:
        return path.read_text().strip() == text
    except FileNotFoundError:
        return False


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise KernelError("write", str(path), error.errno or 0) from error
