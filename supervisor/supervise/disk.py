"""A run's writable layer of a fixed size: made, watched, made larger, read at the end.

May import: everything above `front`.  `container.disk` has the ways to hold a layer to its size.

A full layer is noticed by being woken and looking.  What wakes is a mark on the job's root and on
its layer (`linux.fanotify`): taken off at the first write, put on again after as long as the
fastest writer would take to what is to be told next, and looked past once more.  While nothing is
written nothing wakes.  A job that frees the space again in between is not noticed; nor are writes
by mmap(2), until the file is closed, and what is made without an open file where the layer is a
quota's.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from supervisor.container import disk
from supervisor.container.disk import Place, Space, Usage, Way
from supervisor.errors import KernelError, LimitError, SpawnError
from supervisor.linux import fanotify
from supervisor.model.event import DiskLimit
from supervisor.model.record import DiskUse, Evidence
from supervisor.supervise.storage import Storage

if TYPE_CHECKING:
    from supervisor.supervise.run import Run

FASTEST = 2 << 30
"""Bytes a second that a job is taken to write at most (to the page cache)."""
SHORTEST, LONGEST = 0.005, 1.0
"""Seconds for which writes wake nobody, once they have."""
BLIND = 2.0
"""Seconds between two looks where the user has as many groups of fanotify(7) as he may have."""


class Disk:
    """The layer of one run: `full` whether it was ever seen so, `peak` the most seen in it."""

    def __init__(self, run: Run, space: Space, *, wanted: bool) -> None:
        self._run = run
        self._space = space
        self._wanted = wanted
        self._root = -1
        self._stage = 0
        self._seen = space.usage()
        self._blind = False
        self.full = False
        self.peak = 0

    @property
    def space(self) -> Space:
        return self._space

    def enter(self, pid: int) -> None:
        """The process lives in the job's root; one that has ended tells nothing any more."""
        try:
            self._root = disk.open_directory(f"/proc/{pid}/root")
        except KernelError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH):
                self._run.warn(f"the job's disk is looked at only when it ends: {error}")
            return
        self._space.enter(self._root)

    async def follow(self) -> None:
        """Tell of a layer that fills up, until cancelled."""
        while self._root >= 0:
            with self._armed() as alarm:
                await self.look()  # with the alarm set: what is written from now on wakes
                if alarm is not None:
                    await trio.lowlevel.wait_readable(alarm)
                elif self._blind:
                    return
                else:
                    await trio.sleep(BLIND)
            await trio.sleep(pause(self._seen))

    @contextmanager
    def _armed(self) -> Iterator[int | None]:
        """A descriptor that gets readable by a write; None where there is none to be had now."""
        groups: list[int] = []
        try:
            with select.epoll() as both:
                try:
                    groups.append(fanotify.writes(self._root))
                    if self._space.mounted:
                        groups.append(fanotify.creations(self._space.mounted[0]))
                except KernelError as error:
                    self._cannot(error)
                for group in groups:
                    both.register(group, select.EPOLLIN)
                yield both.fileno() if groups else None
        finally:
            for group in groups:
                os.close(group)

    def _cannot(self, error: KernelError) -> None:
        if error.errno == errno.EMFILE:
            return
        self._blind = True
        if self._wanted:
            self._run.warn(f"nothing tells of the job's full disk before its end: {error}")

    async def look(self) -> None:
        """Read how full it is; tell when it has become nearly full, or full."""
        now = self._read()
        stage = 2 if now.full else 1 if now.near and self._wanted else 0
        if stage > self._stage:
            self._stage = stage
            await self._run.handle(told(now, time.time()))
        elif not now.near:
            self._stage = 0

    def _read(self) -> Usage:
        self._seen = self._space.usage()
        self.peak = max(self.peak, self._seen.used)
        self.full = self.full or self._seen.full
        return self._seen

    def grow(self, to: float) -> int:
        """Make the layer larger, at once.  Raises KernelError."""
        self._space.grow(int(to))
        self._stage = 0
        return int(to)

    def use(self) -> DiskUse:
        """The last reading, when every process of the job is gone."""
        now = self._read()
        return DiskUse(
            limit=now.limit,
            used=now.used,
            peak=self.peak,
            inode_limit=now.inode_limit,
            inodes=now.inodes,
            full=self.full,
            by=self._space.way,
        )

    def evidence(self) -> tuple[Evidence, ...]:
        """What the verdict rests on, and what was wrong with the disk below."""
        if not self.full and not (trouble := self._space.trouble()):
            return ()
        now, trouble = self._seen, self._space.trouble()
        source = f"writable layer ({self._space.way})"
        text = (
            f"{now.used} of {now.limit} bytes, {now.inodes} of {now.inode_limit} inodes "
            f"at the end, {self.peak} bytes at most"
        )
        found = (Evidence(source, text),)
        return (*found, Evidence(source, trouble)) if trouble else found

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
        self._space.close()


