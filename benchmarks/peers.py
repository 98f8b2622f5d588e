"""The container tools we are measured against: one job each, in equal containers.

Equal: pid, mount, uts, ipc, net and cgroup namespaces of its own; a read-only root with one static
busybox; /proc, /dev with its nodes, devpts, shm, /tmp; no_new_privs; limits on memory, pids and
CPU in cgroups made for the job and removed after it.  bwrap makes no cgroups: it is here as the
bound of what a small C program does, not as an equal.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY = 256 << 20
PIDS = 64
CPUS = 1.0
PERIOD = 100_000
COMMAND = ("/bin/busybox", "true")

CAPABILITIES = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_NET_BIND_SERVICE CAP_SETGID "
    "CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT"
)


@dataclass(frozen=True)
class Peer:
    """A tool: `argv(work, job, slot)` runs one job in the foreground (see `measure.commands`)."""

    name: str
    version: str
    argv: Callable[[Path, int, int], list[str]]


def root_directory(work: Path, busybox: Path) -> Path:
    """The job's root: a static busybox, and the directories to mount on."""
    root = work / "root"
    for name in ("bin", "proc", "dev", "sys", "run", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy2(busybox, root / "bin/busybox")
    return root


def write_bundles(work: Path, root: Path, slots: int, parent: str) -> None:
    """A bundle for each slot, as it names the cgroup (below `parent`), which two must not share.

    config.json is the OCI runtime specification's.
    """
    (work / "state").mkdir()
    for slot in range(slots):
        bundle = work / f"bundle{slot}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(_specification(root, f"/{parent}/{slot}")))


def _specification(root: Path, cgroup: str) -> dict[str, Any]:
    sets = ("bounding", "effective", "permitted")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": list(COMMAND),
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {name: CAPABILITIES.split() for name in sets},
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "job",
        "mounts": _mounts(),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": kind} for kind in ("pid", "mount", "uts", "ipc", "network", "cgroup")
            ],
            "resources": {
                "memory": {"limit": MEMORY},
                "pids": {"limit": PIDS},
                "cpu": {"quota": int(CPUS * PERIOD), "period": PERIOD},
            },
        },
    }


def _mounts() -> list[dict[str, Any]]:
    closed = ["nosuid", "noexec", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    return [
        _mount("/proc", "proc", "proc", closed),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=64k"]),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", "shm", [*closed, "mode=1777", "size=64m"]),
        _mount("/tmp", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777"]),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _oci(tool: str) -> Callable[[Path, int, int], list[str]]:
    def argv(work: Path, job: int, slot: int) -> list[str]:
        bundle = work / f"bundle{slot}"
        name = f"bench{os.getpid()}-{job}"
        return [tool, "--root", str(work / "state"), "run", "--bundle", str(bundle), name]

    return argv


def _bwrap(work: Path, _job: int, _slot: int) -> list[str]:
    spaces = ("pid", "uts", "ipc", "net", "cgroup")
    return [
        *("bwrap", *(f"--unshare-{space}" for space in spaces), "--hostname", "job"),
        *("--ro-bind", str(work.parent / "root"), "/", "--proc", "/proc", "--dev", "/dev"),
        *("--tmpfs", "/tmp", "--chdir", "/", "--", *COMMAND),
    ]


def installed() -> list[Peer]:
    """The peers on this machine."""
    known = {"crun": _oci("crun"), "runc": _oci("runc"), "bwrap": _bwrap}
    return [Peer(name, _version(name), argv) for name, argv in known.items() if shutil.which(name)]


def _version(tool: str) -> str:
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("\n")[0].split()[-1]


def prefix(peer: str) -> list[str]:
    """What must precede the measuring process: crun refuses hosts with both hierarchies (1.8).

    It gets a mount namespace in which the unified one is not mounted; the host keeps its own.
    """
    unified = Path("/sys/fs/cgroup/unified")
    if peer != "crun" or not unified.is_mount():
        return []
    return ["unshare", "-m", "sh", "-c", f'umount {unified} && exec "$@"', "sh"]
