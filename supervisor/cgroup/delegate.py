"""v2: the cgroup under which we may enable controllers, what it takes, and how it is undone.

For this package only.  The rules are those of "Top-down Constraint", "No Internal Process
Constraint" and "Delegation" in Documentation/admin-guide/cgroup-v2.rst:

  * a controller is there for the children of a cgroup whose cgroup.subtree_control lists it, and
    it can be listed only where cgroup.controllers has it;
  * a cgroup that lists any, the hierarchy's root excepted, has no processes of its own.

So when our own cgroup holds only ourselves (and our children), we step down into a leaf beside
the runs.  When others live there, we do not touch them: the next cgroup above is taken that is
ours to write and has no processes, unless a limit on the way would be escaped by that.  Where
there is none (the top of a container), those who wait for us may come along: the shell or the
container's init that started us, and whoever started these.

What we enable is marked by an extended attribute of the place.  So whoever comes last disables it,
even when another instance used it longer than the one that enabled it, or was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import frozen

from supervisor.cgroup import files
from supervisor.cgroup.rehearsal import acting
from supervisor.errors import KernelError
from supervisor.linux import proc as procfs

FIX = "systemd-run --scope -p Delegate=yes supervise ... (in a unit: Delegate=yes)"
ROOT_FIX = "run it as root, or where its cgroup is delegated: " + FIX
_NUMBERS = ("memory.max", "memory.high", "memory.swap.max", "pids.max", "cpu.max")
_LISTS = ("cpuset.cpus", "io.max")
_LIMITS = (*((name, ["max"]) for name in _NUMBERS), *((name, []) for name in _LISTS))
"""Files, and how they begin where there is no limit."""
_PASSES = 20
_MARK = "user.supervise.enabled."
_LOCK_PATIENCE = 1.0
"""Seconds.  Anybody who may read a cgroup can lock it: nobody shall keep us waiting for ever."""


@frozen
class Place:
    """Where the instance's cgroup goes.

    `root`: it is the hierarchy's own root; `moves`: our own processes must leave it first, and
    `parents`: with them those that wait for us.
    """

    directory: str
    path: str
    controllers: frozenset[str]
    root: bool
    moves: bool
    parents: bool = False


@frozen
class Obstacle:
    """Why there is no place, or a controller is not at hand, and the way out."""

    why: str
    fix: str


def choose(directory: str, path: str, mount: str, *, climb: bool, proc: str) -> Place | Obstacle:
    """The nearest legal place from `directory` up that has controllers, or why there is none.

    Where no cgroup has any (hybrid), the nearest legal place; without `climb`, `directory` or none.
    """
    nearest = _legal(directory, path, mount, proc)
    if not climb or _has_controllers(nearest):
        return nearest
    where, name, limit = directory, path, ""
    while where != mount and not (limit := _limited(where)):
        where, name = os.path.dirname(where), os.path.dirname(name).rstrip("/")
        found = _legal(where, name, mount, proc)
        if _has_controllers(found):
            return found
    together = _legal(directory, path, mount, proc, parents=True)
    if _has_controllers(together):
        return together
    if limit and isinstance(nearest, Obstacle):
        why = f"{nearest.why}, and {limit} stands in the way of a place above"
        return Obstacle(why, nearest.fix)
    return nearest


def _has_controllers(found: Place | Obstacle) -> bool:
    return isinstance(found, Place) and bool(found.controllers)


def _legal(
    directory: str, path: str, mount: str, proc: str, *, parents: bool = False
) -> Place | Obstacle:
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        fix = f"mount -o remount,rw {mount} (a container's engine has an option for it)"
        return Obstacle(f"{mount} is mounted read-only", fix)
    control = f"{directory}/cgroup.subtree_control"
    for needed in (directory, control, f"{directory}/cgroup.procs"):
        if not os.access(needed, os.W_OK):
            return Obstacle(f"no permission to write {needed}", ROOT_FIX)
    controllers = frozenset(files.read(f"{directory}/cgroup.controllers").split())
    if not os.path.exists(f"{directory}/cgroup.type"):  # only the root has none
        return Place(directory, path, controllers, root=True, moves=False)
    kind = files.read(f"{directory}/cgroup.type")
    if kind != "domain":
        return Obstacle(f"{directory} is a {kind} cgroup", ROOT_FIX)
    inside = {int(pid) for pid in files.read(f"{directory}/cgroup.procs").split()}
    if controllers and inside - ours(proc, parents=parents):
        return Obstacle(f"{directory} holds processes that are not ours", _alone(directory, mount))
    moves = bool(inside and controllers)
    return Place(directory, path, controllers, root=False, moves=moves, parents=parents)


def _alone(directory: str, mount: str) -> str:
    """How not to share a cgroup."""
    if directory != mount:
        return ROOT_FIX
    leaf = f"{directory}/init"
    return (
        f"{FIX}, or in a container: mkdir {leaf}; "
        f"while read pid; do echo $pid >{leaf}/cgroup.procs; done <{directory}/cgroup.procs"
    )


def ours(proc: str, *, parents: bool = False) -> set[int]:
    """This process and all below it; with `parents` all above it too."""
    found = {os.getpid()} | procfs.descendants(os.getpid(), proc)
    return found | _ancestors(proc) if parents else found


def _ancestors(proc: str) -> set[int]:
    """As far up as /proc shows them (its option hidepid may hide those of other users)."""
    found: set[int] = set()
    pid = os.getppid()
    while pid and pid not in found:
        found.add(pid)
        try:
            pid = procfs.stat(pid, proc).parent
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                raise
            break
    return found


def _limited(directory: str) -> str:
    """The first file of `directory` that sets a limit, else ""."""
    for name, none in _LIMITS:
        path = f"{directory}/{name}"
        if os.path.exists(path) and files.read(path).split()[:1] != none:
            return path
    return ""


def enable(directory: str, wanted: frozenset[str]) -> None:
    """Enable `wanted` for the children of `directory`, those that are not yet.

    Raises KernelError: EBUSY when processes live there.
    """
    new = wanted - enabled(directory)
    if new:
        hint = f"processes live in {directory}; {FIX}"
        files.write(_control(directory), " ".join(f"+{name}" for name in sorted(new)), hint=hint)


def enabled(directory: str) -> frozenset[str]:
    """The controllers of the children of `directory`."""
    return frozenset(files.read(_control(directory)).split())


def _control(directory: str) -> str:
    return f"{directory}/cgroup.subtree_control"


@contextmanager
def locked(place: Place) -> Iterator[None]:
    """Keep other instances at the same place from enabling and disabling meanwhile.

    Raises KernelError when the place is gone.
    """
    if acting():
        yield
        return
    try:
        fd = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", place.directory, error.errno or 0) from error
    try:
        files.until(lambda: _lock(fd), _LOCK_PATIENCE)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Step:
    """Our step down into a leaf, so that the place can enable controllers; and back.

    To be used while the place is `locked`.
    """

    def __init__(self, place: Place, name: str, proc: str) -> None:
        self._place = place
        self._proc = proc
        self._leaf = f"{place.directory}/{name}"
        self._enabled: set[str] = set()
        self._moved = False

    def enable(self, wanted: frozenset[str]) -> None:
        """Move if that is needed, then enable.  Raises KernelError."""
        if self._place.moves and not self._moved:
            self._down()
        new = wanted - enabled(self._place.directory)
        for name in new:
            _mark(self._place.directory, name)
        self._enabled |= new
        enable(self._place.directory, new)

    def _down(self) -> None:
        """Raises KernelError, EBUSY when others have come to live here since `choose`."""
        inside = set(files.processes(self._place.directory))
        if inside - ours(self._proc, parents=self._place.parents):
            raise KernelError("leave", self._place.directory, errno.EBUSY, hint=FIX)
        if not files.exists(self._leaf):
            files.make(self._leaf)
        self._moved = True
        _move(self._place.directory, self._leaf)

    def undo(self) -> None:
        """Disable what instances have enabled here and nobody needs any more, and go back.

        While another instance needs a controller the kernel says EBUSY; then it stays, and so do
        we, and the last instance to end disables it.  Raises KernelError for anything else.
        """
        for name in sorted(self._enabled | _marked(self._place.directory)):
            if _unless_busy(lambda name=name: self._disable(name)):  # type: ignore[misc]
                self._enabled.discard(name)
        _unless_busy(self._back)

    def _disable(self, name: str) -> None:
        files.write(_control(self._place.directory), f"-{name}")
        _unmark(self._place.directory, name)

    def _back(self) -> None:
        """From the leaf, and remove it, even if it was a supervisor's before us."""
        if self._moved:
            _move(self._leaf, self._place.directory)
            self._moved = False
        files.remove(self._leaf)


def _unless_busy(act: Callable[[], None]) -> bool:
    try:
        act()
    except KernelError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _mark(directory: str, controller: str) -> None:
    """Note at the place that an instance enabled it (xattr(7), in cgroups since kernel 5.7)."""
    if acting():
        return
    try:
        os.setxattr(directory, _MARK + controller, b"")
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOSPC):
            raise KernelError("setxattr", directory, error.errno or 0) from error


def _marked(directory: str) -> set[str]:
    try:
        names = os.listxattr(directory)
    except OSError as error:
        raise KernelError("listxattr", directory, error.errno or 0) from error
    return {name.removeprefix(_MARK) for name in names if name.startswith(_MARK)}


def _unmark(directory: str, controller: str) -> None:
    try:
        os.removexattr(directory, _MARK + controller)
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise KernelError("removexattr", directory, error.errno or 0) from error


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
