"""The eventfds of v1's memory controller, any number behind one descriptor.

May import: `errors`, the standard library.  See "cgroup.event_control" in the kernel's
Documentation/admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
import select

from supervisor.errors import KernelError


class Alarms:
    """An epoll descriptor that holds every registered eventfd: a thousand jobs, one waiting task.

    An alarm is hint enough to look, and no more: it goes off as well when an ancestor's limit is
    reached, and when the cgroup is removed.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._eventfds: set[int] = set()

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._epoll.fileno()

    def add(self, path: str, control: str) -> int:
        """Write "EVENTFD TARGETFD" to `control` for the file `path`; the number of the alarm.

        Raises KernelError, ENOENT where the cgroup is gone.
        """
        eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            register(eventfd, path, control)
            self._epoll.register(eventfd, select.EPOLLIN)
        except BaseException:
            os.close(eventfd)
            raise
        self._eventfds.add(eventfd)
        return eventfd

    def remove(self, alarm: int) -> None:
        """Closing the eventfd is how the kernel is told; one already removed is passed over."""
        if alarm in self._eventfds:
            self._eventfds.remove(alarm)
            self._epoll.unregister(alarm)
            os.close(alarm)

    def take(self, alarm: int) -> bool:
        """Whether this one went off since it was last taken or read.  Never blocks."""
        try:
            os.eventfd_read(alarm)
        except BlockingIOError:
            return False
        return True

    def read(self) -> list[int]:
        """The alarms that went off since they were last taken or read.  Never blocks."""
        ready = [fd for fd, _ in self._epoll.poll(0, max(1, len(self._eventfds)))]
        return [fd for fd in ready if self.take(fd)]

    def close(self) -> None:
        """Idempotent."""
        for alarm in list(self._eventfds):
            self.remove(alarm)
        self._epoll.close()


def register(eventfd: int, path: str, control: str, argument: str = "") -> None:
    """Write "EVENTFD TARGETFD ARGUMENT" to `control` for the file `path`.  Raises KernelError."""
    # neither descriptor is needed once the kernel has taken note
    operation, where = "open", path
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            where = control
            fd = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
            try:
                operation = "write"
                os.write(fd, f"{eventfd} {target} {argument}".rstrip().encode())
            finally:
                os.close(fd)
        finally:
            os.close(target)
    except OSError as error:
        raise KernelError(operation, where, error.errno or 0) from error
