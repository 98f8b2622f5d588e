"""A kernel for the guest: downloaded, unpacked and made ready once, then taken from the cache.

The cache is ${XDG_CACHE_HOME:-~/.cache}/supervise-vm: one directory for each unpacked package and
one, `ready-*`, for each kernel with its uncompressed modules and its initrd.  Everything is made
beside its place and renamed into it, so that two runs at once cannot see half of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.vm.archive import Member, cpio, vmlinux
from tests.vm.errors import RigError

Engine = Literal["uml", "qemu"]

PACKAGES: dict[Engine, tuple[str, ...]] = {
    "uml": ("user-mode-linux",),
    "qemu": ("linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"),
}
"""The first that the archive has; the cloud flavour has virtio built for it, and few modules."""

IMAGES: dict[Engine, str] = {"uml": "usr/bin/linux.uml", "qemu": "boot/vmlinuz-*"}
MODULES: dict[Engine, str] = {"uml": "usr/lib/uml/modules/*", "qemu": "lib/modules/*"}

EARLY = (
    "virtio",
    "virtio_ring",
    "virtio_pci",
    "fuse",
    "virtiofs",
    "overlay",
    "virtio_console",
)
"""What init.sh loads before it can see the host's modules; those built in are passed over."""

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Kernel:
    """A kernel ready to boot: its image, its initrd, the directory with modules/RELEASE."""

    image: Path
    initrd: Path
    modules: Path


def cache_directory() -> Path:
    """Where kernels are kept, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "supervise-vm"


def prepare(engine: Engine, busybox: Path, cache: Path) -> Kernel:
    """The engine's kernel, made ready now if the cache lacks it.

    Raises RigError when it cannot be downloaded or is not laid out as Debian's are.
    """
    cache.mkdir(parents=True, exist_ok=True)
    tree = _unpacked(engine, cache)
    image, modules = _only(tree, IMAGES[engine]), _only(tree, MODULES[engine])
    ready = cache / f"ready-{engine}-{_recipe(image)}"
    if not ready.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch, "ready")
            _make_ready(engine, image, modules, busybox, made)
            put(made, ready)
    return Kernel(ready / "kernel", ready / "initrd", ready / "modules")


def put(made: Path, place: Path) -> None:
    """Rename what was made beside its place into the cache."""
    try:
        made.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        # another run was quicker, and what it made is the same


def _only(tree: Path, pattern: str) -> Path:
    found = list(tree.glob(pattern))
    if len(found) != 1:
        raise RigError(f"{tree}: {len(found)} of {pattern} instead of one")
    return found[0]


def _recipe(image: Path) -> str:
    """What the result depends on: the kernel, and everything in this directory."""
    digest = hashlib.sha256(f"{image} {image.stat().st_mtime_ns}".encode())
    for name in ("kernel.py", "archive.py", "init.sh", "stage2.sh", "report.sh"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:12]


def _unpacked(engine: Engine, cache: Path) -> Path:
    """The files of the engine's package."""
    place = cache / f"package-{engine}"
    if place.is_dir():
        return place
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # The sandbox user of apt could not write into a directory of root's.
        sandbox = ("-o", "APT::Sandbox::User=root")
        _apt("get", "download", "-qq", *sandbox, _package(engine), cwd=scratch)
        archive = _only(Path(scratch), "*.deb")
        run(["dpkg-deb", "-x", str(archive), f"{scratch}/tree"])
        put(Path(scratch, "tree"), place)
    return place


def _package(engine: Engine) -> str:
    """The package to download: of a kernel's metapackage, the image it depends on."""
    known = _apt("cache", "pkgnames").split()
    package = next((name for name in PACKAGES[engine] if name in known), PACKAGES[engine][0])
    depends = _apt("cache", "depends", package).splitlines()
    images = (line.split("Depends:")[1].strip() for line in depends if "Depends: linux-im" in line)
    return next(images, package)


def _apt(tool: str, *arguments: str, cwd: str | None = None) -> str:
    try:
        return run([f"apt-{tool}", *arguments], cwd)
    except RigError as error:
        raise RigError(f"{error}\n(no package list yet? apt-get update)") from error


def run(argv: list[str], cwd: str | None = None) -> str:
    """A command's stdout.  Raises RigError, with what it said, when it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RigError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _make_ready(engine: Engine, image: Path, modules: Path, busybox: Path, ready: Path) -> None:
    print(f"vm: preparing {image.name} {modules.name}", file=sys.stderr)
    release = ready / "modules" / modules.name
    shutil.copytree(modules, release, symlinks=True)
    for link in release.glob("*"):
        if link.is_symlink():  # build, source: they lead out of the package
            link.unlink()
    _uncompress_modules(release, busybox)
    members = (*_system(busybox), *_early_modules(release))
    (ready / "initrd").write_bytes(cpio(members))
    plain = vmlinux(image.read_bytes()) if engine == "qemu" else None
    (ready / "kernel").write_bytes(plain or image.read_bytes())
    (ready / "kernel").chmod(0o755)


def _uncompress_modules(release: Path, busybox: Path) -> None:
    """The guest's insmod is busybox's, which reads no packed modules; the index follows."""
    packed = [str(path) for path in release.rglob("*.ko.xz")]
    for first in range(0, len(packed), 200):
        run(["xz", "-d", *packed[first : first + 200]])
    # depmod takes BASE/lib/modules/RELEASE
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch, "lib")
        base.mkdir()
        (base / "modules").symlink_to(release.parent)
        run([str(busybox), "depmod", "-b", scratch, release.name])


def _system(busybox: Path) -> Iterator[Member]:
    yield from (Member(name, 0o40755) for name in ("bin", "dev", "m"))
    yield Member("bin/busybox", 0o100755, busybox.read_bytes())
    yield Member("init", 0o100755, (HERE / "init.sh").read_bytes())
    yield Member("stage2", 0o100755, (HERE / "stage2.sh").read_bytes())
    yield Member("report", 0o100755, (HERE / "report.sh").read_bytes())


def _early_modules(release: Path) -> Iterator[Member]:
    """The files of EARLY and of all they need, and their names in the order of loading."""
    needs = _needs(release / "modules.dep")
    order: dict[str, None] = {}
    for name in EARLY:
        _visit(name, needs, order)
    for path in order:
        yield Member(f"m/{Path(path).name}", 0o100644, (release / path).read_bytes())
    names = "".join(f"/m/{Path(path).name}\n" for path in order)
    yield Member("early", 0o100644, names.encode())


def _visit(name: str, needs: dict[str, list[str]], order: dict[str, None]) -> None:
    """Depth first: a module after those it needs."""
    if name not in needs:
        return
    path, *others = needs[name]
    for other in others:
        _visit(_module(other), needs, order)
    order.setdefault(path)


def _needs(index: Path) -> dict[str, list[str]]:
    """modules.dep(5): for each module its path, then the paths of those it needs."""
    lines = (line.partition(":") for line in index.read_text().splitlines())
    return {_module(path): [path, *others.split()] for path, _, others in lines}


def _module(path: str) -> str:
    return Path(path).name.removesuffix(".ko").replace("-", "_")
