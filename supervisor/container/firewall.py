"""The rules of an instance's network, as text for nft(8): one table, and what each job adds to it.

    source      a packet from the bridge has hardware and IP address of one job, or is dropped
    publish     published ports, for who comes from outside; the host itself goes by a forwarder,
                but for UDP: `publish_here`, at its addresses other than loopback
    translate   what leaves by other interfaces has the host's address
    input       jobs reach nothing of the host but the gateway's ping
    forward     to a job: answers, published ports, jobs that may reach it; from a job: `egress`

What a job may not do is refused, so that it need not wait; what others may not is dropped.
Chains that have nothing to do with the bridge leave a packet at once.  A verdict of ours never
overrules a drop of other tables (nft(8): "accept" ends a base chain only).

Pure.  May import: `errors`, `model`, `container.network`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import frozen

from supervisor.container.network import Plan, Seat
from supervisor.model.job import Egress, Port

_TABLE = """\
table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  comment "made by supervise, and removed by it"
  set jobs4 {{ type ether_addr . ipv4_addr; }}
  set jobs6 {{ type ether_addr . ipv6_addr; }}
  set reach4 {{ type ipv4_addr . ipv4_addr; }}
  set reach6 {{ type ipv6_addr . ipv6_addr; }}
  map ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
  map ports_at {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
  map egress4 {{ type ipv4_addr : verdict; }}
  map egress6 {{ type ipv6_addr : verdict; }}
  map rates {{ type ether_addr : verdict; }}
  chain source {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "{bridge}" accept
    ether saddr vmap @rates
    ether saddr . ip saddr @jobs4 accept
    ether saddr . ip6 saddr @jobs6 accept
    drop
  }}
  chain publish {{
    type nat hook prerouting priority dstnat; policy accept;
    iifname "{bridge}" accept
    dnat ip to ip daddr . meta l4proto . th dport map @ports_at
    fib daddr type local dnat ip to meta l4proto . th dport map @ports
  }}
  chain publish_here {{
    type nat hook output priority -100; policy accept;
    meta l4proto != udp accept
    ip daddr 127.0.0.0/8 accept
    dnat ip to ip daddr . meta l4proto . th dport map @ports_at
    fib daddr type local dnat ip to meta l4proto . th dport map @ports
  }}
  chain translate {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname "{bridge}" accept
    {masquerade}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname != "{bridge}" accept
    ct state established,related accept
    icmp type echo-request accept
    icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert }} accept
    reject with icmpx admin-prohibited
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "{bridge}" icmp type redirect drop
    oifname "{bridge}" icmpv6 type nd-redirect drop
  }}
  chain to_job {{
    ct state established,related accept
    ct status dnat accept
    iifname "{bridge}" ip saddr . ip daddr @reach4 accept
    iifname "{bridge}" ip6 saddr . ip6 daddr @reach6 accept
    iifname "{bridge}" reject with icmpx admin-prohibited
    drop
  }}
  chain from_job {{
    ct state established,related accept
    ip saddr vmap @egress4
    ip6 saddr vmap @egress6
    ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    oifname "{bridge}" jump to_job
    iifname "{bridge}" jump from_job
  }}
}}
"""


def table_text(plan: Plan) -> str:
    """The table, in the place of one that a supervisor before has left."""
    lines = [f"ip saddr {plan.pool} masquerade"]
    if plan.pool6 is not None:
        lines.append(f"ip6 saddr {plan.pool6} masquerade")
    masquerade = "\n    ".join(lines)
    return _TABLE.format(table=plan.table, bridge=plan.bridge, masquerade=masquerade)


def removal_text(table: str) -> str:
    """Take the table away; no error when it is not there."""
    return f"table inet {table} {{}}\ndelete table inet {table}\n"


def egress_rules(allowed: Iterable[Egress]) -> Iterator[str]:
    """What lets packets go there, and refuses all others."""
    for one in allowed:
        family = "ip6" if ":" in one.network else "ip"
        match = f"{family} daddr {one.network}"
        if one.port is not None:
            match += f" {one.protocol} dport {one.port}"
        elif one.protocol is not None:
            match += f" meta l4proto {one.protocol}"
        yield f"{match} accept"
    yield "reject with icmpx admin-prohibited"


@frozen
class Opening:
    """What one job may do: its seat, and the seats of the jobs it may reach."""

    plan: Plan
    seat: Seat
    ports: tuple[Port, ...] = ()
    reach: tuple[Seat, ...] = ()
    egress: tuple[Egress, ...] | None = None
    rate: int | None = None

    def added(self) -> str:
        """The transaction that lets it."""
        lines = list(self._chains())
        lines += [f"add element {self._table} {name} {{ {key}{value} }}"
                  for name, key, value in dict.fromkeys(self._elements())]  # fmt: skip
        return _text(lines)

    def removed(self) -> str:
        """The one that takes all of it back."""
        lines = [f"delete element {self._table} {name} {{ {key} }}"
                 for name, key, _value in dict.fromkeys(self._elements())]  # fmt: skip
        lines += [f"delete chain {self._table} {name}" for name in self._chain_names()]
        return _text(lines)

    @property
    def _table(self) -> str:
        return f"inet {self.plan.table}"

    def _chain_names(self) -> Iterator[str]:
        if self.egress is not None:
            yield f"egress_{self.seat.number}"
        if self.rate is not None:
            yield f"rate_{self.seat.number}"

    def _chains(self) -> Iterator[str]:
        for name in self._chain_names():
            yield f"add chain {self._table} {name}"
            kind = name.partition("_")[0]
            for rule in egress_rules(self.egress or ()) if kind == "egress" else self._rate_rules():
                yield f"add rule {self._table} {name} {rule}"

    def _rate_rules(self) -> Iterator[str]:
        """What a job sends is not queued but dropped above the rate: TCP slows down by itself."""
        assert self.rate is not None
        burst = max(self.rate // 20, 1 << 16)
        yield f"limit rate over {self.rate} bytes/second burst {burst} bytes drop"

    def _elements(self) -> Iterator[tuple[str, str, str]]:
        """(set or map, key, ": value" or nothing)."""
        seat, number = self.seat, self.seat.number
        yield "jobs4", f"{seat.mac} . {seat.v4}", ""
        if seat.v6 is not None:
            yield "jobs6", f"{seat.mac} . {seat.v6}", ""
        for other in self.reach:
            yield "reach4", f"{seat.v4} . {other.v4}", ""
            if seat.v6 is not None:
                yield "reach6", f"{seat.v6} . {other.v6}", ""
        if self.egress is not None:
            yield "egress4", seat.v4, f" : jump egress_{number}"
            if seat.v6 is not None:
                yield "egress6", seat.v6, f" : jump egress_{number}"
        if self.rate is not None:
            yield "rates", seat.mac, f" : jump rate_{number}"
        for port in self.ports:
            yield from self._port(port)

    def _port(self, port: Port) -> Iterator[tuple[str, str, str]]:
        """None for loopback and IPv6 addresses: those are the forwarder's alone."""
        value = f" : {self.seat.v4} . {port.inside}"
        if port.address is None:
            yield "ports", f"{port.protocol} . {port.outside}", value
        elif ":" not in port.address and not port.address.startswith("127."):
            yield "ports_at", f"{port.address} . {port.protocol} . {port.outside}", value


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
