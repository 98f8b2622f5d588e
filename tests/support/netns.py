"""Network namespaces of a test's own: a host for the supervisor, and machines around it.

Nothing is done in the network namespace of the machine that runs the tests.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from supervisor.linux import constants, syscalls
from tests.support import host
from tests.support.command import Supervise

SETTINGS = ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/rp_filter")
PATIENCE = 30.0 * host.SLOWNESS
T = TypeVar("T")


@dataclass(frozen=True)
class Namespace:
    """One, held by the process `pid`."""

    pid: int

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command in there prints."""
        words = ["nsenter", f"--net=/proc/{self.pid}/ns/net", *argv]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, called by a thread that is in there; it ends with the call."""

        def enter() -> T:
            fd = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(fd, constants.CLONE_NEWNET)
            finally:
                os.close(fd)
            return function()

        with ThreadPoolExecutor(1) as executor:
            return executor.submit(enter).result()

    def listen(self, port: int, address: str = "0.0.0.0") -> socket.socket:
        """A server in there; a socket stays where it was made."""
        server = self.call(lambda: socket.create_server((address, port)))
        server.settimeout(PATIENCE)
        return server

    def get(self, url: str) -> str:
        """What an HTTP server answers, or "" when there is no answer in five seconds."""
        return self.run("timeout", "5", "busybox", "wget", "-q", "-O", "-", url, check=False)

    def ask(self, where: str, port: int) -> bytes:
        """What comes back for the datagram "hello" within a second, or nothing."""

        def asked() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(1)
                try:
                    asking.connect((where, port))
                    asking.send(b"hello")
                    return asking.recv(9)
                except OSError:
                    return b""

        return self.call(asked)

    def state(self) -> tuple[str, ...]:
        """All that a supervisor could have changed in there."""
        commands = ("nft list ruleset", "ip -o link", "ip -o addr", "ip route show table all",
                    "ip -6 route show table all", "ip rule", "tc qdisc", "bridge link",
                    "ip neigh show nud permanent",
                    *(f"cat /proc/sys/net/{name}" for name in SETTINGS))  # fmt: skip
        return tuple(self.run(*command.split()) for command in commands)

    def inside(self, supervise: Supervise) -> InNamespace:
        """The same command, run in there."""
        return InNamespace(supervise.where, self.pid)


def until(what: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it does not come to be"


@dataclass(frozen=True)
class InNamespace(Supervise):
    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A new one with its loopback up."""
    argv = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo made && exec cat"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "made\n"
        yield Namespace(holder.pid)
        holder.stdin.close()


@dataclass(frozen=True)
class World:
    """A host with one machine outside: HOST and OUTSIDE are their addresses."""

    host: Namespace
    outside: Namespace


HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"


@contextmanager
def world() -> Iterator[World]:
    """The host has its default route there, and rules of its own that are nobody else's."""
    with namespace() as host_ns, namespace() as outside:
        host_ns.run(
            *["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns"],
            str(outside.pid),
        )
        for space, address in ((host_ns, HOST), (outside, OUTSIDE)):
            space.run("ip", "addr", "add", f"{address}/24", "dev", "up0")
            space.run("ip", "link", "set", "up0", "addrgenmode", "none")
            space.run("ip", "link", "set", "up0", "up")
        deadline = time.monotonic() + PATIENCE
        while "state UP" not in host_ns.run("ip", "-o", "link", "show", "up0"):
            assert time.monotonic() < deadline, "the link of the host's does not come up"
        host_ns.run("ip", "route", "add", "default", "via", OUTSIDE)
        host_ns.run("nft", "add table inet foreign { chain c { counter comment mine ; } ; }")
        yield World(host_ns, outside)
