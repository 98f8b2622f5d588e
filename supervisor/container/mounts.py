"""File-system set-up as a list of values: each operation can be described, and executed.

The plan is computed by `rootfs` in the supervisor, travels as tuples, and is executed in one place,
by the job's init in its new mount namespace.  Everything after `PivotRoot` names paths inside the
job's root, so that no link in it leads out; what is bound from the host is opened by `OpenTree`
before.  Loaded by the launcher.
"""

from __future__ import annotations

import os

from supervisor.container.overlays import Overlay as Overlay
from supervisor.container.overlays import Own as Own
from supervisor.container.overlays import Whiteout as Whiteout
from supervisor.container.steps import HELD, open_path
from supervisor.container.steps import Context as Context
from supervisor.container.steps import Operation as Operation
from supervisor.container.steps import make_dirs as make_dirs
from supervisor.linux import constants as c
from supervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEV_NODES = (
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
)
DEV_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
"""What is in a job's /dev, beside pts and shm: (name, major, minor), (name, target)."""

WORK_DIRS = ("root", "host", "seen", "white", "over", "empty", "layers", "own", "dev", "dev/pts",
             "dev/shm")  # fmt: skip
"""What is in the launcher's work directory: where a root is put together; the host's / without
what is mounted below it; the same with directories hidden; a layer that hides names, and where it
is put over /etc; what covers a directory that is to be hidden; where layers in memory are mounted,
and the directory of a layer on the disk; and the skeleton of /dev."""


_ENOENT = 2


class MakeDir(Operation):
    """mkdir -p."""

    __slots__ = ("mode", "path")
    path: str
    mode: int

    def describe(self) -> str:
        return f"mkdir -p -m {self.mode:04o} {self.path}"

    def execute(self, context: Context) -> None:
        make_dirs(self.path, self.mode)


class MakeFile(Operation):
    """An empty file (and its directories) where there is nothing, to bind something over."""

    __slots__ = ("path",)
    path: str

    def describe(self) -> str:
        return f"touch {self.path}"

    def execute(self, context: Context) -> None:
        make_dirs(os.path.dirname(self.path), 0o755)
        try:
            os.close(open_path(c.AT_FDCWD, self.path))
        except OSError as error:
            if error.errno != _ENOENT:
                raise
            os.close(open_path(c.AT_FDCWD, self.path, os.O_CREAT | os.O_WRONLY, 0o644))


class Symlink(Operation):
    __slots__ = ("path", "target")
    target: str
    path: str

    def describe(self) -> str:
        return f"ln -s {self.target} {self.path}"

    def execute(self, context: Context) -> None:
        os.symlink(self.target, self.path)


class MakeNode(Operation):
    """A character device, mode 0666 whatever the umask."""

    __slots__ = ("major", "minor", "path")
    path: str
    major: int
    minor: int

    def describe(self) -> str:
        return f"mknod -m 666 {self.path} c {self.major} {self.minor}"

    def execute(self, context: Context) -> None:
        os.mknod(self.path, 0o20666, os.makedev(self.major, self.minor))
        os.chmod(self.path, 0o666)


class Mount(Operation):
    """A new file system of `fstype`."""

    __slots__ = ("data", "flags", "fstype", "target")
    fstype: str
    target: str
    flags: int
    data: str

    def describe(self) -> str:
        names = [name for bit, name in c.MS_NAMES.items() if self.flags & bit]
        options = ",".join([*names, *([self.data] if self.data else [])])
        return f"mount -t {self.fstype}{' -o ' + options if options else ''} none {self.target}"

    def execute(self, context: Context) -> None:
        at = context.open(self.target)
        try:
            self._mount(at)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.target) from None
        finally:
            os.close(at)
        if context.old_root >= 0 and self.target in HELD:
            context.hold(self.target)

    def _mount(self, at: int) -> None:
        try:
            os.fchdir(at)
        except PermissionError:
            self._move(at)
        else:
            syscalls.mount(self.fstype, ".", self.fstype, self.flags, self.data)

    def _move(self, at: int) -> None:
        """On a directory that is closed to root of this user namespace, by way of our own /tmp."""
        syscalls.mount(self.fstype, "/tmp", self.fstype, self.flags, self.data)
        fd = syscalls.open_tree("/tmp", recursive=False)
        try:
            syscalls.umount("/tmp")
            syscalls.move_mount(fd, at)
        finally:
            os.close(fd)


