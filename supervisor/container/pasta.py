"""The network of a job without root, as a plan: what pasta(1) is told, and the rules inside.

    host           pasta, with the user's own sockets        namespaces of its own, no files
                     │  its tap interface
    job's own ns   eth0 (second address of the pool; the first is the gateway, which nobody has)

pasta opens a connection of the host's for each that the job opens, so to the host they are its
own: addresses of the host, its loopback with them, would be in reach.  `--no-map-gw` closes but
one way: a socket bound to eth0 (SO_BINDTODEVICE takes no privilege) sends to 127.0.0.1 through it,
and IPv4 routes do not stop it (net/ipv4/route.c, ip_route_output_key_hash_rcu: "Assume, that the
destination is on link").  A table of nftables in the job's namespace does.  The job cannot change
it without CAP_NET_ADMIN, nor pass it by without CAP_NET_RAW: it gets neither, nor CAP_SYS_PTRACE,
with which it would be master of its init, who has all.

Pure.  May import: `errors`, `model`, `linux`, `container`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from attrs import frozen

from supervisor.container import network
from supervisor.container.firewall import egress_rules
from supervisor.linux import caps
from supervisor.model.job import JobSpec, Port

LOG_SIZE = 1 << 16
"""Bytes of pasta's log, which a job may be able to fill."""
TABLE = "supervise"
_NEVER4 = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32")
_NEVER6 = ("::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96")
"""This host, its links, and the groups on them: a bridge routes nothing there either."""
_POWERS = ("NET_ADMIN", "NET_RAW", "SYS_PTRACE")

_RULES = """\
table inet {table} {{
  comment "made by supervise"
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "lo" accept
    ct state established,related accept
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip daddr {{ {never4} }} reject with icmpx admin-prohibited
    ip6 daddr {{ {never6} }} reject with icmpx admin-prohibited
    {more}
  }}
}}
"""


@frozen
class Own:
    """A job's addresses: no other job is on its link, so all of an instance have the same."""

    pool: IPv4Network

    @property
    def gateway(self) -> str:
        return str(self.pool[1])

    @property
    def address(self) -> str:
        return str(self.pool[2])


def lacks(spec: JobSpec) -> Iterator[str]:
    """What the job asks for and cannot have by pasta, each with the way out."""
    if spec.reach:
        yield "reach: jobs have no network in common without root; leave it out"
    if spec.bandwidth is not None:
        yield "bandwidth: pasta has no limit for it; leave it out"
    held = caps.of_job(spec.capabilities.add, spec.capabilities.drop)
    for name in _POWERS:
        if caps.number(name) in held:
            why = "with it a job gets at the host's loopback past pasta; drop it"
            yield f"capabilities.add = {name}: {why}"
    yield from _clashes(spec.ports)


def _clashes(ports: Iterable[Port]) -> Iterator[str]:
    """pasta has one table of ports for all addresses."""
    inside: dict[tuple[str, int], int] = {}
    for port in ports:
        if inside.setdefault((port.protocol, port.outside), port.inside) != port.inside:
            why = "pasta leads a port to one inside, whatever the address; take another port"
            yield f"ports: {port.outside}/{port.protocol} is published twice: {why}"


def argv(program: str, spec: JobSpec, own: Own, files: tuple[str, str], pid: int) -> list[str]:
    """Of pasta, for the namespaces of `pid`; `files`: where it says it is ready, and its log.

    In the foreground, with nothing forwarded but the job's ports, and the host's loopback not at
    the gateway.
    """
    ready, log = files
    words = [program, "--foreground", "--quiet", "--config-net", "--ns-ifname", network.INSIDE]
    words += ["--address", own.address, "--netmask", str(own.pool.prefixlen)]
    words += ["--gateway", own.gateway, "--no-map-gw"]
    words += ["--no-dhcp", "--no-dhcpv6", "--no-ra", "--tcp-ns", "none", "--udp-ns", "none"]
    words += [*_published("--tcp-ports", "tcp", spec.ports)]
    words += [*_published("--udp-ports", "udp", spec.ports)]
    words += ["--log-file", log, "--log-size", str(LOG_SIZE), "--pid", ready]
    return [*words, str(pid)]


def _published(option: str, protocol: str, ports: Iterable[Port]) -> Iterator[str]:
    wanted = [port for port in ports if port.protocol == protocol]
    if not wanted:
        yield from (option, "none")
    for port in wanted:
        where = "" if port.address is None else f"{port.address}/"
        yield from (option, f"{where}{port.outside}:{port.inside}")


def rules(spec: JobSpec, addresses: Iterable[str]) -> str:
    """Of the job's namespace; `addresses` are the host's, none of which it may reach."""
    found = list(addresses)
    four = [*map(IPv4Network, _NEVER4), *(IPv4Network(one) for one in found if ":" not in one)]
    six = [*map(IPv6Network, _NEVER6), *(IPv6Network(one) for one in found if ":" in one)]
    more = ["ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited"]
    if spec.egress is not None:
        more = list(egress_rules(spec.egress))
    return _RULES.format(
        table=TABLE,
        never4=", ".join(map(str, collapse_addresses(four))),
        never6=", ".join(map(str, collapse_addresses(six))),
        more="\n    ".join(more),
    )


def describe(spec: JobSpec, runtime: str, run: str) -> Iterator[str]:
    """What `supervise plan` says of such a job; PID is its init's."""
    for line in lacks(spec):
        yield f"# lacking: {line}"
    for name, path in network.FILES.items():
        yield f"write {runtime}/net/{run}.{name}, to be bound over {path}"
    files = f"{runtime}/net/{run}.ready", f"{runtime}/net/{run}.log"
    words: Sequence[str] = argv("pasta", spec, Own(IPv4Network("10.0.0.0/24")), files, 0)
    told = " ".join([*words[:-1], "PID"]).replace("10.0.0.", "10.x.y.")
    yield f"once it is cloned: {told}"
    yield f"in its namespace: nft table inet {TABLE}, against the host's addresses"
    yield "GO to the init, once pasta is ready"
