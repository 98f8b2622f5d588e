"""What the doctor tries of `network = "bridge"` for root: its programs, interfaces and rules.

`doctor_users` has it for who is not root.  May import: `errors`, `linux`, `container.network`,
`container.firewall`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from supervisor.front.doctor_trial import Check, attempt, way_out
from supervisor.linux import constants as c
from supervisor.linux import nft, pasta, syscalls


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself; none for who is not root."""
    return [bridge, pasta_program] if os.geteuid() == 0 else []


def bridge() -> Check:
    """`network = "bridge"`: its interfaces and rules, in a network namespace of their own."""
    name = "network bridge"
    if nft.program() is None:
        return Check(name, "unavailable", "nft is not installed", nft.HINT)
    outcome = attempt(_bridged, BRIDGE_TIME)
    if outcome.failure or outcome.timed_out:
        # nft shows its whole input, each line with a row of "^" below it
        why = outcome.failure.partition(" table ")[0] or f"no answer within {BRIDGE_TIME:g} s"
        fix = way_out(why, "modprobe -a bridge veth nf_tables nft_chain_nat; then again")
        return Check(name, "unavailable", why, fix)
    return Check(name, "enforced", f"a bridge, and the rules of jobs on it, by {_version('nft')}")


def pasta_program() -> Check:
    """What a user without root has a network by; tried when he asks (`doctor_users`)."""
    lacking = pasta.lacking()
    if lacking is not None:
        return Check("pasta", "unavailable", lacking[0], f"not needed by root; {lacking[1]}")
    return Check("pasta", "enforced", f"for users without root: {_version('pasta')}")


def _version(program: str) -> str:
    """The first line that it says of itself."""
    words = [pasta.find(program) or program, "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0].strip() or f"{program} (of no version)"


BRIDGE_TIME = 10.0
"""Seconds: it imports pyroute2."""


def _bridged() -> None:
    from ipaddress import IPv4Network

    from supervisor.container import firewall, network
    from supervisor.linux import netlink

    syscalls.unshare(c.CLONE_NEWNET)
    plan = network.Plan("d0c70000", IPv4Network("10.0.0.0/24"))
    netlink.make_bridge(plan.bridge, plan.mac, "", plan.addresses)
    nft.apply(firewall.table_text(plan))
    nft.apply(firewall.Opening(plan, plan.seat(2), egress=(), rate=1 << 20).added())
