"""One small function per system call; each failure is a KernelError with operation and path.

Bound with `ctypes.PyDLL`, which keeps the GIL: a clone in the middle of another thread's
Python would hang the child (glibc's fork handlers do not run for it).
Loaded by the launcher: nothing is imported but ctypes, os and our constants.
"""

from __future__ import annotations

import ctypes
import os

from supervisor.errors import KernelError
from supervisor.linux import constants as c

# arch/*/include/uapi/asm/unistd: where x86-64 and the generic table (arm64, riscv64) differ
_X86_64 = {"rt_sigaction": 13, "clone": 56, "pivot_root": 155, "capset": 126,
           "keyctl": 250}  # fmt: skip
_GENERIC = {"rt_sigaction": 134, "clone": 220, "pivot_root": 41, "capset": 91,
            "keyctl": 219}  # fmt: skip
_NUMBERS = _X86_64 if os.uname().machine == "x86_64" else _GENERIC

SYS_RT_SIGACTION = _NUMBERS["rt_sigaction"]
SYS_CLONE = _NUMBERS["clone"]
SYS_PIVOT_ROOT = _NUMBERS["pivot_root"]
SYS_CAPSET = _NUMBERS["capset"]
SYS_KEYCTL = _NUMBERS["keyctl"]
SYS_PIDFD_SEND_SIGNAL = 424
SYS_OPEN_TREE = 428
SYS_MOVE_MOUNT = 429
SYS_CLONE3 = 435
SYS_CLOSE_RANGE = 436
SYS_OPENAT2 = 437
SYS_MOUNT_SETATTR = 442

_ENOSYS = 38
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_mount = _libc.mount
_mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_umount2 = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_unshare = _libc.unshare
_unshare.argtypes = (ctypes.c_int,)
_setns = _libc.setns
_setns.argtypes = (ctypes.c_int, ctypes.c_int)
_sethostname = _libc.sethostname
_sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
_setrlimit = _libc.setrlimit
_fstatfs = _libc.fstatfs


class CloneArgs(ctypes.Structure):
    """struct clone_args of clone3(2), the version with `cgroup` (88 bytes, Linux 5.7)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


class MountAttr(ctypes.Structure):
    """struct mount_attr of mount_setattr(2)."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")
    ]


class OpenHow(ctypes.Structure):
    """struct open_how of openat2(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


class Rlimit(ctypes.Structure):
    """struct rlimit on 64-bit kernels."""

    _fields_ = [("soft", ctypes.c_uint64), ("hard", ctypes.c_uint64)]


_setrlimit.argtypes = (ctypes.c_int, ctypes.POINTER(Rlimit))


def _fail(operation: str, path: str | None = None) -> KernelError:
    return KernelError(operation, path, ctypes.get_errno())


def _path(path: str) -> bytes:
    return os.fsencode(path)


def clone(flags: int, *, exit_signal: int, cgroup_fd: int = -1) -> tuple[int, int]:
    """clone3(2) as fork: (0, -1) in the child, (pid, pidfd) in the parent.

    The pidfd is -1 unless `flags` has CLONE_PIDFD.  `cgroup_fd` >= 0 adds CLONE_INTO_CGROUP (an
    unified-hierarchy directory; EBADF for v1).  Where a seccomp filter answers ENOSYS, as
    Docker's does, clone(2) is tried instead, which cannot take `cgroup_fd`: then ENOSYS is raised.
    Only in a single-threaded process.
    """
    pidfd = ctypes.c_int(-1)
    args = CloneArgs(flags=flags, exit_signal=exit_signal)
    if flags & c.CLONE_PIDFD:
        args.pidfd = ctypes.addressof(pidfd)
    if cgroup_fd >= 0:
        args.flags |= c.CLONE_INTO_CGROUP
        args.cgroup = cgroup_fd
    pid = _syscall(SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if pid < 0 and ctypes.get_errno() == _ENOSYS and cgroup_fd < 0:
        pid = _syscall(
            SYS_CLONE, ctypes.c_ulong(flags | exit_signal), None, ctypes.byref(pidfd), None, None
        )
    if pid < 0:
        raise _fail("clone3")
    return pid, pidfd.value if pid else -1


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _unshare(flags) < 0:
        raise _fail("unshare", c.CLONE_NAMES.get(flags))


def setns(fd: int, kind: int) -> None:
    """setns(2); `kind` is a CLONE_NEW* flag or 0."""
    if _setns(fd, kind) < 0:
        raise _fail("setns", c.CLONE_NAMES.get(kind))


def mount(source: str | None, target: str, fstype: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    done = _mount(
        None if source is None else _path(source),
        _path(target),
        None if fstype is None else fstype.encode(),
        flags,
        _path(data) if data else None,
    )
    if done < 0:
        raise _fail(f"mount {fstype}" if fstype else "mount", target)


def umount(target: str, flags: int = c.MNT_DETACH) -> None:
    """umount2(2)."""
    if _umount2(_path(target), flags) < 0:
        raise _fail("umount", target)


def openat2(at: int, path: str, flags: int, *, mode: int = 0, resolve: int) -> int:
    """openat2(2) (Linux 5.6): `resolve` is RESOLVE_* flags; ELOOP for a link they forbid."""
    how = OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    fd: int = _syscall(SYS_OPENAT2, at, _path(path), ctypes.byref(how), size)
    if fd < 0:
        raise _fail("open", path)
    return fd


def fs_magic(fd: int) -> int:
    """f_type of fstatfs(2): which kind of file system the file lies on."""
    found = (ctypes.c_long * 16)()  # struct statfs is 120 bytes; f_type is the first field
    if _fstatfs(fd, found) < 0:
        raise _fail("fstatfs")
    return int(found[0])


def open_tree(path: str, *, recursive: bool, at: int = c.AT_FDCWD) -> int:
    """open_tree(2): a detached copy of the mount at `path`, as a descriptor (Linux 5.2).

    With an empty `path` it is the mount of `at`.
    """
    flags = c.OPEN_TREE_CLONE | c.OPEN_TREE_CLOEXEC | (c.AT_RECURSIVE if recursive else 0)
    flags |= 0 if path else c.AT_EMPTY_PATH
    fd: int = _syscall(SYS_OPEN_TREE, at, _path(path), ctypes.c_uint(flags))
    if fd < 0:
        raise _fail("open_tree", path)
    return fd


def move_mount(fd: int, target: int) -> None:
    """move_mount(2): attach a detached mount on the file that the descriptor `target` is."""
    flags = c.MOVE_MOUNT_F_EMPTY_PATH | c.MOVE_MOUNT_T_EMPTY_PATH
    if _syscall(SYS_MOVE_MOUNT, fd, b"", target, b"", ctypes.c_uint(flags)) < 0:
        raise _fail("move_mount")


def mount_setattr(
    fd: int,
    path: str,
    attributes: int,
    *,
    propagation: int = 0,
    recursive: bool,
    user_namespace: int = 0,
) -> None:
    """mount_setattr(2): set MOUNT_ATTR_* on a mount and, if asked, on all below (Linux 5.12).

    With an empty `path` the mount is `fd` itself; `propagation` is MS_PRIVATE and the like.
    `user_namespace` is a descriptor, and goes with MOUNT_ATTR_IDMAP (EINVAL: not this file system).
    """
    attr = MountAttr(attr_set=attributes, propagation=propagation, userns_fd=user_namespace)
    flags = (c.AT_RECURSIVE if recursive else 0) | (0 if path else c.AT_EMPTY_PATH)
    done = _syscall(
        SYS_MOUNT_SETATTR,
        fd,
        _path(path),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    if done < 0:
        raise _fail("mount_setattr", path or None)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    if _syscall(SYS_PIVOT_ROOT, _path(new), _path(old)) < 0:
        raise _fail("pivot_root", new)


def sethostname(name: str) -> None:
    """sethostname(2)."""
    raw = name.encode()
    if _sethostname(raw, len(raw)) < 0:
        raise _fail("sethostname", name)


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """prctl(2); unused arguments are zero, as the newer options demand."""
    done: int = _prctl(option, arg2, arg3, 0, 0)
    if done < 0:
        raise _fail(f"prctl {option}")
    return done


def set_name(name: str) -> None:
    """PR_SET_NAME: what `ps` shows of this thread (15 bytes)."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    prctl(c.PR_SET_NAME, ctypes.addressof(text))


