"""Network interfaces, by rtnetlink(7).

The only user of pyroute2, which takes some 130 ms to import: callers import this module where
they need it, and it imports pyroute2 at the first call.  Its synchronous calls run an asyncio loop
of their own: call them from a thread in which none runs (`trio.to_thread`).

Every function raises KernelError, and works in the caller's network namespace.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attrs import frozen

from supervisor.errors import KernelError
from supervisor.linux import constants, syscalls

if TYPE_CHECKING:
    from pyroute2 import IPRoute

NOT_THERE = (2, 19)
"""ENOENT, ENODEV."""
_NODAD = 0x02
"""IFA_F_NODAD (linux/if_addr.h): nobody else can have the address, so it need not be asked for."""
_NO_LINK_LOCAL = 1
"""IN6_ADDR_GEN_MODE_NONE (linux/if_link.h)."""
_PERMANENT, _STATIC, _MASTER = 0x80, 0x40, 0x04
"""NUD_PERMANENT; NUD_NOARP, "static" in the words of bridge(8); NTF_MASTER (linux/neighbour.h)."""

PORT = {
    "isolated": 1,  # frames go to and come from the bridge only, never another isolated port
    "locked": 1,  # no frame from a hardware address that is not of this port (since Linux 5.18)
    "learning": 0,
    "unicast_flood": 0,
    "mcast_flood": 0,
}
"""What a job's port of the bridge is like."""


@frozen
class Wire:
    """A pair of interfaces: `outside` on a bridge of ours, `inside` a job's.

    Addresses are of the job (`mac` its hardware's), gateways of the bridge; no `v6`: without
    IPv6.  `rate` in bytes a second that go to the job.
    """

    bridge: str
    outside: str
    inside: str
    mac: str
    v4: str
    gateway4: str
    v6: str | None = None
    gateway6: str | None = None
    route6: bool = False
    rate: int | None = None


