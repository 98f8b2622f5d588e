"""The plan of an instance's network: its names, addresses, leases, and the files jobs read.

Pure but for the files of leases and of the host's resolver.  What carries it out is
`supervise.network`, with `linux.netlink` for the interfaces and `container.firewall` for the rules.

    host                 bridge sv……  (gateway, first address of the pool)
                          │  isolated, locked ports, one for each job: sv……-N
    job's own namespace  eth0 (address N of the pool, as a /32: everything goes by the gateway)

No two jobs share a link: whatever one sends, to another job too, passes the host's IP layer and
with it the rules.  All names come from TAG, eight digits of the instance's runtime directory.

May import: `errors`, `model`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from attrs import field, frozen

from supervisor.errors import SpawnError
from supervisor.model.job import JobSpec, Mount

PREFIX = "sv"
TAG_DIGITS = 8
INSIDE = "eth0"
"""The name of a job's interface."""
_ALIAS = "supervise "
_FORWARDING = " forwarding"
"""At the end of a bridge's alias: who made it also switched net.ipv4.ip_forward on."""


def tag_of(runtime: str) -> str:
    """The part of all names that tells instances apart: their runtime directories differ."""
    return hashlib.sha256(runtime.encode()).hexdigest()[:TAG_DIGITS]


def bridge_of(tag: str) -> str:
    return PREFIX + tag


def table_of(bridge: str) -> str:
    """The name of the nftables table that belongs to a bridge."""
    return f"supervise_{bridge.removeprefix(PREFIX)}"


def is_bridge(name: str) -> bool:
    """Whether an interface has the name of a bridge of ours."""
    digits = name.removeprefix(PREFIX)
    return (
        name.startswith(PREFIX)
        and len(digits) == TAG_DIGITS
        and set(digits) <= set("0123456789abcdef")
    )


def alias_of(runtime: str, *, forwarding: bool) -> str:
    """What the bridge says of itself (ip-link(8) shows it): who made it, and what else was set."""
    return f"{_ALIAS}{runtime}{_FORWARDING * forwarding}"[:255]


def read_alias(alias: str) -> tuple[str, bool] | None:
    """The runtime directory and whether forwarding was switched on; None: not ours."""
    if not alias.startswith(_ALIAS):
        return None
    runtime = alias.removeprefix(_ALIAS)
    return runtime.removesuffix(_FORWARDING), runtime.endswith(_FORWARDING)


@frozen
class Seat:
    """One job's place on the bridge."""

    number: int
    outside: str
    mac: str
    v4: str
    v6: str | None


@frozen
class Plan:
    """The addresses of an instance.  `pool6` is None where the host has no IPv6.

    `forward6`: IPv6 is routed on, because the host forwards it already.
    """

    tag: str
    pool: IPv4Network
    pool6: IPv6Network | None = None
    forward6: bool = False

    @property
    def bridge(self) -> str:
        return bridge_of(self.tag)

    @property
    def table(self) -> str:
        return table_of(self.bridge)

    @property
    def mac(self) -> str:
        return _mac(self.tag, 1)

    @property
    def gateway4(self) -> str:
        return str(self.pool[1])

    @property
    def gateway6(self) -> str | None:
        return None if self.pool6 is None else str(self.pool6[1])

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The bridge's own, with the lengths of their prefixes."""
        four = (self.gateway4, self.pool.prefixlen)
        return (four,) if self.pool6 is None else (four, (str(self.pool6[1]), 64))

    def seat(self, number: int) -> Seat:
        return Seat(
            number,
            f"{self.bridge}-{number:x}",
            _mac(self.tag, number),
            str(self.pool[number]),
            None if self.pool6 is None else str(self.pool6[number]),
        )

    @property
    def numbers(self) -> range:
        """What a job's can be: not the network itself, the gateway, or the broadcast address."""
        return range(2, self.pool.num_addresses - 1)


def _mac(tag: str, number: int) -> str:
    """A locally administered address, from the tag and the number (which has 16 bits)."""
    raw = bytes.fromhex("02" + tag[:6]) + number.to_bytes(2, "big")
    return ":".join(f"{byte:02x}" for byte in raw)


def pool6_of(tag: str) -> IPv6Network:
    """A /64 of unique local addresses (RFC 4193): a prefix of 40 bits of chance, here the tag's."""
    return IPv6Network((int("fd" + tag + "00", 16) << 80, 64))


def choose_pool(
    tag: str, taken: Iterable[tuple[str, int]], wanted: str | None, before: str | None
) -> IPv4Network:
    """The pool: `wanted`, else the one of `before`, else the first /24 of 10.0.0.0/8 that is free.

    `taken` are the destinations of the host's routes.  SpawnError when one leads into `wanted`,
    or into every candidate.
    """
    routes = [IPv4Network(one, strict=False) for one in taken]

    def meets(pool: IPv4Network) -> IPv4Network | None:
        return next((route for route in routes if route.overlaps(pool)), None)

    if wanted is not None:
        pool = IPv4Network(wanted)
        route = meets(pool)
        if route is not None:
            why = f"a route of the host leads to {route}"
            raise SpawnError("network", 0, wanted, why, hint="set another network.pool")
        return pool
    start = int(tag[:4], 16)
    candidates = [IPv4Network(before)] if before is not None else []
    candidates += (
        IPv4Network((10 << 24 | (start + step * 257) % 65536 << 8, 24)) for step in range(4096)
    )
    for pool in candidates:
        if meets(pool) is None:
            return pool
    why = "the host has routes to every network that was tried"
    raise SpawnError("network", 0, "10.0.0.0/8", why, hint="set network.pool in [supervisor]")


