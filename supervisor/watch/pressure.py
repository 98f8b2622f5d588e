"""Pressure as it is told: a PSI trigger, or v1's memory.pressure_level, as one thing to wait for.

May import: `errors`, `model`, `cgroup.api`, `watch.alarms`, trio.

Each source has a descriptor of its own.  A PSI trigger says POLLPRI, which trio does not wait for;
inside of an epoll descriptor it makes that one readable.  Whoever asks the outer descriptor takes
the trigger's mark away (psi_trigger_poll, kernel/sched/psi.c), so nobody can ask afterwards which
of several it was: hence no common epoll as for v1's eventfds, and the wake-up is the event.

The kernel sets off a trigger once a window at most.  v1's eventfd goes off for every 512 pages
that are looked at (mm/vmpressure.c), some 60 times a second under load (measured): here it is not
listened to until a window is over.  While nothing stands still nothing wakes.
"""

from __future__ import annotations

import errno
import os
import select
from math import inf

import trio

from supervisor.cgroup.api import WINDOW, PressureSource
from supervisor.errors import KernelError
from supervisor.model.job import Resource
from supervisor.watch.alarms import register

_GONE = (errno.ENOENT, errno.ENODEV)


class Gauge:
    """One source, registered until `close`; to be closed before the cgroup is removed."""

    def __init__(self, source: PressureSource) -> None:
        """Raises KernelError; EPERM: before Linux 6.5 a trigger takes CAP_SYS_RESOURCE."""
        self._source = source
        self._told = -inf
        self._epoll: select.epoll | None = None
        if source.kind == "psi":
            self._fd = _trigger(source)
            self._epoll = select.epoll()
            self._epoll.register(self._fd, select.EPOLLPRI)
        else:
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                register(self._fd, source.path, source.control, source.text)
            except BaseException:
                os.close(self._fd)
                raise

    @property
    def resource(self) -> Resource:
        return self._source.resource

    async def wait(self) -> None:
        """Until there is pressure, or the cgroup is gone: whoever reads it then finds out."""
        if self._epoll is not None:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            return
        await trio.sleep_until(self._told + WINDOW)
        self._drain()  # what belongs to the window that is over has been told
        await trio.lowlevel.wait_readable(self._fd)
        self._told = trio.current_time()

    def _drain(self) -> None:
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Closing the descriptor is how the kernel is told."""
        if self._epoll is not None:
            self._epoll.close()
        os.close(self._fd)


def is_gone(error: KernelError) -> bool:
    """Whether this is how a read fails once the cgroup has been removed."""
    return error.errno in _GONE


def _trigger(source: PressureSource) -> int:
    try:
        fd = os.open(source.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        hint = "before Linux 6.5 this takes CAP_SYS_RESOURCE" if error.errno == errno.EPERM else ""
        raise KernelError("open", source.path, error.errno or 0, hint=hint) from error
    try:
        os.write(fd, source.text.encode())
    except OSError as error:
        os.close(fd)
        operation = f"write {source.text!r} to"
        raise KernelError(operation, source.path, error.errno or 0) from error
    return fd
