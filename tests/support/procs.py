"""What the check for leaks asks of the process table, beyond `supervisor.linux.proc`.

A process may end between any two reads: what is gone is left out, nothing else is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from supervisor.linux import proc


def table() -> dict[int, proc.Stat]:
    """Every process of this pid namespace."""
    return {entry.pid: entry for entry in proc.processes()}


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""  # it has ended, or is somebody else's


def ancestors(processes: Mapping[int, proc.Stat], pid: int) -> frozenset[int]:
    """The parent of `pid`, its parent, and so on."""
    found: set[int] = set()
    while (one := processes.get(pid)) is not None and one.parent not in found:
        pid = one.parent
        found.add(pid)
    return frozenset(found)


def members(cgroup: str) -> frozenset[int]:
    """The processes in one cgroup directory; none when it has gone (ENOENT, ENODEV)."""
    try:
        return frozenset(int(pid) for pid in Path(cgroup, "cgroup.procs").read_text().split())
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in (19, 95):  # ENODEV, EOPNOTSUPP
            return frozenset()
        raise


def environment_has(pid: int, entry: str) -> bool:
    """Whether a process was started with NAME=VALUE in its environment."""
    return entry.encode() in _read(pid, "environ").split(b"\0")


def command_line(pid: int) -> str:
    """The arguments of a process, as one readable line."""
    words = _read(pid, "cmdline").rstrip(b"\0").split(b"\0")
    return b" ".join(words).decode(errors="replace") or "(no command line)"


def other_supervisors() -> tuple[int, ...]:
    """Running `supervise` commands and test sessions that neither started us nor are ours."""
    processes = table()
    me = os.getpid()
    family = {me} | ancestors(processes, me) | proc.descendants(me)
    return tuple(sorted(pid for pid in processes if pid not in family and _is_supervisor(pid)))


def _is_supervisor(pid: int) -> bool:
    words = _read(pid, "cmdline").split(b"\0")
    names = {word.rpartition(b"/")[2] for word in words[:4]}
    if b"python" not in words[0].rpartition(b"/")[2]:
        return False
    return bool({b"supervisor", b"supervise"} & names) or (
        b"pytest" in names and Path(f"/proc/{pid}/cwd/supervisor/cgroup/api.py").exists()
    )
