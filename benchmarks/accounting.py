"""CPU time of everything a block of jobs started, by a cgroup: nothing escapes it by forking twice.

    supervise-bench.PID/        made in every hierarchy; the contenders' containers go below it
        harness                 made where CPU is counted; the measuring processes, and their tools

Work that the kernel does in its own threads (taking a network namespace down) is nobody's, here as
in every such account.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from supervisor.linux import proc

LIMITS = frozenset({"memory", "pids", "cpu"})


@dataclass(frozen=True)
class Account:
    """The account `name`, in the hierarchy (mounted at `point`) that counts CPU time."""

    name: str
    point: Path
    unified: bool

    @property
    def directory(self) -> Path:
        return self.point / self.name

    def join(self) -> None:
        """Count this process from now on, and all that it starts."""
        (self.directory / "harness/cgroup.procs").write_text("0")

    def seconds(self) -> float:
        """CPU seconds of all that were ever in it: cpu.stat, or v1's cpuacct.usage."""
        if not self.unified:
            return int((self.directory / "cpuacct.usage").read_text()) / 1e9
        counted = dict(
            line.split() for line in (self.directory / "cpu.stat").read_text().splitlines()
        )
        return int(counted["usage_usec"]) / 1e6


def hierarchies() -> list[tuple[Path, frozenset[str], bool]]:
    """Mount point, controllers and whether it is the unified one, for each with controllers."""
    found = []
    for mount in proc.mountinfo():
        if mount.fstype not in ("cgroup", "cgroup2"):
            continue
        point = Path(mount.mount_point)
        if mount.fstype == "cgroup":
            found.append((point, frozenset(mount.super_options), False))
        elif listed := (point / "cgroup.controllers").read_text().split():
            counts = {"cpuacct"} if "cpu" in listed else set()
            found.append((point, frozenset(listed) | counts, True))
    return found


def find(name: str) -> Account:
    """The account of that name.  Raises RuntimeError where no hierarchy counts CPU time."""
    for point, controllers, unified in hierarchies():
        if "cpuacct" in controllers:
            return Account(name, point, unified)
    raise RuntimeError("no cgroup hierarchy counts CPU time: mount cpuacct, or cgroup2")


@contextmanager
def opened() -> Iterator[Account]:
    """A new account, removed at the end."""
    account = find(f"supervise-bench.{os.getpid()}")
    with ExitStack() as stack:
        for point, controllers, unified in hierarchies():
            directory = point / account.name
            directory.mkdir()
            stack.callback(directory.rmdir)
            if unified:
                enable = " ".join(f"+{name}" for name in LIMITS & controllers)
                (directory / "cgroup.subtree_control").write_text(enable)
        (account.directory / "harness").mkdir()
        stack.callback((account.directory / "harness").rmdir)
        yield account
