"""The plan of a job's file system: from a JobSpec and the host's facts to a list of operations.

Pure but for looking whether targets exist.  `supervise plan` prints what `plan` returns; the job's
init executes it.

    root = "host", read-only     the host's /, bound; its other file systems bound one by one
    root = "host", overlay       an overlay over /, the other file systems bound read-only
    root = "/dir"                the directory, bound read-only or under an overlay
    the root is an image         its layers as an overlay, written to or not (`layers`)
    a mount point is not there   a read-only root becomes an overlay of itself over a skeleton
    in a user namespace of ours  as above, but opened by the launcher, which may, and mapped by
                                 idmapped mounts where the file system can (`idmaps`)
    in any other user namespace  the mounts below / are locked together: bound as one, the
                                 kernel's pseudo file systems among them hidden

May import: `errors`, `model`, `linux`,
`container.{devices,hiding,host,idmaps,layers,mirror,mounts,space}`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from supervisor.container import hiding, idmaps, mirror, mounts, space
from supervisor.container.devices import is_device
from supervisor.container.host import OWN, Facts, inside
from supervisor.container.idmaps import By
from supervisor.container.layers import Layered, Layers
from supervisor.errors import SpawnError
from supervisor.linux import constants as c
from supervisor.model.job import HIDDEN, JobSpec, Mount, Tmpfs

NO_EXEC = c.MS_NOSUID | c.MS_NODEV | c.MS_NOEXEC
DEVPTS = "newinstance,ptmxmode=0666,mode=0620"
TTY_GROUP = 5
"""The gid of `tty` on every Linux distribution; devpts(5) wants it for grantpt(3)."""


def plan(spec: JobSpec, facts: Facts, layers: Layers, uid: int) -> tuple[mounts.Operation, ...]:
    """Every file-system operation of the job's start, in order; `uid` is the payload's.

    Raises SpawnError (stage `mounts`) where it can be told ahead that one must fail.
    """
    writer = _Plan(spec, facts, layers, uid)
    writer.write()
    return tuple(writer.operations)


def check_possible(spec: JobSpec, facts: Facts, operations: tuple[mounts.Operation, ...]) -> None:
    """Raises SpawnError for an overlay over / without root: mounts are locked on it.

    overlayfs takes a private copy of the mount (EINVAL: fs/namespace.c, clone_private_mount).
    """
    if facts.privileged or spec.root != "host":
        return
    root = f"{facts.work}/root"
    for one in operations:
        if isinstance(one, mounts.Overlay) and one.target == root:
            cause = "write" if spec.write == "overlay" else "a mount point that / does not have"
            why = f"without root nothing can be laid over the host's root ({cause})"
            hint = 'mount below /tmp or /run, or say root = "/DIRECTORY"'
            raise SpawnError("mounts", 0, "/", why, hint=hint)


class _Plan(Layered):
    """One plan while it is written."""

    def __init__(self, spec: JobSpec, facts: Facts, layers: Layers, uid: int) -> None:
        super().__init__(spec, facts, layers)
        self.uid = uid
        self.pending: list[tuple[int, str, bool | None]] = []
        self.hidden = hiding.hidden(spec, facts)
        self.opened = self._opened()
        self.missing = self._missing()
        self.covered = self._covered()
        self.whited = self._whited()

    def write(self) -> None:
        if not self.facts.privileged:
            self._own_work()
        if self.spec.devices:
            self._standard_nodes(f"{self.facts.work}/dev" if self.facts.privileged else "/dev")
        else:
            self._dev_tree()
        self._take_from_host()
        mirrored = [*self._take_mirror()]
        for device in self.spec.devices:
            self._take_node(device.path, device.target)
        self._new_root()
        self.add(mounts.PivotRoot(root=self.root))
        self._kernel_file_systems()
        self._attach()
        self._own_directories()
        self.add(mounts.DropOldRoot())
        if self.spec.write == "read-only":
            self.add(*(mounts.Seal(path=path) for path in self.opened))
        if self.spec.devices:
            self.add(mounts.Seal(path="/dev"))
        self.add(*mirrored)
        self._walls()

    def take(
        self,
        source: str,
        target: str,
        *,
        read_only: bool,
        deep: bool,
        directory: bool,
        devices: bool = False,
        by: By = "",
    ) -> None:
        """Open the mount at `source` before the pivot, to attach it at `target` after.

        Without `devices` nobody can open a device there.
        """
        tree = self.open(source, deep=deep, read_only=read_only, devices=devices, by=by)
        self.pending.append((tree, target, directory))

    def _own_work(self) -> None:
        """Without privilege the launcher has no tmpfs of its own: the job's namespace gets one."""
        work = self.facts.work
        self.add(mounts.Mount(fstype="tmpfs", target=work, flags=c.MS_NOSUID, data="mode=755"))
        for name in mounts.WORK_DIRS:
            self.add(mounts.MakeDir(path=f"{work}/{name}", mode=0o755))
        self.add(
            *(mounts.Symlink(target=to, path=f"{work}/dev/{name}") for name, to in mounts.DEV_LINKS)
        )
        self.add(*(mounts.MakeFile(path=f"{work}/dev/{name}") for name, _, _ in mounts.DEV_NODES))

    def _dev_tree(self) -> None:
        """The launcher's skeleton of /dev, which many jobs share."""
        self.take(
            f"{self.facts.work}/dev", "/dev", read_only=self.facts.privileged, deep=self.locked,
            directory=True, devices=True, by=self.own_by,
        )  # fmt: skip
        if not self.facts.privileged:
            self._standard_nodes("/dev")

    def _standard_nodes(self, source: str) -> None:
        for name, _, _ in mounts.DEV_NODES:
            self._take_node(f"{source}/{name}", f"/dev/{name}")

    def _take_node(self, source: str, target: str) -> None:
        """A device can be written to on a read-only mount; its mode, which is all's, cannot."""
        self.take(source, target, read_only=True, deep=False, directory=False, devices=True)

    def _own_dev(self) -> None:
        """A /dev that has more than the skeleton."""
        flags = c.MS_NOSUID | c.MS_NODEV
        self.add(mounts.Mount(fstype="tmpfs", target="/dev", flags=flags, data="mode=755,size=64K"))
        self.add(
            *(mounts.MakeDir(path=f"/dev/{name}", mode=0o755) for name in ("pts", "shm")),
            *(mounts.Symlink(target=to, path=f"/dev/{name}") for name, to in mounts.DEV_LINKS),
        )
        self._dev_file_systems()

    def _take_from_host(self) -> None:
        """What is bound from the host: its other file systems, then the job's own mounts."""
        whole = self.locked and not self.needs_overlay()
        for point in () if self.spec.root != "host" or whole else self.facts.submounts:
            if inside(point, self.hidden):
                continue
            directory = os.path.isdir(point)
            by = self.by(point)
            self.take(point, point, read_only=True, deep=self.locked, directory=directory, by=by)
        self._cover_directories()
        for mount in self.spec.mounts:
            self._take_mount(mount)

    def _cover_directories(self) -> None:
        """Directories that are to be hidden get an empty one over them, once they are there."""
        covered = [path for path, directory in self.facts.masked if directory]
        if self.spec.root == "host" and self.locked:
            covered += self.facts.pseudo
        done = self.covered.union(self.opened, self.whited)
        covered += [path for path in self.hidden if path not in done and os.path.isdir(path)]
        self._white_out()
        empty = f"{self.facts.work}/empty"
        for path in covered:
            self.take(empty, path, read_only=True, deep=False, directory=True, by=self.own_by)

    def _whited(self) -> frozenset[str]:
        """What is hidden by name, in a layer over its directory: all in /etc, and files anywhere.

        A mount over a file goes when the host puts another in its place (rename(2)), as passwd(1)
        does with /etc/shadow: then the job would see the new one.
        """
        if not self.facts.privileged:
            return frozenset()  # whoever is not root reads none of them on the host either
        named = {p for p in self.hidden if inside(p, ("/etc",)) or not os.path.isdir(p)}
        if self.hidden and {*HIDDEN} <= {*self.spec.hide}:
            named.update(hiding.whiteouts())
        return frozenset(named.difference(self.opened, self._targets()))

    def _white_layer(self) -> str:
        """The layer that hides by name: the launcher's, or one for this job's list alone."""
        if self.whited == {*hiding.whiteouts()}:
            white = f"{self.facts.work}/white"
            return self.layer(white, "white", self.own_by) if self.given else white
        white = f"{self.facts.work}/layers/white"
        self.own_layers(white)
        self.add(*(mounts.Whiteout(path=white + path) for path in sorted(self.whited)))
        return white

    def _white_out(self) -> None:
        """Hide by name: in the layers of the root, or in an overlay over a directory of it."""
        if not self.whited:
            return
        white = self._white_layer()
        if self.needs_overlay():
            self.white = white
        parents = {os.path.dirname(p) if not inside(p, ("/etc",)) else "/etc" for p in self.whited}
        for number, parent in enumerate(sorted(parents)):
            if self.white and not inside(parent, self.facts.submounts):
                continue
            target = f"{self.facts.work}/over"
            if parent != "/etc":
                target = f"{self.facts.work}/layers/over{number}"
                self.add(mounts.MakeDir(path=target, mode=0o755))
            bare = self.layer(parent) if self.given else parent
            if self.locked:
                bare = f"{self.facts.work}/host{parent}"
            self.add(
                mounts.Overlay(
                    target=target, lower=(white + parent, bare), upper="", work="",
                    flags=c.MS_RDONLY | c.MS_NODEV, options="userxattr" if self.in_userns else "",
                )
            )  # fmt: skip
            self.take(target, parent, read_only=True, deep=False, directory=True)

    def _covered(self) -> frozenset[str]:
        """What is hidden already in the launcher's view of the host's root, if that can be used."""
        if self.spec.root != "host":
            return frozenset()
        covered = frozenset(self.facts.covered)
        ready = self.facts.privileged and not self.locked and not self.needs_overlay()
        if self.given and self.by(self.base) == "mapped":
            ready = ready and idmaps.maps_tmpfs()  # what covers is one
        fits = covered <= {*self.hidden} and not covered & {*self.opened}
        return covered if ready and fits else frozenset()

    def _opened(self) -> tuple[str, ...]:
        """Hidden directories in which something is mounted: empty ones of the job's own."""
        targets = self._targets()
        return tuple(
            path for path in self.hidden if any(inside(target, (path,)) for target in targets)
        )

    def _targets(self) -> list[str]:
        targets = [mount.target for mount in self.spec.mounts]
        targets += [device.target for device in self.spec.devices]
        return targets + [tmpfs.target for tmpfs in self.spec.tmpfs]

    def _take_mount(self, mount: Mount) -> None:
        if not os.path.exists(mount.source):
            raise SpawnError("mounts", 2, mount.source, "", hint="the source of a mount must exist")
        if is_device(os.stat(mount.source).st_mode):
            hint = f'devices = ["{mount.source}"] grants one'
            raise SpawnError("mounts", 0, mount.source, "is a device", hint=hint)
        directory = os.path.isdir(mount.source)
        self.take(
            mount.source,
            mount.target,
            read_only=mount.read_only,
            deep=True,
            directory=directory,
            by=self.by(mount.source, deep=True),
        )

    def _missing(self) -> list[tuple[str, bool]]:
        """The mount points (path, is a directory) that the root does not have."""
        wanted = [(m.target, os.path.isdir(m.source)) for m in self.spec.mounts]
        wanted += [(tmpfs.target, True) for tmpfs in self._more_tmpfs()]
        wanted += [(device.target, False) for device in self.spec.devices]
        wanted += [(top, True) for top in (*OWN, *self._places())]
        return [
            (self.find(path).path, directory) for path, directory in wanted if self._lacks(path)
        ]

    def _places(self) -> tuple[str, ...]:
        """Directories that an image wants, but in what is mounted: that is not the image's."""
        targets = (*OWN, *self._targets())
        return tuple(path for path in self.spec.places if not inside(path, targets))

    def _lacks(self, path: str) -> bool:
        """Whether it is not there, nor on a tmpfs of the job's own, where it is made."""
        return not self._is_made(path) and not self.find(path).kind

    def _is_made(self, path: str) -> bool:
        tops = ("/tmp", "/run", *self.opened, *(tmpfs.target for tmpfs in self.spec.tmpfs))
        if self.spec.devices:
            tops = ("/dev", *tops)
        names = (path, self.find(path).path)
        return any(inside(name, (top,)) and name != top for name in names for top in tops)

    def _take_mirror(self) -> Iterator[mounts.Operation]:
        """Open what shows the job its share; what puts it there, once the kernel's are mounted."""
        if self.layers.mirror is None:
            return
        by: By = "plain" if self.given else ""
        for source, target in mirror.laid(self.layers.mirror):
            tree = self.open(source, deep=False, read_only=True, by=by)
            yield mounts.Attach(tree=tree, target=target, cover=False)

    def _new_root(self) -> None:
        if self.spec.write == "overlay":
            self.writable_overlay()
        elif self.needs_overlay():
            self.read_only_overlay()
        else:
            source = f"{self.facts.work}/seen" if self.covered else self.base
            deep = self.locked or bool(self.covered)
            tree = self.open(source, deep=deep, read_only=True, by=self.by(self.base))
            self.add(mounts.Attach(tree=tree, target=self.root, cover=False))

    def _kernel_file_systems(self) -> None:
        """Before the old root is dropped: a user namespace may mount a proc only beside another."""
        if self.spec.write == "overlay":
            self.add(*(mounts.MakeDir(path=top, mode=0o755) for top in OWN))
        self.add(mounts.Mount(fstype="proc", target="/proc", flags=NO_EXEC, data=""))
        if self.spec.network != "host":
            flags = NO_EXEC | c.MS_RDONLY
            self.add(mounts.Mount(fstype="sysfs", target="/sys", flags=flags, data=""))
        else:
            self._host_sys()
        self.add(self._tmpfs("/tmp", "1777"), self._tmpfs("/run", "755"))
        self.add(*(self._tmpfs(path, "755") for path in self.opened))

    def _host_sys(self) -> None:
        """The host's network namespace has the host's /sys; without privilege only a bind of it."""
        at = self.operations.index(next(o for o in self.operations if type(o) is mounts.PivotRoot))
        by: By = "plain" if self.given else ""
        tree = mounts.OpenTree(
            tree=self.trees,
            source="/sys",
            recursive=self.locked,
            attributes=c.MOUNT_ATTR_RDONLY,
            by=by,
        )
        self.operations.insert(at, tree)
        self.add(mounts.Attach(tree=self.trees, target="/sys", cover=False))
        self.trees += 1

    def _may_be_closed(self, target: str) -> bool:
        """Whether it is hidden, in an overlay that was made without root's rights on the host."""
        unmapped = self.in_userns and self.by(self.base) != "mapped"
        return unmapped and self.needs_overlay() and target in self.hidden

    def _attach(self) -> None:
        if self.spec.devices:
            self._own_dev()
        for tree, target, directory in self.pending:
            if self.spec.write == "overlay" or self._is_made(target):
                make = mounts.MakeDir(path=target, mode=0o755) if directory else None
                self.add(make or mounts.MakeFile(path=target))
            self.add(mounts.Attach(tree=tree, target=target, cover=self._may_be_closed(target)))
            if target == "/dev":
                self._dev_file_systems()

    def _dev_file_systems(self) -> None:
        whole = not self.in_userns or self.spec.user_namespace.size > TTY_GROUP
        devpts = DEVPTS + (f",gid={TTY_GROUP}" if whole else "")
        flags = c.MS_NOSUID | c.MS_NOEXEC
        self.add(
            mounts.Mount(fstype="devpts", target="/dev/pts", flags=flags, data=devpts),
            self._tmpfs("/dev/shm", "1777", c.MS_NOEXEC),
        )

    def _own_directories(self) -> None:
        for tmpfs in self._more_tmpfs():
            if self.spec.write == "overlay" or self._is_made(tmpfs.target):
                self.add(mounts.MakeDir(path=tmpfs.target, mode=0o755))
            self.add(self._tmpfs(tmpfs.target, "1777"))
        for path in self.spec.places:
            if self._is_made(path) or (path in self._places() and self.spec.write == "overlay"):
                self.add(mounts.MakeDir(path=path, mode=0o755))

    def _more_tmpfs(self) -> list[Tmpfs]:
        """Those beside what every job has."""
        return [tmpfs for tmpfs in self.spec.tmpfs if tmpfs.target not in space.EVERY_JOBS]

    def _tmpfs(self, target: str, mode: str, flags: int = 0) -> mounts.Operation:
        data = space.options(self.spec, target, mode)
        both = c.MS_NOSUID | c.MS_NODEV | flags
        return mounts.Mount(fstype="tmpfs", target=target, flags=both, data=data)

    def _walls(self) -> None:
        """Hide and protect what the kernel shows of the whole machine.

        Its settings are files of root's: another user cannot write them in any case.
        """
        if self.uid == 0:
            self.add(*(mounts.ReadOnly(path=path) for path in self.facts.read_only))
        files = [path for path, directory in self.facts.masked if not directory]
        files += [p for p in self.hidden if p not in self.whited and not os.path.isdir(p)]
        self.add(*(mounts.Mask(path=path) for path in files))
