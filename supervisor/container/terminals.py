"""A terminal of a job's own, from its own devpts; loaded by the launcher.

It is made by a process that is in the job's mounts already, and not yet in its hands.  The name
/dev/pts/ptmx may lead anywhere by then: what is opened must be devpts' multiplexer, and the other
side is taken from it without a name (TIOCGPTPEER, Linux 4.13), as names are what CVE-2025-52565 and
its like mislead by.
"""

from __future__ import annotations

import fcntl
import os

from supervisor.container import child
from supervisor.linux import constants, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from supervisor.container.init import Descriptors
    from supervisor.container.protocol import Request

_PTMX = os.makedev(5, 2)
_ELOOP = 40
_INT = 4


def open_streams(request: Request, fds: Descriptors) -> tuple[tuple[int, int, int], int]:
    """What is to be 0, 1 and 2; and the other side of the terminal that they are, or -1.

    Raises StageError.
    """
    if request.terminal is None:
        return (fds.stdin, fds.stdout, fds.stderr), -1
    try:
        master, slave = open_terminal(request.terminal, request.uid)
    except OSError as error:
        raise child.StageError("terminal", error, "/dev/pts/ptmx") from None
    return (slave, slave, slave), master


def open_terminal(size: tuple[int, int], owner: int) -> tuple[int, int]:
    """Master and slave, both close-on-exec; the slave belongs to `owner`, a uid in the job.

    Raises OSError; ELOOP where /dev/pts is not what it should be.
    """
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
    master = syscalls.openat2(
        constants.AT_FDCWD, "/dev/pts/ptmx", flags, resolve=constants.RESOLVE_NO_MAGICLINKS
    )
    try:
        if not _is_multiplexer(master):
            raise OSError(_ELOOP, "", "/dev/pts/ptmx")
        fcntl.ioctl(master, constants.TIOCSPTLCK, bytes(_INT))
        slave = fcntl.ioctl(master, constants.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        os.fchown(slave, owner, -1)
        resize(master, size)
    except OSError:
        os.close(master)
        raise
    return master, slave


def _is_multiplexer(fd: int) -> bool:
    on_devpts = syscalls.fs_magic(fd) == constants.DEVPTS_SUPER_MAGIC
    return on_devpts and os.fstat(fd).st_rdev == _PTMX


def resize(fd: int, size: tuple[int, int]) -> None:
    """Rows and columns of either side (TIOCSWINSZ, ioctl_tty(2))."""
    rows, columns = size
    winsize = rows.to_bytes(2, "little") + columns.to_bytes(2, "little") + bytes(4)
    fcntl.ioctl(fd, constants.TIOCSWINSZ, winsize)