@contextmanager
def _route(operation: str, path: str | None = None) -> Iterator[IPRoute]:
    """A netlink socket for some requests, whose failures become KernelErrors."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:  # not an OSError: it derives from Exception
        raise KernelError(operation, path, error.code) from error
    except KernelError:
        raise
    except OSError as error:
        raise KernelError(operation, path, error.errno or 0) from error


def links() -> tuple[str, ...]:
    """The names of the interfaces, sorted."""
    with _route("list network interfaces") as route:
        return tuple(sorted(link.get("ifname") for link in route.get_links()))


def aliases() -> dict[str, str]:
    """The interfaces that have an alias (ip-link(8)), and what it is."""
    with _route("list network interfaces") as route:
        found = {link.get("ifname"): link.get("ifalias") for link in route.get_links()}
    return {name: alias for name, alias in found.items() if alias}


def ports(bridge: str) -> tuple[str, ...]:
    """The interfaces on a bridge."""
    index = socket.if_nametoindex(bridge)
    with _route("list the ports of", bridge) as route:
        return tuple(
            link.get("ifname") for link in route.get_links() if link.get("master") == index
        )


def routes() -> tuple[tuple[str, int], ...]:
    """Every IPv4 destination (address, prefix length) of every table that is not the default."""
    with _route("list routes") as route:
        found = [
            (one.get("dst"), one["dst_len"]) for one in route.get_routes(family=socket.AF_INET)
        ]
    return tuple((address, length) for address, length in found if address)


def addresses() -> tuple[str, ...]:
    """Every address of every interface, of both families."""
    with _route("list addresses") as route:
        found = [one.get("local") or one.get("address") for one in route.get_addr()]
    return tuple(filter(None, found))


def make_bridge(name: str, mac: str, alias: str, addresses: tuple[tuple[str, int], ...]) -> None:
    """A bridge that is up and has these addresses; it hears no multicast but its own."""
    with _route("make the bridge", name) as route:
        route.link("add", ifname=name, kind="bridge", address=mac, br_mcast_snooping=0)
        index = socket.if_nametoindex(name)
        route.link("set", index=index, ifalias=alias)
        _no_link_local(route, index)
        for address, length in addresses:
            route.addr("add", index=index, address=address, prefixlen=length, flags=_NODAD)
        route.link("set", index=index, state="up")


def set_alias(name: str, alias: str) -> None:
    with _route("set the alias of", name) as route:
        route.link("set", index=socket.if_nametoindex(name), ifalias=alias)


def remove(name: str) -> None:
    """Remove an interface; nothing happens when it is not there (any more).

    The kernel takes 20 ms for it (synchronize_rcu).
    """
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    try:
        with _route("remove the interface", name) as route:
            route.link("del", index=index)
    except KernelError as error:
        if error.errno not in NOT_THERE:
            raise


def connect(pid: int, wire: Wire) -> None:
    """Make the pair, one end in the network namespace of `pid`, complete with its routes.

    `pid` is a child that has not been waited for: its number means nobody else.  When it fails
    nothing is left.
    """
    with _route("make the interface", wire.outside) as route:
        peer = {"ifname": wire.inside, "address": wire.mac, "net_ns_pid": pid}
        route.link("add", ifname=wire.outside, kind="veth", peer=peer)
    try:
        with _route("set up the interface", wire.outside) as route:
            _plug_in(route, wire)
        with _inside(pid):
            _configure(wire)
    except BaseException:
        disconnect(wire)
        raise


def _plug_in(route: IPRoute, wire: Wire) -> None:
    """The outer end becomes a port of the bridge."""
    bridge, index = socket.if_nametoindex(wire.bridge), socket.if_nametoindex(wire.outside)
    _no_link_local(route, index)
    route.link("set", index=index, master=bridge)
    route.brport("set", index=index, **PORT)
    # Its hardware address is known to the bridge, and its IP addresses to the host, from now on
    # and for ever: nothing that another job says can change them.
    route.fdb("add", ifindex=index, lladdr=wire.mac, flags=_MASTER, state=_STATIC)
    for address in filter(None, (wire.v4, wire.v6)):
        route.neigh("replace", ifindex=bridge, dst=address, lladdr=wire.mac, state=_PERMANENT)
    if wire.rate is not None:
        _shape(route, index, wire.rate)
    route.link("set", index=index, state="up")


def disconnect(wire: Wire) -> None:
    """Take back what `connect` made, as far as it is there."""
    remove(wire.outside)
    try:
        bridge = socket.if_nametoindex(wire.bridge)
    except OSError:
        return
    for address in filter(None, (wire.v4, wire.v6)):
        try:
            with _route("forget the neighbour", address) as route:
                route.neigh("del", ifindex=bridge, dst=address)
        except KernelError as error:
            if error.errno not in NOT_THERE:
                raise


def _no_link_local(route: IPRoute, index: int) -> None:
    """No IPv6 address that nobody gave it."""
    if not os.path.exists("/proc/sys/net/ipv6"):
        return
    af: dict[str, Any] = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE",
                                                            _NO_LINK_LOCAL)]})]}  # fmt: skip
    route.link("set", index=index, IFLA_AF_SPEC=af)


def _shape(route: IPRoute, index: int, rate: int) -> None:
    """A token bucket (tc-tbf(8)): bursts of 20 ms or 64 KiB, and a queue of another 100 ms."""
    burst = max(rate // 50, 1 << 16)
    limit = rate // 10 + burst
    route.tc("add", "tbf", index=index, handle=0x10000, rate=rate, burst=burst, limit=limit)


def _configure(wire: Wire) -> None:
    with _route("set up the interface", wire.inside) as route:
        index = socket.if_nametoindex(wire.inside)
        _no_link_local(route, index)
        route.addr("add", index=index, address=wire.v4, prefixlen=32)
        if wire.v6 is not None:
            route.addr("add", index=index, address=wire.v6, prefixlen=128, flags=_NODAD)
        route.link("set", index=index, state="up")
        route.route("add", dst=f"{wire.gateway4}/32", oif=index, scope="link")
        route.route("add", dst="default", gateway=wire.gateway4, oif=index)
        if wire.gateway6 is not None:
            route.route("add", family=socket.AF_INET6, dst=f"{wire.gateway6}/128", oif=index)
        if wire.gateway6 is not None and wire.route6:
            route.route(
                "add", family=socket.AF_INET6, dst="default", gateway=wire.gateway6, oif=index
            )


@contextmanager
def _inside(pid: int) -> Iterator[None]:
    """This thread alone in the network namespace of another process, for the length of a block.

    `pyroute2` would fork for it (10 ms).
    """
    path = f"/proc/{pid}/ns/net"
    try:
        theirs = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", path, error.errno or 0) from error
    try:
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(theirs, constants.CLONE_NEWNET)
            try:
                yield
            finally:
                syscalls.setns(own, constants.CLONE_NEWNET)
        finally:
            os.close(own)
    finally:
        os.close(theirs)