def set_child_subreaper(on: bool = True) -> None:
    """PR_SET_CHILD_SUBREAPER: orphaned descendants become children of this process."""
    prctl(c.PR_SET_CHILD_SUBREAPER, int(on))


def setrlimit(resource: int, soft: int, hard: int) -> None:
    """setrlimit(2); EPERM for raising `hard` without CAP_SYS_RESOURCE."""
    if _setrlimit(resource, ctypes.byref(Rlimit(soft, hard))) < 0:
        raise _fail(f"setrlimit {resource}")


def close_range(first: int, last: int, flags: int = 0) -> None:
    """close_range(2) (Linux 5.9; CLOSE_RANGE_CLOEXEC 5.11)."""
    if _syscall(SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), flags) < 0:
        raise _fail("close_range")


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2); ESRCH once the process has been reaped."""
    if _syscall(SYS_PIDFD_SEND_SIGNAL, pidfd, number, None, 0) < 0:
        raise _fail("pidfd_send_signal")


def default_signal(number: int) -> None:
    """rt_sigaction(2) to SIG_DFL, past the C library, which refuses it for signals of its own.

    posix_spawn(3) leaves those ignored in the child, and an exec keeps that.
    """
    action = bytes(32)  # struct sigaction of the kernel: no handler, no flags, no mask
    if _syscall(SYS_RT_SIGACTION, number, action, None, ctypes.c_size_t(8)) < 0:
        raise _fail(f"rt_sigaction {number}")


def set_capabilities(permitted: int, inheritable: int) -> None:
    """capset(2): `permitted` is the effective set, too."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    data = (ctypes.c_uint32 * 6)()
    for word in range(2):
        low, kept = permitted >> 32 * word & 0xFFFFFFFF, inheritable >> 32 * word & 0xFFFFFFFF
        data[3 * word : 3 * word + 3] = [low, low, kept]
    if _syscall(SYS_CAPSET, header, data) < 0:
        raise _fail("capset")


def clear_inheritable_capabilities(effective: int) -> None:
    """Inheritable and ambient sets empty, effective and permitted `effective`.

    A non-empty inheritable set would survive into the payload (CVE-2022-24769).
    """
    prctl(c.PR_CAP_AMBIENT, c.PR_CAP_AMBIENT_CLEAR_ALL)
    set_capabilities(effective, 0)


class FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def install_filter(program: bytes) -> None:
    """PR_SET_SECCOMP: a BPF program (8 bytes an instruction) decides over every later call.

    EACCES without PR_SET_NO_NEW_PRIVS or CAP_SYS_ADMIN; EINVAL for a program the kernel rejects.
    """
    code = ctypes.create_string_buffer(program, len(program))
    described = FilterProgram(len(program) // 8, ctypes.addressof(code))
    prctl(c.PR_SET_SECCOMP, c.SECCOMP_MODE_FILTER, ctypes.addressof(described))


def new_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: an empty one; nothing where there are no keyrings."""
    if _syscall(SYS_KEYCTL, c.KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        error = _fail("keyctl")
        if error.errno != _ENOSYS:
            raise error
