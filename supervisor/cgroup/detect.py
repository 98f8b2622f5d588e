"""Which cgroup hierarchies there are, where we are in them, and whether we may make cgroups there.

For this package; `detect` is for everybody.  It only looks: nothing is made, moved or enabled
before the first run needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from attrs import frozen

from supervisor.cgroup import delegate, files
from supervisor.cgroup.api import CgroupManager
from supervisor.cgroup.delegate import Obstacle
from supervisor.linux import proc as procfs

CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io")
"""Those that limit something, by their v2 names."""
_V1_NAMES = {"blkio": "io"}
_WANTED = frozenset({*CONTROLLERS, "cpuacct", "devices", "freezer"})


@frozen
class Hierarchy:
    """A hierarchy in which cgroups can be made.

    `controllers` by their v2 names.  `base`: the directory in which the instance's goes, `path`:
    the same as the kernel names it, `mount`: where the hierarchy is mounted.  `place` is set for
    the unified one.
    """

    controllers: frozenset[str]
    base: str
    path: str
    mount: str
    place: delegate.Place | None = None

    @property
    def unified(self) -> bool:
        return self.place is not None


@frozen
class Found:
    """What was found: usable hierarchies, and for each controller that is not, the obstacle.

    `proc` is where processes are looked up.
    """

    hierarchies: tuple[Hierarchy, ...]
    obstacles: dict[str, Obstacle]
    proc: str


def detect(
    instance: str, parent: str | None = None, *, root: str = "/", proc: str = "/proc/self"
) -> CgroupManager:
    """The manager for `instance`, whatever this host has; version "none" where it has nothing.

    The instance's cgroup is made in our own cgroup, or in `parent`: below our own, or with a
    leading "/" below the hierarchy's root; it must exist.  `root` and `proc` are where the mounts
    and our own /proc are looked for.  Raises KernelError when /proc cannot be read.
    """
    from supervisor.cgroup.manager import Manager

    return Manager(instance, find(parent, root=root, proc=proc))


def find(parent: str | None, *, root: str = "/", proc: str = "/proc/self") -> Found:
    """Look at /proc/self/cgroup and mountinfo.  Raises KernelError when they cannot be read."""
    mounts = [
        mount
        for mount in procfs.mountinfo(f"{proc}/mountinfo")
        if mount.fstype in ("cgroup", "cgroup2")
    ]
    hierarchies: list[Hierarchy] = []
    obstacles: dict[str, Obstacle] = {}
    for own in procfs.memberships(f"{proc}/cgroup"):
        names = frozenset(_V1_NAMES.get(name, name) for name in own.controllers) & _WANTED
        if own.controllers and not names:
            continue
        found = _hierarchy(own, names, mounts, parent, root.rstrip("/"), os.path.dirname(proc))
        if isinstance(found, Hierarchy):
            hierarchies.append(found)
            names = found.controllers if found.unified else frozenset()
        else:
            # a controller bound to a v1 hierarchy cannot be had from the unified one
            for name in names or CONTROLLERS:
                obstacles.setdefault(name, found)
    at_hand = frozenset().union(*(h.controllers for h in hierarchies))
    return Found(
        tuple(hierarchies),
        {
            name: obstacles.get(name) or _absent(name, hierarchies)
            for name in CONTROLLERS
            if name not in at_hand
        },
        os.path.dirname(proc),
    )


def _hierarchy(
    own: procfs.Membership,
    names: frozenset[str],
    mounts: Iterable[procfs.Mount],
    parent: str | None,
    root: str,
    proc: str,
) -> Hierarchy | Obstacle:
    located = _locate(own, mounts, root)
    if isinstance(located, Obstacle):
        return located
    mount, directory = located
    base, path = _below(directory, own.path, mount, parent)
    if not os.path.isfile(f"{base}/cgroup.procs"):
        return Obstacle(f"there is no cgroup {base}", "make it, in every hierarchy in use")
    if own.controllers:
        if not os.access(base, os.W_OK | os.X_OK):
            return Obstacle(f"no permission to make cgroups in {base}", delegate.ROOT_FIX)
        return Hierarchy(names, base, path, mount)
    place = delegate.choose(base, path, mount, climb=parent is None, proc=proc)
    if isinstance(place, Obstacle):
        return place
    if parent is not None:
        common = os.path.commonpath([directory, place.directory])
        if not os.access(f"{common}/cgroup.procs", os.W_OK):
            why = f"a move from {directory} to {base} takes writing {common}/cgroup.procs"
            return Obstacle(f"no permission: {why}", delegate.ROOT_FIX)
    return Hierarchy(
        place.controllers & frozenset(CONTROLLERS), place.directory, place.path, mount, place
    )


def _locate(
    own: procfs.Membership, mounts: Iterable[procfs.Mount], root: str
) -> tuple[str, str] | Obstacle:
    """Mount point and directory of our own cgroup; the last mount that shows it.

    A mount shows a part of the hierarchy, from its root on (a bind mount, a container), and a
    mount from outside of our cgroup namespace has a root of "/..": our cgroup has no name there.
    """
    label = ",".join(own.controllers) or "cgroup2"
    found = None
    seen = ""
    for mount in mounts:
        if own.controllers:
            fits = mount.fstype == "cgroup" and {*own.controllers} <= {*mount.super_options}
        else:
            fits = mount.fstype == "cgroup2"
        if not fits:
            continue
        seen = mount.mount_point
        below = _relative(own.path, mount.root)
        point = root + mount.mount_point
        if below is not None and os.path.isfile(f"{point}{below}/cgroup.procs"):
            found = (point, point + below)
    if found:
        return found
    if seen:
        return Obstacle(
            f"our own cgroup {own.path} cannot be seen in {seen}",
            f"mount the {label} hierarchy anew in this cgroup namespace",
        )
    kind = f"cgroup -o {label}" if own.controllers else "cgroup2"
    beside = any(mount.fstype == "cgroup" for mount in mounts)
    target = f"/sys/fs/cgroup/{label}" if own.controllers else UNIFIED[beside]
    return Obstacle(
        f"the {label} hierarchy is mounted nowhere",
        f"mkdir -p {target} && mount -t {kind} none {target}",
    )


UNIFIED = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
"""Where cgroup2 belongs; the latter beside v1, whose hierarchies it would cover."""


def _relative(path: str, root: str) -> str | None:
    """The cgroup `path` within a mount that shows the tree from `root` on ("" is its top)."""
    if path.startswith("/..") or root.startswith("/..") or path.endswith(" (deleted)"):
        return None
    if root == "/":
        return path.rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        return path[len(root) :]
    return None


def _below(directory: str, path: str, mount: str, parent: str | None) -> tuple[str, str]:
    """Directory and kernel's path of the place that was asked for."""
    path = path.rstrip("/")
    if parent is None:
        return directory, path
    name = parent.strip("/")
    if not parent.startswith("/"):
        return f"{directory}/{name}", f"{path}/{name}"
    shown_root = path.removesuffix(directory.removeprefix(mount))
    return f"{mount}/{name}", f"{shown_root}/{name}"


def _absent(name: str, hierarchies: Iterable[Hierarchy]) -> Obstacle:
    for hierarchy in hierarchies:
        if hierarchy.place:
            where = f"{hierarchy.base}/cgroup.controllers"
            if hierarchy.place.root:
                return Obstacle(
                    f"{where} does not list {name}",
                    "enable it in the kernel's configuration, and see cgroup_disable= on its "
                    "command line",
                )
            fix = _enabling(name, hierarchy) or delegate.FIX
            return Obstacle(f"{where} does not list {name}", fix)
    return Obstacle(
        f"the kernel has no {name} controller, or its hierarchy is hidden from here",
        "mount -t cgroup2 none /sys/fs/cgroup",
    )


def _enabling(name: str, hierarchy: Hierarchy) -> str:
    """What lists a controller in every cgroup from the nearest that has it on down; or ""."""
    where, writes = hierarchy.base, ""
    while where != hierarchy.mount:
        where = os.path.dirname(where)
        writes = f"echo +{name} >{where}/cgroup.subtree_control; {writes}"
        if name in files.read(f"{where}/cgroup.controllers").split():
            return f"as root: {writes}or {delegate.FIX}"
    return ""