class OpenTree(Operation):
    """Take hold of the mount at `source` (with those below it) as number `tree`.

    The copy is private: no later mount of the host's arrives in it.  (None of the job's is seen
    by the host in any case: its namespace began as a slave.)

    by  ""        the job's init opens it
        "plain"   the launcher does, for a job in a user namespace: it may read every path, and
                  there mounts are not locked together (mount_namespaces(7))
        "mapped"  the same, and what root owns on it is the job's root's
        "try"     mapped if the file system can
    """

    __slots__ = ("attributes", "by", "recursive", "source", "tree")
    tree: int
    source: str
    recursive: bool
    attributes: int
    by: str

    def describe(self) -> str:
        how = {"mapped": "idmap", "try": "idmap if it can"}.get(self.by, "")
        options = ",".join(filter(None, ("private", _attribute_names(self.attributes), how)))
        deep = " with all below it" if self.recursive else ""
        return f"open_tree {self.source}{deep} as #{self.tree}, {options}"

    def execute(self, context: Context) -> None:
        if not self.by:
            context.trees[self.tree] = self.open(-1)

    def open(self, user_namespace: int) -> int:
        """The descriptor of the mount, mapped by `user_namespace` if that is asked for."""
        fd = syscalls.open_tree(self.source, recursive=self.recursive)
        try:
            self._set(fd, 0, self.attributes, c.MS_PRIVATE)
            if self.by in ("mapped", "try"):
                self._map(fd, user_namespace)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _map(self, fd: int, user_namespace: int) -> None:
        try:
            self._set(fd, user_namespace, c.MOUNT_ATTR_IDMAP, 0)
        except OSError as error:
            if self.by == "mapped" or error.errno != 22:  # EINVAL
                raise

    def _set(self, fd: int, user_namespace: int, attributes: int, propagation: int) -> None:
        syscalls.mount_setattr(
            fd,
            "",
            attributes,
            propagation=propagation,
            recursive=self.recursive,
            user_namespace=user_namespace,
        )


class Attach(Operation):
    """move_mount the tree of number `tree` to `target`.

    `cover`: it hides what is there.  Where even root of the job's user namespace may not look
    (EACCES) there is nothing to hide: overlayfs looks with the eyes of who mounted it, whoever
    asks, and that was the same root.
    """

    __slots__ = ("cover", "target", "tree")
    tree: int
    target: str
    cover: bool

    def describe(self) -> str:
        unless = ", unless nobody gets there" if self.cover else ""
        return f"move_mount #{self.tree} {self.target}{unless}"

    def execute(self, context: Context) -> None:
        fd = context.trees.pop(self.tree)
        try:
            _attach(context, fd, self.target)
        except OSError as error:
            os.close(fd)
            if not self.cover or error.errno != 13:  # EACCES
                raise
            return
        if context.old_root >= 0 and self.target in HELD:
            context.tops[self.target] = fd
        else:
            os.close(fd)


class PivotRoot(Operation):
    """The directory becomes /; only this process can reach the old root, until it is dropped."""

    __slots__ = ("root",)
    root: str

    def describe(self) -> str:
        return f"cd {self.root} && pivot_root . ."

    def execute(self, context: Context) -> None:
        context.old_root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.chdir(self.root)
        syscalls.pivot_root(".", ".")


class DropOldRoot(Operation):
    """Detach the old root and all its mounts: nothing of the host is left but what was bound."""

    __slots__ = ()

    def describe(self) -> str:
        return "umount --lazy the old root && cd /"

    def execute(self, context: Context) -> None:
        os.fchdir(context.old_root)
        syscalls.umount(".", c.MNT_DETACH)
        os.chdir("/")
        os.close(context.old_root)


class ReadOnly(Operation):
    """Bind `path` on itself, read-only."""

    __slots__ = ("path",)
    path: str

    def describe(self) -> str:
        return f"mount --bind -o ro {self.path} {self.path}"

    def execute(self, context: Context) -> None:
        _bind_read_only(context, self.path, self.path)


class Seal(Operation):
    """Make the mount at `path` read-only, now that all is in it."""

    __slots__ = ("path",)
    path: str

    def describe(self) -> str:
        return f"mount -o remount,bind,ro {self.path}"

    def execute(self, context: Context) -> None:
        syscalls.mount_setattr(c.AT_FDCWD, self.path, c.MOUNT_ATTR_RDONLY, recursive=False)


class Mask(Operation):
    """Hide a file behind /dev/null."""

    __slots__ = ("path",)
    path: str

    def describe(self) -> str:
        return f"mount --bind -o ro /dev/null {self.path}"

    def execute(self, context: Context) -> None:
        _bind_read_only(context, "/dev/null", self.path)


OPERATIONS: dict[str, type[Operation]] = {
    kind.__name__: kind
    for kind in (
        MakeDir,
        MakeFile,
        Symlink,
        MakeNode,
        Whiteout,
        Own,
        Mount,
        Overlay,
        OpenTree,
        Attach,
        PivotRoot,
        DropOldRoot,
        ReadOnly,
        Seal,
        Mask,
    )
}


def unpack(operation: tuple[Any, ...]) -> Operation:
    """The operation that `pack()` made a tuple of."""
    kind = OPERATIONS[operation[0]]
    return kind(**dict(zip(kind.__slots__, operation[1:], strict=True)))


def _attach(context: Context, fd: int, target: str) -> None:
    at = context.open(target)
    try:
        syscalls.move_mount(fd, at)
    except OSError as error:
        raise OSError(error.errno, error.strerror, target) from None
    finally:
        os.close(at)


def _bind_read_only(context: Context, source: str, target: str) -> None:
    at = context.open(source)
    try:
        fd = syscalls.open_tree("", recursive=False, at=at)
    finally:
        os.close(at)
    try:
        syscalls.mount_setattr(fd, "", c.MOUNT_ATTR_RDONLY, recursive=False)
        _attach(context, fd, target)
    finally:
        os.close(fd)


def _attribute_names(attributes: int) -> str:
    names = (
        (c.MOUNT_ATTR_RDONLY, "ro"),
        (c.MOUNT_ATTR_NOSUID, "nosuid"),
        (c.MOUNT_ATTR_NODEV, "nodev"),
    )
    return ",".join(name for bit, name in names if attributes & bit)
