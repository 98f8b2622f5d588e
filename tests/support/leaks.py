"""The check that a test session leaves nothing behind, on the host or in its own process.

A snapshot is taken before the first test and another after the last; what is new is a leak, and
the session fails with the list.  Two kinds are told apart:

own      descriptors, and processes: descendants of the test process, those that carry the
         session's mark in their environment.
shared   cgroups and the processes in them, mounts, interfaces, run-time files: the whole host's.
         While another `supervise` or another test session runs there they cannot be attributed, so
         they are only told of, as a warning in the session's summary; where none runs (CI) they
         fail it as well.

Endings take a moment (a killed process is reaped by somebody else), so the second snapshot is
taken again until it is clean or GRACE seconds have passed.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from supervisor.linux import netlink, proc
from tests.support import host, procs

MARK = "SUPERVISE_TEST_SESSION"
GRACE = 3.0

SHARED = ("cgroup", "member", "mount", "interface", "file")
OWN = ("process", "descriptor")

told = pytest.StashKey[tuple[str, ...]]()
"""Where the leaks that could not be attributed wait for the session's summary."""


@dataclass(frozen=True)
class Snapshot:
    """What exists now: for each kind, an identity and how to name it to a reader."""

    things: dict[str, dict[str, str]] = field(default_factory=dict)

    def new_since(self, old: Snapshot, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """One line for each thing that was not there before."""
        return tuple(
            f"{kind}: {text}"
            for kind in kinds
            for key, text in self.things.get(kind, {}).items()
            if key not in old.things.get(kind, {})
        )


def take(mark: str, known_cgroups: frozenset[str] = frozenset()) -> Snapshot:
    """A snapshot; the processes in a cgroup count unless it is among `known_cgroups`."""
    gc.collect()  # an unreferenced but uncollected file is closed by this, not a leak
    groups = cgroups()
    ours = processes(mark)
    members = named({pid for path in groups.keys() - known_cgroups for pid in procs.members(path)})
    return Snapshot(
        {
            "cgroup": groups,
            "member": {key: text for key, text in members.items() if key not in ours},
            "mount": mounts(),
            "interface": {name: name for name in netlink.links()},
            "file": runtime_files(),
            "process": ours,
            "descriptor": descriptors(),
        }
    )


def cgroups() -> dict[str, str]:
    """Every cgroup with `supervise` in its name, in every mounted hierarchy."""
    found: dict[str, str] = {}
    for point in (hierarchy.point for hierarchy in host.hierarchies()):
        for directory, names, _files in os.walk(point):
            below = "supervise" in os.path.relpath(directory, point)
            paths = (f"{directory}/{name}" for name in names if below or "supervise" in name)
            found.update((path, path) for path in paths)
    return found


def mounts() -> dict[str, str]:
    """The mounts of this process's namespace, by mount ID."""
    return {str(mount.id): mount.mount_point for mount in proc.mountinfo()}


def runtime_files() -> dict[str, str]:
    """What the command keeps under its run-time directories, and its temporary files."""
    roots = {Path("/run/supervise"), Path("/var/lib/supervise")}
    if "XDG_RUNTIME_DIR" in os.environ:
        roots.add(Path(os.environ["XDG_RUNTIME_DIR"]) / "supervise")
    # an empty root itself is a place that every instance shares, not a thing left behind, and so
    # is where ranges of user numbers are noted (`supervise.idranges`)
    paths = [path for root in roots if os.access(root, os.X_OK) for path in root.rglob("*")]
    paths += Path(tempfile.gettempdir()).glob("*supervise*")
    kept = ("/run/supervise/.ids", "/run/supervise/.projects")
    shared = {Path(top, name) for top in kept for name in ("", "lock", "next")}
    return {str(path): str(path) for path in paths if path not in shared}


def descriptors() -> dict[str, str]:
    """The open descriptors of this process and what they are; pytest itself moves 0, 1 and 2."""
    found = {}
    for name in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        found[f"{name} {target}"] = f"{name} -> {target}"
    return found


def processes(mark: str) -> dict[str, str]:
    """The processes that are this session's for certain, by pid and start time."""
    marked = {pid for pid in procs.table() if procs.environment_has(pid, f"{MARK}={mark}")}
    return named(proc.descendants(os.getpid()) | marked)


def named(pids: Set[int]) -> dict[str, str]:
    """Those of the processes that are still there, but for this one."""
    table = procs.table()
    return {
        f"{pid} {table[pid].start_ticks}": f"{pid} ({table[pid].state}) {procs.command_line(pid)}"
        for pid in sorted(pids)
        if pid in table and pid != os.getpid()
    }


def settle(before: Snapshot, mark: str) -> Snapshot:
    """The first clean snapshot, or the last one when GRACE is over."""
    known = frozenset(before.things["cgroup"])
    deadline = time.monotonic() + GRACE
    while True:
        after = take(mark, known)
        clean = not after.new_since(before, SHARED + OWN)
        if clean or time.monotonic() > deadline:
            return after
        time.sleep(0.1)  # the end of a process that is not our child has no event for us


@pytest.fixture(scope="session", autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the session that leaves something behind; see the module's docstring."""
    mark = f"{os.getpid()}.{time.monotonic_ns()}"
    outer = os.environ.get(MARK)
    os.environ[MARK] = mark
    before = take(mark)
    yield
    after = settle(before, mark)
    if outer is None:
        del os.environ[MARK]
    else:
        os.environ[MARK] = outer
    judge(request.config.stash, before, after)


def judge(stash: pytest.Stash, before: Snapshot, after: Snapshot) -> None:
    """Fail for what is ours; for the rest too, unless another `supervise` may have made it."""
    leaked, shared = after.new_since(before, OWN), after.new_since(before, SHARED)
    if shared and (others := procs.other_supervisors()):
        seen = ", ".join(str(pid) for pid in others)
        stash[told] = tuple(f"{line} (or by pid {seen})" for line in shared)
    else:
        leaked += shared
    if leaked:
        pytest.fail("the tests left behind:\n  " + "\n  ".join(leaked), pytrace=False)
