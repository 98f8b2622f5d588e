"""The directories of one run, in every hierarchy at once: who is in them, kill, freeze, remove.

For this package only.  Where there is a unified hierarchy, with controllers or without, its core
files do all of this; the loops over processes are for v1 alone and for kernels before 5.14.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Protocol

from supervisor.cgroup import files, v1, v2
from supervisor.errors import KernelError

REMOVE_PATIENCE = 1.0
"""Seconds that `remove` waits for the last tasks to leave."""
KILL_PATIENCE = 1.0
"""Seconds that the loop without cgroup.kill goes on."""


class FreezerPart(Protocol):
    def begin(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...


class Tree:
    """RUN and RUN/payload in each hierarchy.

    `runs` are the RUN directories, the one that tells of processes first; `unified` is that of
    the unified hierarchy, `freezer` that of v1's freezer.
    """

    def __init__(self, runs: Sequence[str], unified: str | None, freezer: str | None) -> None:
        self.runs = list(runs)
        self.unified = unified
        self._freezer_run = freezer
        self._main = unified or (self.runs[0] if self.runs else None)

    def pids(self) -> tuple[int, ...]:
        if self._main is None:
            raise _none("list processes")
        return _pids_below(f"{self._main}/payload")

    def populated(self) -> bool:
        if self._main is None:
            return False
        if self.unified:
            return files.table(f"{self.unified}/cgroup.events").get("populated", 0) > 0
        return bool(_pids_below(self._main))

    def kill(self) -> None:
        self._kill("/payload")

    def _kill(self, below: str) -> None:
        if self._main is None:
            raise _none("kill")
        directory = self._main + below
        if self.unified:
            try:
                files.write(f"{directory}/cgroup.kill", "1")
                return
            except KernelError as error:
                # before 5.14 there is no such file; a directory that is gone is told by the loop
                if error.errno != errno.ENOENT:
                    raise
        self._kill_by_hand(directory, self._freezer(below))

    def _kill_by_hand(self, directory: str, freezer: FreezerPart | None) -> None:
        """Freeze so that nobody forks away, SIGKILL to each, thaw so that v1's can die of it."""

        def round_of_kills() -> bool:
            if freezer:
                freezer.freeze()
            try:
                return not v1.kill_each(lambda: _pids_below(directory))
            finally:
                if freezer:
                    freezer.thaw()

        if not files.until(round_of_kills, KILL_PATIENCE):
            raise KernelError("kill all of", directory, errno.EBUSY)

    def begin_to_freeze(self) -> bool:
        """Freeze without waiting for it; False where there is no freezer."""
        freezer = self._freezer("/payload")
        if freezer:
            freezer.begin()
        return freezer is not None

    def freeze(self) -> None:
        self._need_freezer().freeze()

    def thaw(self) -> None:
        self._need_freezer().thaw()

    def _need_freezer(self) -> FreezerPart:
        freezer = self._freezer("/payload")
        if freezer is None:
            raise _none("freeze", "mount the freezer hierarchy, or cgroup2")
        return freezer

    def _freezer(self, below: str) -> FreezerPart | None:
        if self._freezer_run:
            return v1.Freezer(self._freezer_run + below)
        return v2.Freezer(self.unified + below) if self.unified else None

    def try_remove(self) -> bool:
        """Remove what can be removed now; whether all is gone.  Never waits, kills nobody.

        Raises KernelError for anything but "somebody is in it".
        """
        left = [run for run in self.runs if not _remove(run)]
        return not left

    def remove(self) -> None:
        if self.try_remove():
            return
        if not files.until(self._kill_and_remove, REMOVE_PATIENCE):
            busy = ", ".join(self.runs)
            raise KernelError("rmdir", busy, errno.EBUSY, hint="a process there does not die")

    def _kill_and_remove(self) -> bool:
        """A process that was moved away in one hierarchy is in the others still: kill in each."""
        for run in self.runs:
            try:
                if run == self._main:
                    self._kill("")
                else:
                    v1.kill_each(lambda run=run: _pids_below(run))  # type: ignore[misc]
            except KernelError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBUSY):
                    raise
        return self.try_remove()


def _remove(run: str) -> bool:
    """Remove RUN with all below it; False while somebody is in it."""
    try:
        for leaf in (f"{run}/payload", f"{run}/init", run):
            files.remove(leaf)
    except KernelError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return _remove_nested(run)
    return True


def _remove_nested(run: str) -> bool:
    """The same where the job has made cgroups of its own in the payload's."""
    try:
        for directory in files.tree(run):
            files.remove(directory)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
            return error.errno == errno.ENOENT and error.path == run
        raise
    return True


def _pids_below(directory: str) -> tuple[int, ...]:
    """Every process in the cgroup and those below it.  Raises KernelError if it is gone."""
    found = list(files.processes(directory))
    for below in files.names(directory):
        try:
            found += _pids_below(f"{directory}/{below}")
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # one that the job removed
                raise
    return tuple(found)


def _none(operation: str, fix: str = "") -> KernelError:
    hint = fix or "this host has no cgroup for it: kill the job's init, the kernel kills the rest"
    return KernelError(operation, None, errno.EOPNOTSUPP, hint=hint)
