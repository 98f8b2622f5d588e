"""Whose numbers a job's users are: the maps of its user namespace, and of what is mounted for it.

A user namespace maps ids for processes (user_namespaces(7)); an idmapped mount maps them for files
(mount_setattr(2), MOUNT_ATTR_IDMAP), so that what root owns on the disk is root's in the job.
Whether a mount can be mapped is tried, once for each file system: ext4, XFS, FAT since Linux 5.12,
btrfs 5.15, tmpfs 6.3; overlayfs, NFS and others cannot.

May import: `errors`, `model`, `linux`, `container.host` (for its type only).
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attrs import evolve, frozen

from supervisor.errors import KernelError, SpawnError
from supervisor.linux import caps, constants, syscalls
from supervisor.model.job import JobSpec, UserNamespace

if TYPE_CHECKING:
    from supervisor.container.host import Facts

Extent = tuple[int, int, int]
"""From which id inside, from which on the host, how many."""

Maps = tuple[tuple[Extent, ...], tuple[Extent, ...]]
"""Of users, and of groups."""

By = Literal["", "plain", "try", "mapped"]
"""Who opens a mount for a job, and how: see `mounts.OpenTree`."""

HELPERS = ("newuidmap", "newgidmap")


@frozen
class Subordinate:
    """What somebody without root may map by newuidmap(1): (first, count), and the helpers."""

    users: tuple[int, int]
    groups: tuple[int, int]
    helpers: tuple[str, str]


def subordinate(etc: Path = Path("/etc"), uid: int | None = None) -> Subordinate | None:
    """What the caller has; None without the helpers, or without an entry in both files."""
    uid = os.geteuid() if uid is None else uid
    found = [shutil.which(name, path="/usr/bin:/bin:/usr/local/bin") for name in HELPERS]
    users, groups = (_largest(etc / name, uid) for name in ("subuid", "subgid"))
    if users is None or groups is None or found[0] is None or found[1] is None:
        return None
    return Subordinate(users, groups, (found[0], found[1]))


def _largest(path: Path, uid: int) -> tuple[int, int] | None:
    """The longest range of somebody, by name or number (subuid(5))."""
    owners = {str(uid)}
    try:
        owners.add(pwd.getpwuid(uid).pw_name)
    except KeyError:
        pass  # nobody has to have a name
    try:
        lines = [line.split(":") for line in path.read_text(errors="replace").splitlines()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error
    ranges = [
        (int(fields[1]), int(fields[2]))
        for fields in lines
        if len(fields) == 3 and fields[0] in owners and fields[1].isdecimal()
        and fields[2].isdecimal()
    ]  # fmt: skip
    return max(ranges, key=lambda one: one[1], default=None)


def without_root(space: UserNamespace, own: Subordinate | None) -> UserNamespace:
    """What `auto` comes to for an ordinary user; with its size, when helpers write its maps."""
    if own is None:
        return evolve(space, kind="self", size=1)
    return evolve(space, size=1 + min(own.users[1], own.groups[1]))


def maps(space: UserNamespace, own: Subordinate | None, *, privileged: bool) -> Maps:
    """What to write for a user namespace that is resolved (no `auto` of root's)."""
    if space.kind == "map" and privileged:
        one = ((0, space.host_id, space.size),)
        return one, one
    users: tuple[Extent, ...] = ((0, os.geteuid(), space.size),)
    groups: tuple[Extent, ...] = ((0, os.getegid(), space.size),)
    if space.kind == "auto" and own is not None:
        more = space.size - 1
        users = ((0, os.geteuid(), 1), (1, own.users[0], more))
        groups = ((0, os.getegid(), 1), (1, own.groups[0], more))
    return users, groups


class IdMounts:
    """Tells whether mounts can be mapped, by trying it on a copy that nobody sees."""

    def __init__(self) -> None:
        self._space = -1
        self._known: dict[tuple[int, str], str] = {}

    def refusal(self, path: str, *, deep: bool = False) -> str:
        """Why the mount at `path` (`deep`: with all below it) cannot be mapped; "" when it can."""
        key = (os.stat(path).st_dev, path if deep else "")
        if key not in self._known:
            self._known[key] = self._try(path, deep)
        return self._known[key]

    def _try(self, path: str, deep: bool) -> str:
        try:
            if self._space < 0:
                self._space = some_user_namespace()
            tree = syscalls.open_tree(path, recursive=deep)
        except KernelError as error:
            return str(error)
        try:
            map_mount(tree, self._space, deep=deep)
        except KernelError as error:
            below = " or one below it" if deep else ""
            return f"the file system{below} has no idmapped mounts: {os.strerror(error.errno or 0)}"
        finally:
            os.close(tree)
        return ""

    def close(self) -> None:
        if self._space >= 0:
            os.close(self._space)


def maps_tmpfs(release: str | None = None) -> bool:
    """Whether a tmpfs can be mapped: by the kernel's release, Linux 6.3 or newer."""
    major, minor, *_ = [*(release or os.uname().release).split("-")[0].split("."), "0"]
    return (int(major), int(minor)) >= (6, 3)


def how_opened(path: str, spec: JobSpec, facts: Facts, *, deep: bool = False) -> By:
    """Who opens the mount at `path` for the job, and whether its files are mapped.

    Raises SpawnError when they are to be and cannot.
    """
    space = spec.user_namespace
    if space.kind != "map" or not facts.privileged:
        return ""
    if space.files == "plain":
        return "plain"
    refusal = _not_mapped(path, spec, facts, deep)
    if refusal and space.files == "mapped":
        hint = 'say user_namespace = { files = "try" } to go without'
        raise SpawnError("mounts", 0, path, f"cannot be mapped: {refusal}", hint=hint)
    return "plain" if refusal else "mapped"


def _not_mapped(path: str, spec: JobSpec, facts: Facts, deep: bool) -> str:
    """With CAP_SYS_ADMIN a job could make a mount writable again; and its root is the host's there.

    (Without, it gets that in a user namespace below its own only, where mounts are locked.)
    """
    if caps.CAP_SYS_ADMIN in caps.of_job(spec.capabilities.add, spec.capabilities.drop):
        return "the job has CAP_SYS_ADMIN"
    if facts.id_mounts is None:
        return "not tried"
    return facts.id_mounts.refusal(path, deep=deep)


def map_mount(tree: int, space: int, *, deep: bool) -> None:
    """Map a detached mount by the user namespace `space`.  Raises KernelError."""
    attributes = constants.MOUNT_ATTR_IDMAP
    syscalls.mount_setattr(tree, "", attributes, recursive=deep, user_namespace=space)


_HOLD = (
    "import sys; sys.path.insert(0, {path!r}); "
    "from supervisor.linux import constants, syscalls; "
    "syscalls.unshare(constants.CLONE_NEWUSER); print(flush=True); sys.stdin.read()"
)


def some_user_namespace() -> int:
    """A descriptor of a user namespace with 65536 ids, to try mounts with.  Raises KernelError."""
    program = _HOLD.format(path=str(Path(__file__).parents[2]))
    python = os.path.realpath(sys.executable)
    with subprocess.Popen(
        [python, "-I", "-S", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        if not process.stdout.readline():
            raise KernelError("unshare", "CLONE_NEWUSER", 1, hint="user.max_user_namespaces")
        try:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{name}").write_text("0 524288 65536\n")
            return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            where = f"/proc/{process.pid}/ns/user"
            raise KernelError("make", where, error.errno or 0) from error
