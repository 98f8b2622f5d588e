"""A root put together from layers: an image's, what hides, what is missing, what the job writes.

    the top      a layer with the mount points that a whiteout or an opaque directory takes away
                 names that are hidden (`hiding`)
                 the directory, or the layers of the image, as `view` looks them up
    the bottom   a layer with the other mount points that the root lacks

A layer that a job with user numbers of its own is to have is opened by the launcher, and mapped
where the file system can (`idmaps`), like any directory.

May import: `errors`, `model`, `linux`, `container.{hiding,host,idmaps,mounts,protocol,space,view}`.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache

from supervisor.container import mounts, protocol, space, view
from supervisor.container.host import Facts, has_user_attributes, inside
from supervisor.container.idmaps import By, how_opened
from supervisor.errors import SpawnError
from supervisor.linux import constants as c
from supervisor.model.job import JobSpec

MOST = 500
"""Layers of one overlay (fs/overlayfs/params.h, OVL_MAX_STACK)."""
_OWN = 3
"""Those that may be added to an image's: what hides, and two with mount points."""
IMAGE_OPTIONS = "redirect_dir=nofollow,metacopy=off"
"""An image's layers lead nowhere: these are what a layer could say so by (overlayfs.rst)."""


class Layers:
    """Where an overlay keeps what a job writes: directories of the run, or None for a tmpfs.

    `mounted`: in a file system that comes with the request, as the tree `protocol.LAYER`.
    `options`: of the tmpfs, where its size is not that of the job's others.
    """

    def __init__(self, run_dir: str | None, *, mounted: bool = False, options: str = "") -> None:
        self.run_dir = run_dir
        self.mounted = mounted
        self.options = options
        self.mirror: str | None = None
        """The directory of what is laid over the kernel's own files (`container.mirror`)."""

    def upper(self, work: str) -> tuple[str, str]:
        base = f"{work}/own" if self.mounted else self.run_dir or f"{work}/layers"
        return f"{base}/upper", f"{base}/work"


def base_of(spec: JobSpec) -> str:
    """The directory that becomes the job's root, or its top layer; SpawnError: there is none."""
    if len(spec.layers) > MOST - _OWN:
        why = f"the image has {len(spec.layers)} layers, and the kernel takes {MOST - _OWN} of one"
        raise SpawnError("mounts", 0, spec.root, why, hint="have it built with fewer, or squashed")
    for layer in spec.layers:
        if not os.path.isdir(layer):
            hint = "it was removed from the store of images: start the job again"
            raise SpawnError("mounts", 2, layer, "a layer of the image", hint=hint)
    if spec.layers:
        return spec.layers[0]
    base = "/" if spec.root == "host" else spec.root
    if not base.startswith("/"):
        raise SpawnError("mounts", 0, base, "the image is not there yet")
    if not os.path.isdir(base):
        errno = 20 if os.path.exists(base) else 2  # ENOTDIR, ENOENT
        hint = 'root is "host", a directory or an image'
        raise SpawnError("mounts", errno, base, "", hint=hint)
    return base


