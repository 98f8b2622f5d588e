"""Values that concern the network: ports, networks a job may go to, addresses, the pool.

May import: `errors`, `model`, `front.kinds` and what that imports; `ipaddress` where it is used,
for most configurations have no use for it.
"""

from __future__ import annotations

import re
from typing import Any

from supervisor.front import kinds
from supervisor.front.kinds import Context, must
from supervisor.front.problems import Wrong, found
from supervisor.model.job import Egress, Port

SLOWEST = 4096
"""Bytes a second; below that not even a connection's first packets would get through in time."""
FASTEST = 2**32 - 1
"""What tc-tbf(8) counts in 32 bits."""
_ADDRESS = r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9A-Fa-f:.]+)\])"
_PORT = re.compile(rf"(?:{_ADDRESS}:)?(\d{{1,5}}):(\d{{1,5}})(?:/(tcp|udp))?", re.ASCII)
_PORT_WHAT = 'a port like "8080:80", "127.0.0.1:8080:80" or "5353:53/udp"'
_EGRESS = re.compile(
    r"(?:\[(?P<in>[0-9A-Fa-f:./]+)\](?:/(?P<len>\d+))?|(?P<bare>[0-9A-Fa-f:.]+?(?:/\d+)?))"
    r"(?::(?P<port>\d{1,5}))?(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_EGRESS_WHAT = 'a network like "10.0.0.0/8", "10.0.0.0/8:443", "[2001:db8::/32]:53/udp"'


def port(value: Any, context: Context) -> Port:
    """ "[ADDRESS:]OUTSIDE:INSIDE[/tcp|/udp]"; an IPv6 address in brackets."""
    match = _PORT.fullmatch(kinds.string(value, context))
    if match is None:
        raise must(_PORT_WHAT, value)
    text = match["v4"] or match["v6"]
    import ipaddress

    where = None if text is None else ipaddress.ip_address(address(text, context))
    outside, inside = (_number(match[n], value) for n in (3, 4))
    protocol = match[5] or "tcp"
    if where is not None and where.is_unspecified:
        where = None
    if protocol == "udp" and where is not None and (where.is_loopback or where.version == 6):
        why = "udp is published at IPv4 addresses other than loopback only"
        raise must(_PORT_WHAT, value, why)
    return Port(outside, inside, None if where is None else str(where), protocol)  # type: ignore[arg-type]


def _number(text: str, whole: object) -> int:
    if not 1 <= int(text) <= 65535:
        raise Wrong(f"{found(whole)}: a port is from 1 to 65535")
    return int(text)


def egress(value: Any, context: Context) -> Egress:
    """ "NETWORK[:PORT][/tcp|/udp]", IPv6 with a port in brackets; tcp unless it is said."""
    text = kinds.string(value, context)
    whole = _network(text)
    if whole is not None:  # an IPv6 network would else be taken for one with a port
        return Egress(whole)
    match = _EGRESS.fullmatch(text)
    if match is None:
        raise must(_EGRESS_WHAT, value)
    inside = match["in"] + (f"/{match['len']}" if match["len"] else "") if match["in"] else ""
    network = _network(inside or match["bare"])
    if network is None:
        raise must(_EGRESS_WHAT, value, "not a network: the host's bits must be zero")
    number = None if match["port"] is None else _number(match["port"], value)
    protocol = match["protocol"] or (None if number is None else "tcp")
    return Egress(network, number, protocol)  # type: ignore[arg-type]


def _network(text: str) -> str | None:
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        return None


def address(value: Any, context: Context) -> str:
    """An IP address, as it is usually written."""
    import ipaddress

    text = kinds.string(value, context)
    try:
        found_address = ipaddress.ip_address(text)
    except ValueError:
        raise must("an IP address", value) from None
    if getattr(found_address, "scope_id", None):
        raise must("an IP address", value, "without an interface")
    return str(found_address)


def pool(value: Any, context: Context) -> str:
    """An IPv4 network that has room for jobs, and no more than the leases can number."""
    import ipaddress

    text = kinds.string(value, context)
    what = 'an IPv4 network like "10.80.0.0/24"'
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        raise must(what, value) from None
    if not 16 <= network.prefixlen <= 29:
        raise must(what, value, "from /16 to /29")
    if network.is_loopback or network.is_multicast or network.is_link_local:
        raise must(what, value, "such addresses are not routed")
    return str(network)


def text(value: Port | Egress) -> str:
    """As it is written in a configuration."""
    if isinstance(value, Egress):
        port_part = "" if value.port is None else f":{value.port}"
        network = f"[{value.network}]" if ":" in value.network else value.network
        return network + port_part + (f"/{value.protocol}" if value.protocol else "")
    where = "" if value.address is None else f"{_bracketed(value.address)}:"
    return f"{where}{value.outside}:{value.inside}/{value.protocol}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
