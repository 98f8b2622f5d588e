"""A cgroup as a service manager makes one for a unit or session, and supervisors started in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from supervisor.cgroup import delegate, detect, files
from tests.support.cgroups import end, line
from tests.support.command import ROOT

SUPERVISOR = """
import sys
sys.path.insert(0, {root!r})
from supervisor.cgroup.detect import detect
from supervisor.model.limits import Limits

def tell(text):
    print(text, flush=True)

def own():
    return [l for l in open("/proc/self/cgroup") if l.startswith("0:")][0].strip()[3:]

manager = detect(sys.argv[1])
tell(manager.version)
if not manager.controllers - {{"freezer"}}:
    (missing,) = manager.missing(Limits(memory=1 << 20))
    tell(missing.why)
    tell(missing.fix)
    sys.exit()
limits = Limits(memory=1 << 26, pids=8, cpus=0.5)
manager.remove_leftovers()
job = manager.create("run")
job.apply(limits)
tell(own())
tell(job.path)
for word in sys.stdin:
    another = manager.create("another")
    another.apply(limits)
    another.remove()
    tell("again")
job.remove()
manager.close()
tell(own())
"""
"""Tells its version, then why and the way out where it has no memory controller, or else its own
cgroup and its run's; makes another run for each line it is sent; tells its cgroup at the end."""

JOIN = 'echo 0 >"$0" && exec "$@"'


class Scope:
    """A cgroup in which every controller is at hand and none is enabled for what is below."""

    def __init__(self, above: str, path: str, name: str) -> None:
        self.above = above
        self.path = f"{path}/{name}"
        self.directory = f"{above}/{name}"
        files.make(self.directory)

    def joining(self, below: str = "") -> list[str]:
        """A wrapper: enter the scope (or a cgroup below), then execute the command."""
        return ["/bin/sh", "-c", JOIN, f"{self.directory}{below}/cgroup.procs"]

    def run(self, *command: str, below: str = "") -> subprocess.Popen[str]:
        """Start a command in here."""
        return subprocess.Popen(
            [*self.joining(below), *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def other(self, *, below: str = "") -> subprocess.Popen[str]:
        """Somebody else who lives here, until `end`."""
        process = self.run("/bin/sh", "-c", "echo ready; read x", below=below)
        assert line(process) == "ready"
        return process

    def supervisor(
        self, name: str = "inner", wrapper: Sequence[str] = (), *, below: str = ""
    ) -> subprocess.Popen[str]:
        """One that runs until `end`."""
        return self.run(*wrapper, *supervisor(name), below=below)

    @property
    def state(self) -> list[tuple[str, list[str], tuple[str, ...], list[str]]]:
        """What a supervisor may change, here and above: controllers, cgroups and marks."""
        return [
            (d, sorted(delegate.enabled(d)), files.names(d), sorted(os.listxattr(d)))
            for d in (self.above, self.directory)
        ]


def supervisor(name: str) -> list[str]:
    """The command of a supervisor as above."""
    return [sys.executable, "-c", SUPERVISOR.format(root=str(ROOT)), name]


@contextmanager
def scope(parent: str, *, delegated: bool) -> Iterator[Scope]:
    """A scope in a slice in `parent` (see `cgroups.session_parent`); v2.

    `delegated`: it has every controller at hand; else none but pids, as the session of a user, and
    the slice has enabled no other.
    """
    (found,) = (h for h in detect.find(parent).hierarchies if h.unified)
    delegate.enable(found.base, found.controllers)
    above = f"{found.base}/slice"
    files.make(above)
    delegate.enable(above, found.controllers if delegated else frozenset({"pids"}))
    try:
        yield Scope(above, f"{found.path}/slice", "scope")
    finally:
        files.write(f"{above}/cgroup.kill", "1")  # a failed test's processes
        files.until(lambda: not files.table(f"{above}/cgroup.events")["populated"], 10)
        for directory in files.tree(above):
            files.remove(directory)


def gone(process: subprocess.Popen[str]) -> None:
    """End it, well."""
    assert end(process) == 0
