"""landlock(7): a process gives up rights to files and sockets, for itself and all it starts.

Numbers: include/uapi/linux/landlock.h.  Loaded by the launcher: nothing is imported but ctypes, os
and our own.  Only what the launcher's children use is here.
"""

from __future__ import annotations

import ctypes
import os

from supervisor.errors import KernelError

_SYS_CREATE_RULESET = 444
_SYS_ADD_RULE = 445
_SYS_RESTRICT_SELF = 446
_VERSION = 1
_PATH_BENEATH = 1

WRITE_FILE = 1 << 1
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE = 0b1111111 << 6
"""MAKE_CHAR, _DIR, _REG, _SOCK, _FIFO, _BLOCK and _SYM."""
REFER = 1 << 13
TRUNCATE = 1 << 14
WRITE = WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE | REFER | TRUNCATE
"""All that changes anything in a file system."""
OF_FILES = WRITE_FILE | TRUNCATE
"""Those of them that a file can have by itself."""
ABSTRACT_SOCKETS = 1
"""LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET."""

REFER_SINCE = 2
"""Before this version of the interface every rename to another directory is refused (EXDEV)."""
TRUNCATE_SINCE = 3
SCOPES_SINCE = 6

_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr."""

    _fields_ = [
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _Beneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def version() -> int:
    """Of the kernel's interface; 0 where there is none, or it was not enabled at boot (lsm=)."""
    found: int = _syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return max(found, 0)


def create_ruleset(files: int, scoped: int) -> int:
    """A descriptor, close-on-exec, of a ruleset that takes away these rights and scopes.

    Raises KernelError: EINVAL, E2BIG for what this kernel's version does not know.
    """
    attributes = _Ruleset(files, 0, scoped)
    size = 24 if scoped else 8
    fd: int = _syscall(
        _SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0)
    )
    if fd < 0:
        raise KernelError("landlock_create_ruleset", None, ctypes.get_errno())
    return fd


def allow(ruleset: int, fd: int, rights: int) -> None:
    """Leave `rights` on the file `fd`, or on the directory and all below it.

    Raises KernelError: EINVAL for rights that only a directory can have, EBADFD for what is on no
    mount that a path leads to (a pipe, a memfd), and needs no rule.
    """
    rule = _Beneath(rights, fd)
    done = _syscall(
        _SYS_ADD_RULE,
        ruleset,
        ctypes.c_int(_PATH_BENEATH),
        ctypes.byref(rule),
        ctypes.c_uint32(0),
    )
    if done < 0:
        raise KernelError("landlock_add_rule", None, ctypes.get_errno())


def allow_path(ruleset: int, path: str, rights: int) -> None:
    """`allow` for a path.  Raises KernelError, OSError."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allow(ruleset, fd, rights)
    finally:
        os.close(fd)


def restrict_self(ruleset: int) -> None:
    """From now on, and for good.  EPERM without PR_SET_NO_NEW_PRIVS or CAP_SYS_ADMIN."""
    if _syscall(_SYS_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)) < 0:
        raise KernelError("landlock_restrict_self", None, ctypes.get_errno())
