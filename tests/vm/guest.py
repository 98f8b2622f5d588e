"""What is particular to one run: the command, what the guest sees of the host, the disks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.container import host
from supervisor.linux import proc
from tests.vm.archive import Member, cpio
from tests.vm.errors import RigError
from tests.vm.kernel import Engine, Kernel

HERE = Path(__file__).parent
NOT_PASSED = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "XDG_RUNTIME_DIR"})

HOST_ROOT = {
    "qemu": "turn_off() { reboot -f; }\nmount -t virtiofs host /lower || die no host root\n",
    "uml": "turn_off() { halt -f; }\nmount -t hostfs -o {tree} none /lower || die no host root\n",
}


@dataclass(frozen=True)
class Hierarchy:
    """Where the guest mounts the controllers of cgroups.

    `v1`: those on hierarchies of their own, by the names of /proc/cgroups; `("*",)`: all that the
    kernel has there.  `unified`: where cgroup2 is mounted, empty for nowhere; it has the others.
    """

    v1: tuple[str, ...] = ()
    unified: str = "/sys/fs/cgroup"

    @classmethod
    def parse(cls, word: str) -> Hierarchy:
        """`v2`, `v1`, `hybrid`, or `mixed:` and the controllers of v1, with commas between.

        Raises RigError for any other word.
        """
        kind, _, names = word.partition(":")
        controllers = tuple(names.split(",")) if names else ()
        if word == "v2":
            return cls()
        if word in ("v1", "hybrid"):
            return cls(("*",), UNIFIED if word == "hybrid" else "")
        if kind == "mixed" and controllers and all(name.isidentifier() for name in controllers):
            return cls(controllers, UNIFIED)
        raise RigError(f"--hierarchy {word}: use v2, v1, hybrid or mixed:CONTROLLER,...")

    @property
    def kernel_arguments(self) -> str:
        """What the kernel's command line needs for it."""
        return "" if self.v1 else "cgroup_no_v1=all"


UNIFIED = "/sys/fs/cgroup/unified"
"""Where systemd mounts the unified hierarchy on hybrid hosts."""


@dataclass(frozen=True)
class Guest:
    """One run.  `memory` in MiB; `disks` are sizes as truncate(1) takes them.

    `append` goes to the end of the kernel's command line.  `debian`: the directory of a root with
    systemd, in place of the host's root; then `shown` are directories of the host that it sees
    beside it, at their places and read-only.
    """

    engine: Engine
    command: tuple[str, ...]
    memory: int = 2048
    cpus: int = 2
    accelerator: str = "tcg"
    writable: tuple[Path, ...] = ()
    disks: tuple[str, ...] = ()
    terminal: bool = False
    hierarchy: Hierarchy = Hierarchy()
    append: tuple[str, ...] = ()
    debian: Path | None = None
    shown: tuple[Path, ...] = ()


def host_mounts(tree: Path, modules: Path, writable: tuple[Path, ...]) -> list[str]:
    """Shell commands that show the host's root at `tree`, in a mount namespace of their own.

    Its empty /proc (a bind mount does not follow into other mounts) takes the kernel's modules.
    """
    quoted = shlex.quote(str(tree))
    lines = [f"mount --bind / {quoted}", f"mount -o remount,bind,ro {quoted}"]
    for point in other_file_systems(proc.mountinfo()):
        own, place = shlex.quote(point), quoted + shlex.quote(point)
        shown = f"mount --bind {own} {place} && mount -o remount,bind,ro {place}"
        lines.append(f"{{ {shown}; }} || echo vm: {own} is not shown")
    lines += [f"mount --bind {shlex.quote(str(modules))} {quoted}/proc"]
    lines += [f"mount -o remount,bind,ro {quoted}/proc"]
    lines += [f"mount --bind {shlex.quote(str(d))} {quoted}{shlex.quote(str(d))}" for d in writable]
    return lines


def other_file_systems(mounts: list[proc.Mount]) -> list[str]:
    """Where the host has files on another file system than /, shallow first.

    What the kernel makes up, and what is in /dev and /run, the guest has its own of.
    """
    own = ("/dev", "/proc", "/run", "/sys")
    real = (one for one in host.visible(mounts) if one.fstype not in host.PSEUDO)
    points = {one.mount_point for one in real if not host.inside(one.mount_point, own)}
    return sorted(points - {"/"})


def initrd(guest: Guest, kernel: Kernel, tree: Path) -> bytes:
    """The cached initrd, followed by a small archive with the files of this run."""
    files = {
        "run.sh": _script(guest, os.environ, Path.cwd()),
        "binds": "".join(_bind(str(d)) for d in (*guest.shown, *guest.writable)),
        "hierarchy": _hierarchy(guest.hierarchy),
        "engine": HOST_ROOT[guest.engine].replace("{tree}", shlex.quote(str(tree))),
    }
    if guest.debian:
        files["engine"] += f"root={shlex.quote(str(guest.debian))}\n"
        files["stage2"] = (HERE / "systemd/stage2.sh").read_text()
    if guest.terminal:
        size = os.get_terminal_size()
        files["terminal"] = f"rows {size.lines} cols {size.columns}\n"
    members = [Member(name, 0o100700, text.encode()) for name, text in files.items()]
    return kernel.initrd.read_bytes() + cpio(members)


def _hierarchy(hierarchy: Hierarchy) -> str:
    return f"v1='{' '.join(hierarchy.v1)}'\nunified={hierarchy.unified}\n"


def _bind(directory: str) -> str:
    inside, outside = shlex.quote(f"/new{directory}"), shlex.quote(f"/lower{directory}")
    return f"mkdir -p {inside}; mount --bind {outside} {inside}\n"


def _script(guest: Guest, environment: Mapping[str, str], directory: Path) -> str:
    passed = {k: v for k, v in environment.items() if k.isidentifier() and k not in NOT_PASSED}
    passed |= {"SUPERVISE_VM": guest.engine, "TMPDIR": "/scratch"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
    lines += [f"cd {shlex.quote(str(directory))} || exit 125", f"exec {shlex.join(guest.command)}"]
    return "\n".join(lines) + "\n"
