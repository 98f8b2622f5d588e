"""v2: the cgroup under which we may enable controllers, what it takes, and how it is undone.

For this package only.  The rules are those of "Top-down Constraint", "No Internal Process
Constraint" and "Delegation" in Documentation/admin-guide/cgroup-v2.rst:

  * a controller is there for the children of a cgroup whose cgroup.subtree_control lists it, and
    it can be listed only where cgroup.controllers has it;
  * a cgroup that lists any, the hierarchy's root excepted, has no processes of its own.

So when our own cgroup holds only ourselves (and our children), we step down into a leaf beside
the runs.  When others live there, we do not touch them: the next cgroup above is taken that is
ours to write and has no processes, unless a limit on the way would be escaped by that.
"""

from __future__ import annotations

import errno
import os

from attrs import frozen

from supervisor.cgroup import files
from supervisor.errors import KernelError
from supervisor.linux import proc as procfs

FIX = "systemd-run --scope -p Delegate=yes supervise ... (in a unit: Delegate=yes)"
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")
_PASSES = 20


@frozen
class Place:
    """Where the instance's cgroup goes.

    `root`: it is the hierarchy's own root; `moves`: our own processes must leave it first.
    """

    directory: str
    path: str
    controllers: frozenset[str]
    root: bool
    moves: bool


def choose(directory: str, path: str, mount: str, *, climb: bool, proc: str) -> Place | str:
    """The nearest legal place from `directory` up, or why there is none."""
    first = ""
    while True:
        place = _legal(directory, path, proc)
        if isinstance(place, Place):
            if place.controllers or not climb or directory == mount:
                return place
            place = f"{directory}/cgroup.controllers lists none"
        first = first or place
        if not climb or directory == mount:
            return first
        limit = _limited(directory)
        if limit:
            return f"{first}, and {limit} stands in the way of a place above"
        directory, path = os.path.dirname(directory), os.path.dirname(path).rstrip("/")


def _legal(directory: str, path: str, proc: str) -> Place | str:
    control = f"{directory}/cgroup.subtree_control"
    for needed in (directory, control, f"{directory}/cgroup.procs"):
        if not os.access(needed, os.W_OK):
            return f"no permission to write {needed}"
    controllers = frozenset(files.read(f"{directory}/cgroup.controllers").split())
    if not os.path.exists(f"{directory}/cgroup.type"):  # only the root has none
        return Place(directory, path, controllers, root=True, moves=False)
    kind = files.read(f"{directory}/cgroup.type")
    if kind != "domain":
        return f"{directory} is a {kind} cgroup"
    inside = {int(pid) for pid in files.read(f"{directory}/cgroup.procs").split()}
    if inside - ours(proc):
        return f"{directory} holds processes that are not ours"
    return Place(directory, path, controllers, root=False, moves=bool(inside))


def ours(proc: str) -> set[int]:
    """This process and all below it."""
    return {os.getpid()} | procfs.descendants(os.getpid(), proc)


def _limited(directory: str) -> str:
    """The first file of `directory` that sets a limit, else ""."""
    for name in _LIMITS:
        path = f"{directory}/{name}"
        if os.path.exists(path) and not files.read(path).startswith("max"):
            return path
    return ""


def enable(directory: str, wanted: frozenset[str]) -> frozenset[str]:
    """Enable `wanted` for the children of `directory`; those that were not enabled before.

    Raises KernelError: EBUSY when processes live there.
    """
    path = f"{directory}/cgroup.subtree_control"
    new = wanted - frozenset(files.read(path).split())
    if new:
        hint = f"processes live in {directory}; {FIX}"
        files.write(path, " ".join(f"+{name}" for name in sorted(new)), hint=hint)
    return new


class Step:
    """Our step down into a leaf, so that the place can enable controllers; and back."""

    def __init__(self, place: Place, name: str, proc: str) -> None:
        self._place = place
        self._proc = proc
        self._leaf = f"{place.directory}/{name}"
        self._enabled: frozenset[str] = frozenset()
        self._moved = False

    def enable(self, wanted: frozenset[str]) -> None:
        """Move if that is needed, then enable.  Raises KernelError."""
        if self._place.moves and not self._moved:
            self._down()
        self._enabled |= enable(self._place.directory, wanted)

    def _down(self) -> None:
        """Raises KernelError, EBUSY when others have come to live here since `choose`."""
        inside = set(files.processes(self._place.directory))
        if inside - ours(self._proc):
            raise KernelError("leave", self._place.directory, errno.EBUSY, hint=FIX)
        if not files.exists(self._leaf):
            files.make(self._leaf)
        self._moved = True
        _move(self._place.directory, self._leaf)

    def undo(self) -> None:
        """Disable what we enabled and go back.

        While another instance needs the same controllers the kernel says EBUSY to both; then the
        place stays as it is, and so do we.  Raises KernelError for anything else.
        """
        try:
            if self._enabled:
                path = f"{self._place.directory}/cgroup.subtree_control"
                files.write(path, " ".join(f"-{name}" for name in sorted(self._enabled)))
                self._enabled = frozenset()
            if self._moved:
                _move(self._leaf, self._place.directory)
                files.remove(self._leaf)
                self._moved = False
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise


def _move(source: str, target: str) -> None:
    """Every process from `source` to `target`; those forked meanwhile take another pass."""
    for _ in range(_PASSES):
        inside = files.processes(source)
        if not inside:
            return
        for pid in inside:
            try:
                files.write(f"{target}/cgroup.procs", str(pid))
            except KernelError as error:
                if error.errno != errno.ESRCH:  # it has ended
                    raise
    raise KernelError("empty", source, errno.EBUSY, hint="processes are forked there all the time")
