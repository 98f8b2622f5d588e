"""The extraction's process: it shuts itself in, then unpacks what comes through a pipe.

Started by `unpack`, as `python -I -S -c ... DATA STATUS PARENT TARGET ENTRIES BYTES SECONDS`, one
for each layer, because what it reads is hostile.  Before the first byte is read:

    namespaces     mounts, network, IPC and host name of its own; without root also users, where it
                   is root over its user's files alone
    root           a mount of TARGET, nodev, nosuid and noexec, and nothing else: pivot_root(2), and
                   the host's root is detached.  Where a container's root may not mount: chroot(2)
    capabilities   those that writing files of others takes (KEPT), also in the bounding set, and
                   no_new_privs
    bounds         RLIMIT_FSIZE, RLIMIT_CPU, RLIMIT_AS; no core, no further process
    descriptors    the pipe, the socket and its root are all it has
    parent         SIGKILL when the thread that started it ends

Messages to the parent, on a SOCK_SEQPACKET socket, are words separated by NUL:

    opaque                            with the directory as a descriptor, for the parent to mark
    done ENTRIES DEVICES ATTRIBUTES   the archive is complete; of the last two, those left out
    failed WHAT ERRNO NAME TEXT       WHAT is one of FAILURES; the end

Imports no more than the launcher does.
"""

from __future__ import annotations

import _signal
import _socket
import os
import resource
import sys

from supervisor.image import extract, tar
from supervisor.image.fields import TarError
from supervisor.linux import caps, syscalls
from supervisor.linux import constants as c

FAILURES = ("archive", "entries", "system", "sandbox", "users", "memory", "internal")

KEPT = frozenset(
    caps.number(name) for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
)
MEMORY = 1 << 30
"""Bytes of address space: the names of a million directories fit in it."""

_ATTRIBUTES = c.MOUNT_ATTR_NODEV | c.MOUNT_ATTR_NOSUID | c.MOUNT_ATTR_NOEXEC
_SPACES = c.CLONE_NEWNS | c.CLONE_NEWNET | c.CLONE_NEWIPC | c.CLONE_NEWUTS
_EPERM, _EINVAL, _ENODATA, _EOPNOTSUPP = 1, 22, 61, 95
_MOST = 1000
"""Bytes of a name or a text in a message."""


class Unable(Exception):
    """The process cannot shut itself in: the word for it, and why."""

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(what)
        self.what = what
        self.error = error


def main() -> None:
    """Never returns; whatever goes wrong is one message."""
    data, status, parent = map(int, sys.argv[1:4])
    target, (entries, size, seconds) = sys.argv[4], map(int, sys.argv[5:8])
    control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, status)
    extraction = None
    try:
        owners, trusted = shut_in(target, parent, size, seconds)
        archive = tar.Archive(tar.Source(data))
        marker = Marker(control, trusted)
        extraction = extract.Extraction(archive, owners=owners, limit=entries, on_opaque=marker)
        extraction.run()
    except Unable as error:
        fail(control, error.what, error.error, b"")
    except TarError as error:
        fail(control, "archive", None, extraction.at if extraction else b"", str(error))
    except extract.TooManyEntries:
        fail(control, "entries", None, b"")
    except OSError as error:
        fail(control, "system", error, extraction.at if extraction else b"")
    except MemoryError:
        del extraction
        fail(control, "memory", None, b"")
    except BaseException as error:
        fail(control, "internal", None, extraction.at if extraction else b"", repr(error))
    else:
        found = (extraction.entries, extraction.devices_left_out, extraction.attributes_left_out)
        control.send(b"\0".join((b"done", *(b"%d" % count for count in found))))
    finally:
        os._exit(0)


def fail(
    control: _socket.socket, what: str, error: OSError | None, name: bytes, text: str = ""
) -> None:
    number = 0 if error is None else error.errno or 0
    text = text or getattr(error, "operation", "")
    words = (b"failed", what.encode(), b"%d" % number, name[:_MOST].replace(b"\0", b"?"))
    said = text.encode("utf-8", "replace")[:_MOST].replace(b"\0", b"?")
    control.send(b"\0".join((*words, said)))


class Marker:
    """Sends opaque directories to the parent; says whether that marks them."""

    def __init__(self, control: _socket.socket, trusted: bool) -> None:
        self._control = control
        self._trusted = trusted

    def __call__(self, directory: int) -> bool:
        if self._trusted:
            raw = directory.to_bytes(4, sys.byteorder)
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, raw)
            self._control.sendmsg([b"opaque"], [rights])
        return self._trusted