class Leases:
    """Which job has which number, kept in a file so that a job has the same address again."""

    def __init__(self, path: Path | None) -> None:
        """`path` None: they are not kept.  A file that cannot be understood counts as none."""
        self._path = path
        self.pool: str | None = None
        self._numbers: dict[str, int] = {}
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text())
            pool = str(IPv4Network(found["pool"]))
            numbers = {str(name): int(number) for name, number in found["leases"].items()}
        except (ValueError, LookupError, TypeError, AttributeError):
            return  # written by another version, or by hand: the addresses are given anew
        self.pool, self._numbers = pool, numbers

    def use(self, pool: IPv4Network) -> None:
        """From now on numbers are of this pool."""
        if self.pool != str(pool):
            self._numbers.clear()
        self.pool = str(pool)

    def take(self, job: str, numbers: range, needed: Collection[str]) -> int:
        """The job's number; a new one is free, or was of a job that is not `needed` any more.

        Raises SpawnError when there is none.
        """
        held = self._numbers.get(job)
        if held is not None and held in numbers:
            return held
        used = set(self._numbers.values())
        number = next((n for n in numbers if n not in used), None)
        if number is None:
            former = next((name for name in self._numbers if name not in needed), None)
            if former is None:
                why = "every address is taken"
                raise SpawnError(
                    "network", 0, str(self.pool), why, hint="set a larger network.pool"
                )
            number = self._numbers.pop(former)
        self._numbers[job] = number
        self._write()
        return number

    def _write(self) -> None:
        """Before the address is used; OSError when it cannot be written."""
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"pool": self.pool, "leases": self._numbers}, indent=1) + "\n")
        os.replace(new, self._path)


@frozen
class Files:
    """What a job finds in /etc; None: the file of its root is left as it is."""

    hosts: str
    resolv: str | None = field(default=None)


def hosts_text(name: str, own: Iterable[str], others: Mapping[str, Iterable[str]]) -> str:
    """/etc/hosts: the job's own name and addresses, and those of the jobs it may reach."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {name}" for address in own]
    lines += [f"{address} {other}" for other, found in others.items() for address in found]
    return "".join(f"{line}\n" for line in lines)


HOST_RESOLVERS = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
"""The second has what systemd-resolved asks itself; the first has but a loopback address then."""


def resolv_text(wanted: tuple[str, ...] | None, files: Iterable[str] = HOST_RESOLVERS) -> str:
    """/etc/resolv.conf: `wanted`, or the host's servers that can be reached from elsewhere."""
    if wanted is not None:
        return "".join(f"nameserver {address}\n" for address in wanted)
    for path in files:
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            continue  # a host without this one; where there is none at all, jobs have none either
        lines = [line.strip() for line in text.splitlines()]
        kept = [line for line in lines if _is_of_use(line)]
        if any(line.startswith("nameserver") for line in kept):
            return "".join(f"{line}\n" for line in kept)
    return ""


def _is_of_use(line: str) -> bool:
    words = line.split()
    if len(words) < 2:
        return False
    if words[0] == "nameserver":
        return not words[1].startswith("127.") and words[1] != "::1" and "%" not in words[1]
    return words[0] in ("search", "domain", "options")


def mounts(
    spec: JobSpec, directory: Path, run: str, resolve: Mapping[str, str]
) -> tuple[Mount, ...]:
    """The binds of `FILES` over the job's own; a mount of the job at the same place wins.

    `resolve` says where each path leads in the job's root.
    """
    taken = {mount.target for mount in spec.mounts}
    return tuple(
        Mount(str(directory / f"{run}.{name}"), resolve[path], read_only=True)
        for name, path in FILES.items()
        if path not in taken and resolve[path] not in taken
    )


FILES = {"hosts": "/etc/hosts", "resolv": "/etc/resolv.conf"}


def describe(spec: JobSpec, runtime: str, run: str) -> Iterator[str]:
    """What `supervise plan` says of a job on the bridge; N is its lease."""
    bridge = bridge_of(tag_of(runtime))
    yield f"the first on it: ip link add {bridge} type bridge, nft table inet {table_of(bridge)}"
    for port in spec.ports:
        if port.protocol == "tcp":
            yield f"listen on {port.address or '*'}:{port.outside}, for the host itself"
    for name, path in FILES.items():
        yield f"write {runtime}/net/{run}.{name}, to be bound over {path}"
    yield f"once it is cloned: nft adds what it may do (egress, reach, ports) to {table_of(bridge)}"
    yield f"ip link add {bridge}-N type veth peer {INSIDE} in its namespace, master {bridge}"
    yield f"its port isolated and locked; {INSIDE}: address, default route; then GO to the init"