class Layered:
    """The part of a plan that opens what is the host's, and lays one thing over another.

    `tree` numbers what is taken from the host; `missing` are the mount points, and whether each is
    a directory, that the root does not have.
    """

    def __init__(self, spec: JobSpec, facts: Facts, layers: Layers) -> None:
        self.spec = spec
        self.facts = facts
        self.layers = layers
        self.base = base_of(spec)
        self.view = view.of(spec)
        self.root = f"{facts.work}/root"
        self.in_userns = spec.user_namespace.kind != "host"
        self.given = facts.privileged and spec.user_namespace.kind == "map"
        self.locked = self.in_userns and not self.given
        self.operations: list[mounts.Operation] = []
        self.trees = 0
        self.missing: list[tuple[str, bool]] = []
        self.white = ""
        self.has_layers = False

    def add(self, *operations: mounts.Operation) -> None:
        self.operations += operations

    def find(self, path: str) -> view.Found:
        """What `path` of the job leads to in its root."""
        try:
            return self.view.find(path)
        except OSError as error:
            where = str(error.filename or path)
            raise SpawnError("mounts", error.errno or 0, where, "") from error

    def open(
        self, source: str, *, deep: bool, read_only: bool, devices: bool = False, by: By
    ) -> int:
        """The number of the tree that holds it."""
        attributes = 0 if devices else c.MOUNT_ATTR_NODEV
        attributes |= c.MOUNT_ATTR_RDONLY if read_only else 0
        self.add(
            mounts.OpenTree(
                tree=self.trees, source=source, recursive=deep, attributes=attributes, by=by
            )
        )
        self.trees += 1
        return self.trees - 1

    def by(self, path: str, *, deep: bool = False) -> By:
        return how_opened(path, self.spec, self.facts, deep=deep)

    @property
    def own_by(self) -> By:
        """How what the launcher keeps in WORK is opened."""
        if not self.given:
            return ""
        return "plain" if self.spec.user_namespace.files == "plain" else "try"

    def needs_overlay(self) -> bool:
        writes = self.spec.write == "overlay"
        return writes or bool(self.missing) or bool(self.spec.layers)

    def writable_overlay(self) -> None:
        upper, work = self.layers.upper(self.facts.work)
        if self.layers.mounted:
            own = os.path.dirname(upper)
            self.add(mounts.Attach(tree=protocol.LAYER, target=own, cover=False))
        elif self.layers.run_dir is None:
            self.own_layers(upper)
            self.add(mounts.MakeDir(path=work, mode=0o700))
        elif self.given:
            own = f"{self.facts.work}/own"
            tree = self.open(self.layers.run_dir, deep=False, read_only=False, by="plain")
            self.add(mounts.Attach(tree=tree, target=own, cover=False))
            upper, work = f"{own}/upper", f"{own}/work"
        self._overlay(self._lower(), upper, work)

    def read_only_overlay(self) -> None:
        """The root, and beside it layers that have nothing but the mount points it lacks.

        They lie below, where they change nothing else.  What they have there does not show where
        the image took a name away: such ones lie above, in directories like the image's.
        """
        skeleton = f"{self.facts.work}/layers/skeleton"
        shut = [one for one in self.missing if self.spec.layers and self.find(one[0]).shut]
        open_ = [one for one in self.missing if one not in shut]
        lower = self._lower()
        if open_ or len(lower) == 1:  # one layer is not enough for the kernel
            self.own_layers(skeleton)
            lower += (skeleton,)
        for path, directory in open_:
            self.add(_make(skeleton + path, directory))
        if shut:
            cap = f"{self.facts.work}/layers/cap"
            self.own_layers(cap)
            self._like_the_images(cap, [path for path, _ in shut])
            self.add(*(_make(cap + path, directory) for path, directory in shut))
            lower = (cap, *lower)
        self._overlay(lower)

    def _like_the_images(self, cap: str, paths: list[str]) -> None:
        """Directories above `paths`, with the modes and owners that they have in the image."""
        parents = {parent for path in paths for parent in _parents(path)}
        keep_owner = not self.in_userns or self.by(self.base) == "mapped"
        for parent in sorted(parents):
            found = self.find(parent)
            if found.kind != "directory":
                continue
            status = os.stat(found.layers[0] + found.path)
            owner = (status.st_uid, status.st_gid) if keep_owner else (-1, -1)
            mode = stat.S_IMODE(status.st_mode)
            path = cap + parent.rstrip("/")
            self.add(
                mounts.MakeDir(path=path, mode=0o755),
                mounts.Own(path=path, mode=mode, uid=owner[0], gid=owner[1]),
            )

    def _lower(self) -> tuple[str, ...]:
        """The root as layers: in a user namespace / cannot be one, as mounts are locked on it.

        overlayfs takes a private copy of the mount (EINVAL: fs/namespace.c, clone_private_mount).
        """
        bare: tuple[str, ...] = self.spec.layers or (self.base,)
        if self.given and self.spec.layers:
            bare = self._opened_layers()
        elif self.given:
            bare = (self.layer(self.base),)
        elif self.locked and self.facts.privileged and self.base == "/":
            bare = (f"{self.facts.work}/host",)
        return (self.white, *bare) if self.white else bare

    def _opened_layers(self) -> tuple[str, ...]:
        """The launcher's views of the image's layers; one of all, where that says as much.

        Unmapped they are one by one: the job's root may not walk through the store, which is its
        owner's alone.
        """
        layers = self.spec.layers
        top = _common(layers)
        whole = not any(inside(point, (top,)) for point in self.facts.submounts if point != top)
        if top and whole and all(self.by(layer) == "mapped" for layer in layers):
            place = self.layer(top, by="mapped")
            return tuple(place + layer.removeprefix(top) for layer in layers)
        return tuple(self._own_place(number) for number in range(len(layers)))

    def _own_place(self, number: int) -> str:
        """Where the launcher's view of a layer of the image is attached."""
        place = f"{self.facts.work}/layers/{number}"
        self.own_layers(place)
        return self.layer(self.spec.layers[number], f"layers/{number}")

    def layer(self, path: str, target: str = "host", by: By | None = None) -> str:
        """Where the launcher's view of `path` lies, to be a layer of an overlay of the job's."""
        by = self.by(path) if by is None else by
        tree = self.open(path, deep=False, read_only=True, by=by)
        place = f"{self.facts.work}/{target}"
        self.add(mounts.Attach(tree=tree, target=place, cover=False))
        return place

    def own_layers(self, path: str) -> None:
        """A tmpfs of this job's alone, with `path` in it."""
        top = os.path.dirname(path)
        if not self.has_layers:
            self.has_layers = True
            data = self.layers.options or space.options(self.spec, "/", "755")
            self.add(
                mounts.MakeDir(path=top, mode=0o755),
                mounts.Mount(fstype="tmpfs", target=top, flags=c.MS_NOSUID, data=data),
            )
        self.add(mounts.MakeDir(path=path, mode=0o755))

    def _overlay(self, lower: tuple[str, ...], upper: str = "", work: str = "") -> None:
        options = IMAGE_OPTIONS if self.spec.layers else ""
        if self.in_userns:
            self._check_attributes()
            options = "userxattr"  # which implies the others
        self.add(
            mounts.Overlay(
                target=self.root, lower=lower, upper=upper, work=work, flags=c.MS_NODEV,
                options=options,
            )
        )  # fmt: skip

    def _check_attributes(self) -> None:
        """What an image removed by an opaque directory would be back, where nobody can say so."""
        for layer in self.spec.layers[:-1]:
            if not has_user_attributes(layer):
                why = "no user.* attributes here, which images need in a user namespace"
                hint = "keep the images on ext4, XFS or btrfs (state_dir), or tmpfs since Linux 6.6"
                raise SpawnError("mounts", 95, layer, why, hint=hint)


@lru_cache(maxsize=256)
def _common(layers: tuple[str, ...]) -> str:
    """The directory that has them all, with no link and no mount in between; "" for none."""
    top = os.path.commonpath(layers)
    device = os.stat(top).st_dev
    apart = any(os.path.realpath(one) != one or os.stat(one).st_dev != device for one in layers)
    return "" if apart or top in layers else top


def _make(path: str, directory: bool) -> mounts.Operation:
    return mounts.MakeDir(path=path, mode=0o755) if directory else mounts.MakeFile(path=path)


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found