def told(now: Usage, at: float) -> DiskLimit:
    return DiskLimit(at, now.full, now.scarce, now.used, now.limit, now.inodes, now.inode_limit)


def pause(now: Usage) -> float:
    """Seconds until the fastest writer could come to what is to be told next."""
    if now.full:
        return LONGEST / 2
    room = now.left if now.near else now.room
    return min(max(room / FASTEST, SHORTEST), LONGEST)


@asynccontextmanager
async def bounded(run: Run, storage: Storage) -> AsyncIterator[Disk | None]:
    """The run's layer, if it is to have a size; `storage` is told where it lies.

    Raises LimitError where nothing here can hold it to that size, KernelError.
    """
    if run.spec.limits.disk is None:
        yield None
        return
    wanted = run.shared.engine.wants("on_disk_limit", run.spec)
    base = storage.layers.run_dir
    space = await _open(run, storage.place, wanted=wanted)
    storage.layers = space.layers
    storage.streams.layer = space.mounted
    found = Disk(run, space, wanted=wanted)
    try:
        yield found
    finally:
        with trio.CancelScope(shield=True):
            await _close(run, found, base)


async def _open(run: Run, place: Place, *, wanted: bool) -> Space:
    """By the way that was asked for, or the first that can be gone."""
    spec = run.spec
    if spec.write != "overlay":
        raise SpawnError("mounts", 0, "", "a disk limit needs a writable layer", hint=NO_LAYER)
    size = disk.size_of(spec, wanted=wanted)
    privileged = run.shared.host.facts().privileged
    tried: list[str] = []
    for way in disk.ways(spec, place, tried, privileged=privileged):
        work = partial(open_space, run, way, size, place.path, privileged=privileged)
        try:
            return await trio.to_thread.run_sync(work)
        except KernelError as error:
            if spec.disk_by != "auto":
                raise
            tried.append(f"{way}: {error}")
            run.warn(f"the disk limit cannot be held by {tried[-1]}; trying the next")
    raise LimitError([f"limits.disk: {line}" for line in tried])


NO_LAYER = 'set write = "overlay"'


def open_space(run: Run, way: Way, size: disk.Size, base: str | None, *, privileged: bool) -> Space:
    """Make the layer, in a thread.  Raises KernelError."""
    from supervisor.container import disk_loop, disk_quota, disk_tmpfs

    space = run.spec.user_namespace
    owner = space.host_id if space.kind == "map" else os.geteuid()
    if way == "tmpfs":
        if not privileged:
            return disk_tmpfs.InnerSpace(size)
        return disk_tmpfs.open_tmpfs(size, owner)
    assert base is not None  # `disk.refusal` has seen to that
    if way == "loop":
        return disk_loop.open_loop(base, size, owner)
    project = run.shared.projects.take(base, run.id)
    try:
        return disk_quota.open_quota(base, size, project)
    except OSError:
        run.shared.projects.give_back(base, project)
        raise


async def _close(run: Run, found: Disk, base: str | None) -> None:
    """Off the event loop: the last to let go of a file system unmounts it."""
    try:
        if run.keeps_layer and found.space.mounted and base is not None:
            await trio.to_thread.run_sync(keep, found.space.mounted[0], base)
    except OSError as error:
        run.emit("cleanup_failed", text=str(error))
    await trio.to_thread.run_sync(found.close)
    project = getattr(found.space, "project", None)
    if project is not None and base is not None:
        try:
            await trio.to_thread.run_sync(run.shared.projects.give_back, base, project)
        except OSError as error:
            run.emit("cleanup_failed", text=str(error))


def keep(mounted: int, base: str) -> None:
    """Copy the layer out of its file system, to where it would have been without.

    By cp(1), which knows of holes, links, nodes and attributes.  Raises KernelError.
    """
    argv = ["cp", "-a", "--", f"/proc/self/fd/{mounted}/upper/.", f"{base}/upper"]
    done = subprocess.run(
        argv, pass_fds=(mounted,), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        hint = why[0] if why else f"cp: status {done.returncode}"
        raise KernelError("copy", f"{base}/upper", errno.EIO, hint=hint)
