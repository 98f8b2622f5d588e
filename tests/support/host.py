"""What this host offers to the tests, found by looking, and what happens where it lacks something.

A test that cannot run here is skipped with the reason.  SUPERVISE_TEST_REQUIRE names the kinds of
want that are failures instead (comma-separated: `privilege`, `vm`, `tools`); CI sets them all, so
that nothing stays unproven without anybody noticing.
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from supervisor.linux import caps, proc

Kind = Literal["privilege", "vm", "tools"]
KINDS: tuple[Kind, ...] = ("privilege", "vm", "tools")

PT_INTERP = 3

SLOWNESS = {"uml": 3, "qemu": 10}.get(os.environ.get("SUPERVISE_VM", ""), 1)
"""By how much a test is more patient in a guest than on a host: a time limit of its own that has
nothing to do with what it asserts is multiplied by this.  `pytest --timeout` is the suite's."""


def required() -> frozenset[str]:
    """The kinds of want that are failures; an unknown word is an error, not a silent no-op."""
    words = {w for w in os.environ.get("SUPERVISE_TEST_REQUIRE", "").split(",") if w}
    if unknown := words - set(KINDS):
        found, known = ", ".join(sorted(unknown)), ", ".join(KINDS)
        raise pytest.UsageError(f"SUPERVISE_TEST_REQUIRE: unknown {found} (known: {known})")
    return frozenset(words)


def miss(kind: Kind, why: str) -> NoReturn:
    """Skip the running test, or fail it where this kind of want is forbidden."""
    if kind in required():
        pytest.fail(f"{why} (SUPERVISE_TEST_REQUIRE has {kind})", pytrace=False)
    pytest.skip(why)


def outside(what: str) -> pytest.MarkDecorator:
    """For tests of what knows no cgroup: a guest would take minutes to show the same."""
    return pytest.mark.skipif(
        in_guest(), reason=f"{what} does not depend on the generation of cgroups"
    )


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy, with the controllers at its root."""

    point: Path
    controllers: frozenset[str]
    unified: bool


def hierarchies() -> tuple[Hierarchy, ...]:
    """Every mounted cgroup hierarchy."""
    found = []
    for mount in proc.mountinfo():
        point = Path(mount.mount_point)
        if mount.fstype == "cgroup":
            found.append(Hierarchy(point, frozenset(mount.super_options), unified=False))
        elif mount.fstype == "cgroup2":
            listed = (point / "cgroup.controllers").read_text()
            found.append(Hierarchy(point, frozenset(listed.split()), unified=True))
    return tuple(found)


def memory_version() -> Literal["v1", "v2", "none"]:
    """Which hierarchy has the memory controller."""
    for hierarchy in hierarchies():
        if "memory" in hierarchy.controllers:
            return "v2" if hierarchy.unified else "v1"
    return "none"


def lacks_privilege() -> str:
    """Why a real container cannot be made here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not caps.effective() >> caps.CAP_SYS_ADMIN & 1:
        return "needs CAP_SYS_ADMIN"
    if memory_version() == "none":
        return "needs a mounted cgroup hierarchy with the memory controller"
    return ""


def lacks_version(version: Literal["v1", "v2"]) -> str:
    """Why a test of one cgroup version cannot run here."""
    found = memory_version()
    return "" if found == version else f"needs {version}: this host's memory controller is {found}"


def lacks_full_kernel() -> str:
    """Why a test marked `qemu` cannot run: User-Mode Linux has no PSI, cpuset, nftables NAT."""
    return "User-Mode Linux lacks it" if os.environ.get("SUPERVISE_VM") == "uml" else ""


DISK_PLACES = (Path("/var/tmp"), Path(__file__).parent, Path.home())


def on_disk(*tried: Path) -> Path | None:
    """The first of these, or else of DISK_PLACES, that lies on a block device."""
    for place in (*tried, *DISK_PLACES):
        number = os.stat(place).st_dev
        if Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").exists():
            return place
    return None


def disk_directory(*tried: Path) -> Path:
    """The same; skips the test where there is none.

    tmpfs and overlayfs have no device that could be limited.
    """
    found = on_disk(*tried)
    if found is None:
        places = ", ".join(map(str, (*tried, *DISK_PLACES)))
        pytest.skip(f"none of {places} is on a block device")
    return found


def in_guest() -> bool:
    """Whether this is the test guest."""
    return "SUPERVISE_VM" in os.environ


def lacks_vm() -> str:
    """Why the test guest cannot be booted here."""
    if os.geteuid() != 0:
        return "needs root to boot the guest"
    for tool in ("busybox", "unshare", "apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            return f"needs {tool} to boot the guest"
    return ""


def static_busybox() -> Path | None:
    """A busybox that needs no library, hence runs in an empty root."""
    for name in ("busybox", "busybox-static", "busybox.static"):
        found = shutil.which(name)
        if found and is_static(Path(found)):
            return Path(found).resolve()
    return None


def is_static(path: Path) -> bool:
    """Whether an ELF program asks for no interpreter (elf(5): no PT_INTERP segment)."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        table = file.read(size * count)
    kinds = (struct.unpack_from("<I", table, i * size)[0] for i in range(count))
    return PT_INTERP not in kinds
