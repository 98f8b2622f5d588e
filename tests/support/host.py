"""What this host offers to the tests, found by looking, and what happens where it lacks something.

A test that cannot run here is skipped with the reason.  SUPERVISE_TEST_REQUIRE names the kinds of
want that are failures instead (comma-separated: `privilege`, `vm`, `tools`); CI sets them all, so
that nothing stays unproven without anybody noticing.
"""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Literal, NoReturn

import pytest

Kind = Literal["privilege", "vm", "tools"]
KINDS: tuple[Kind, ...] = ("privilege", "vm", "tools")

CAP_SYS_ADMIN = 21
PT_INTERP = 3


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


def capabilities() -> int:
    """The effective capabilities of this process, as the mask of proc(5)'s CapEff."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def cgroup_mounts() -> tuple[tuple[Path, frozenset[str], bool], ...]:
    """Every mounted hierarchy: (mount point, controllers, whether it is the unified one)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            point = Path(before.split(" ")[4].encode().decode("unicode_escape"))
            found.append((point, _controllers(point, kind, options), kind == "cgroup2"))
    return tuple(found)


def _controllers(point: Path, kind: str, options: str) -> frozenset[str]:
    if kind == "cgroup":
        return frozenset(options.split(","))
    listed = point / "cgroup.controllers"
    return frozenset(listed.read_text().split()) if listed.exists() else frozenset()


def memory_version() -> Literal["v1", "v2", "none"]:
    """Which hierarchy has the memory controller."""
    for _point, controllers, unified in cgroup_mounts():
        if "memory" in controllers:
            return "v2" if unified else "v1"
    return "none"


def lacks_privilege() -> str:
    """Why a real container cannot be made here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not capabilities() >> CAP_SYS_ADMIN & 1:
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


def lacks_vm() -> str:
    """Why the test guest cannot be booted here."""
    if os.environ.get("SUPERVISE_VM"):
        return "runs in the guest already"
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