def shut_in(target: str, parent: int, size: int, seconds: int) -> tuple[bool, bool]:
    """All that the module says; raises Unable.

    Tells whether ids can be kept, and whether the parent may set trusted.* attributes.
    """
    os.umask(0)
    os.setsid()  # Ctrl-C is the parent's to handle
    syscalls.prctl(c.PR_SET_PDEATHSIG, _signal.SIGKILL)
    syscalls.set_name("supervise:unpack")
    try:
        os.chdir(target)
        every, extents = caps.last_capability() + 1, id_map()
        trusted = os.geteuid() == 0 and extents == [(0, 0, 0xFFFFFFFF)]
        owners = os.geteuid() == 0 and sum(count for _, _, count in extents) > 1
        mounts = enter_spaces() if os.geteuid() == 0 else become_root()
        kept = caps.mask(KEPT) & caps.effective()  # the last look at /proc
        take_root(mounts)
        limit(size, seconds)
        drop(every, kept)
        # a new user namespace has reset it (kernel/cred.c, commit_creds)
        syscalls.prctl(c.PR_SET_PDEATHSIG, _signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        forget_acl()
    except OSError as error:
        raise Unable("sandbox", error) from None
    forget_imports()
    return owners, trusted


def enter_spaces() -> bool:
    """New namespaces, and whether they could be had: not by a container's root."""
    try:
        syscalls.unshare(_SPACES)
    except OSError as error:
        if error.errno != _EPERM:
            raise
        return False
    return True


def become_root() -> bool:
    """The same for an ordinary user, who is root over his own files in there."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(c.CLONE_NEWUSER | _SPACES)
        write_file("/proc/self/setgroups", b"deny")
        write_file("/proc/self/uid_map", b"0 %d 1" % uid)
        write_file("/proc/self/gid_map", b"0 %d 1" % gid)
    except OSError as error:
        raise Unable("users", error) from None
    return True


def id_map() -> list[tuple[int, int, int]]:
    """user_namespaces(7): what user numbers there are here."""
    with open("/proc/self/uid_map") as file:  # noqa: PTH123
        rows = [line.split() for line in file]
    return [(int(inside), int(outside), int(count)) for inside, outside, count in rows]


def write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def take_root(mounts: bool) -> None:
    """The current directory becomes the root, and all there is.

    Without a mount namespace of its own nothing is mounted, whatever could be.
    """
    if mounts:
        syscalls.mount(None, "/", None, c.MS_REC | c.MS_PRIVATE)
        tree = syscalls.open_tree(".", recursive=False)
        syscalls.mount_setattr(tree, "", _ATTRIBUTES, recursive=False)
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        syscalls.move_mount(tree, here)
        os.fchdir(tree)
        os.close(here)
        os.close(tree)
    if not (mounts and pivoted()):
        os.chroot(".")
    os.chdir("/")


def pivoted() -> bool:
    """Whether the root was changed for the current directory: not where it is the initial ramfs."""
    try:
        syscalls.pivot_root(".", ".")
    except OSError as error:
        if error.errno != _EINVAL:
            raise
        return False
    syscalls.umount(".", c.MNT_DETACH)
    return True


def forget_acl() -> None:
    """Every file would inherit that of the directory."""
    try:
        os.removexattr(".", "system.posix_acl_default")
    except OSError as error:
        if error.errno not in (_ENODATA, _EOPNOTSUPP):
            raise


def limit(size: int, seconds: int) -> None:
    """Resource limits, never above what there is already."""
    for what, most in (
        (resource.RLIMIT_FSIZE, size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(what)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            # SIGXCPU comes at the soft limit, and says more than SIGKILL at the hard one
            resource.setrlimit(what, (most, most + (what == resource.RLIMIT_CPU)))


def drop(every: int, kept: int) -> None:
    """Of all capabilities, whose number is `every`, have `kept` (a mask) and never more."""
    for number in range(every):
        if not kept >> number & 1:
            syscalls.prctl(c.PR_CAPBSET_DROP, number)
    syscalls.prctl(c.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.clear_inheritable_capabilities(kept)


def forget_imports() -> None:
    """Nothing can be imported from what is the root now."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
