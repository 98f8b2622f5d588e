"""File systems mounted nowhere: fsopen(2), fsconfig(2), fsmount(2), fspick(2) (Linux 5.2).

The mount is a descriptor: no path leads to it, and it goes when the last descriptor is closed and
the last mount namespace that it was attached in has ended.  May import: `errors`, `linux`.
"""

from __future__ import annotations

import ctypes
import os

from supervisor.errors import KernelError

SYS_FSOPEN = 430
SYS_FSCONFIG = 431
SYS_FSMOUNT = 432
SYS_FSPICK = 433

# linux/mount.h
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSPICK_CLOEXEC = 0x1
FSPICK_EMPTY_PATH = 0x8
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSCONFIG_CMD_RECONFIGURE = 7

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def mount(fstype: str, options: dict[str, str | None], attributes: int) -> int:
    """A new file system as a detached mount; `attributes` are MOUNT_ATTR_*.

    An option whose value is None is a flag.  Raises KernelError, with what the file system says of
    its options where the kernel tells.
    """
    context = _checked(_syscall(SYS_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC), "fsopen", fstype)
    try:
        _set(context, options)
        done = _syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        where = options.get("source") or fstype
        _checked(done, f"mount {fstype}", where, context)
        fd = _syscall(SYS_FSMOUNT, context, FSMOUNT_CLOEXEC, ctypes.c_uint(attributes))
        return _checked(fd, "fsmount", where, context)
    finally:
        os.close(context)


def reconfigure(mounted: int, options: dict[str, str | None]) -> None:
    """Change options of the file system that the descriptor is a mount of.  Raises KernelError."""
    flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH
    context = _checked(_syscall(SYS_FSPICK, mounted, b"", ctypes.c_uint(flags)), "fspick", "")
    try:
        _set(context, options)
        done = _syscall(SYS_FSCONFIG, context, FSCONFIG_CMD_RECONFIGURE, None, None, 0)
        _checked(done, "remount", "", context)
    finally:
        os.close(context)


def _set(context: int, options: dict[str, str | None]) -> None:
    for key, value in options.items():
        command = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
        text = None if value is None else os.fsencode(value)
        done = _syscall(SYS_FSCONFIG, context, command, key.encode(), text, 0)
        _checked(done, "fsconfig", key if value is None else f"{key}={value}", context)


def _checked(done: int, operation: str, path: str, context: int = -1) -> int:
    if done >= 0:
        return done
    errno = ctypes.get_errno()
    raise KernelError(operation, path, errno, hint=_told(context) if context >= 0 else "")


def _told(context: int) -> str:
    """The first message that waits in a file system's context (fsconfig(2)); empty for none."""
    try:
        text = os.read(context, 512).decode(errors="replace").strip()
    except OSError:
        return ""  # ENODATA
    return text[2:] if text[1:2] == " " else text  # "e ...", as the kernel marks an error
