"""Project quota of a file system: whose files are whose, and how much they may be.

May import: `errors`, `linux`.  A project is a number that files carry; a directory with
FS_XFLAG_PROJINHERIT hands it on to what is made in it, and files of one project are not moved or
linked into a directory of another (quotactl(2), ext4 and xfs).  The file system is named by a
descriptor on it, not by its device: quotactl_fd(2), Linux 5.14.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from supervisor.errors import KernelError

SYS_QUOTACTL_FD = 443

# linux/quota.h, linux/dqblk_xfs.h
PRJQUOTA = 2
Q_GETQUOTA = 0x800007
Q_SETQUOTA = 0x800008
Q_XGETQSTATV = ord("X") << 8 | 8
FS_QUOTA_PDQ_ACCT = 1 << 4
FS_QUOTA_PDQ_ENFD = 1 << 5
QIF_BLIMITS = 1
QIF_ILIMITS = 4
UNIT = 1024
"""Bytes in which limits are given (QIF_DQBLKSIZE)."""
_DQBLK = struct.Struct("=8QI4x")
"""struct if_dqblk."""
_STATV_VERSION = 1
_STATV_FLAGS = struct.Struct("=bxH")
_STATV_SIZE = 256

# linux/fs.h
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
_FSXATTR = struct.Struct("=5I8s")

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

NO_QUOTA = (errno.ENOSYS, errno.ESRCH, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENODEV)
"""How a kernel, or a file system, says that it has no such quota."""


class Project:
    """What a project has: bytes and inodes in use, and how many it may have (0: any number)."""

    __slots__ = ("inode_limit", "inodes", "limit", "used")

    def __init__(self, used: int, limit: int, inodes: int, inode_limit: int) -> None:
        self.used, self.limit = used, limit
        self.inodes, self.inode_limit = inodes, inode_limit


def enforced(fd: int) -> bool:
    """Whether project limits hold on the file system of `fd`, not only accounting.

    Raises KernelError for what is no answer to that.
    """
    raw = ctypes.create_string_buffer(_STATV_SIZE)
    raw[0] = bytes([_STATV_VERSION])
    try:
        _quotactl(fd, Q_XGETQSTATV, 0, raw)
    except KernelError as error:
        if error.errno in NO_QUOTA:
            return False
        raise
    flags: int = _STATV_FLAGS.unpack_from(raw.raw)[1]
    return bool(flags & FS_QUOTA_PDQ_ACCT and flags & FS_QUOTA_PDQ_ENFD)


def get(fd: int, project: int) -> Project:
    """What the project has on the file system of `fd`.  Raises KernelError."""
    raw = ctypes.create_string_buffer(_DQBLK.size)
    try:
        _quotactl(fd, Q_GETQUOTA, project, raw)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):  # xfs: nobody ever had it
            return Project(0, 0, 0, 0)
        raise
    hard, _soft, space, inode_hard, _inode_soft, inodes = _DQBLK.unpack(raw.raw)[:6]
    return Project(space, hard * UNIT, inodes, inode_hard)


def limit(fd: int, project: int, size: int, inodes: int) -> None:
    """Give the project `size` bytes and so many inodes, 0 for any number.  Raises KernelError."""
    fields = QIF_BLIMITS | QIF_ILIMITS
    raw = _DQBLK.pack(-(-size // UNIT), 0, 0, inodes, 0, 0, 0, 0, fields)
    _quotactl(fd, Q_SETQUOTA, project, ctypes.create_string_buffer(raw, len(raw)))


def project_of(fd: int) -> int:
    """The project of the open file or directory.  Raises KernelError."""
    found: int = _attributes(fd)[3]
    return found


def put_into(fd: int, project: int, *, inherit: bool = True) -> None:
    """Make the open, empty directory, and all that is made in it, the project's.

    Without `inherit` a file.  Raises KernelError.
    """
    flags, extent, count, _project, cow, rest = _attributes(fd)
    flags |= FS_XFLAG_PROJINHERIT if inherit else 0
    raw = _FSXATTR.pack(flags, extent, count, project, cow, rest)
    try:
        fcntl.ioctl(fd, FS_IOC_FSSETXATTR, raw)
    except OSError as error:
        raise KernelError("FS_IOC_FSSETXATTR", None, error.errno or 0) from None


def _attributes(fd: int) -> tuple[int, int, int, int, int, bytes]:
    try:
        raw = fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(_FSXATTR.size))
    except OSError as error:
        raise KernelError("FS_IOC_FSGETXATTR", None, error.errno or 0) from None
    flags, extent, count, project, cow, rest = _FSXATTR.unpack(raw)
    return flags, extent, count, project, cow, rest


def _quotactl(fd: int, command: int, number: int, data: ctypes.Array[ctypes.c_char]) -> None:
    whole = ctypes.c_uint(command << 8 | PRJQUOTA)
    if _syscall(SYS_QUOTACTL_FD, ctypes.c_uint(fd), whole, number, data) < 0:
        raise KernelError("quotactl", f"project {number}", ctypes.get_errno())


def device_of(fd: int) -> str:
    """The number of the file system, as "MAJOR:MINOR"."""
    number = os.fstat(fd).st_dev
    return f"{os.major(number)}:{os.minor(number)}"
