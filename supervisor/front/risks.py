"""Settings that leave a hole in a job's walls: told by `supervise check`, refused by nobody.

May import: `model`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from supervisor.model.job import Device, JobSpec, Mount

POWERFUL = {
    "ALL": "everything that root may do",
    "BPF": "loading programs into the kernel",
    "DAC_READ_SEARCH": "opening any file of the host by its handle",
    "SYS_ADMIN": "mounts, and nearly all that root may do",
    "SYS_BOOT": "restarting the host",
    "SYS_MODULE": "loading kernel modules",
    "SYS_PTRACE": "reading and writing other processes, through /proc as well",
    "SYS_RAWIO": "the host's memory and ports",
    "SYS_TIME": "the host's clock",
}
"""Capabilities that are a way out of a job, or over the whole host, without a user namespace."""

SYSTEM = ("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc",
          "/root", "/run", "/sbin", "/sys", "/usr", "/var", "/var/lib", "/var/run",
          "/var/spool")  # fmt: skip
"""Whoever may write there as root can run what he likes on the host."""

SOCKETS = ("containerd.sock", "crio.sock", "docker.sock", "podman.sock", "private",
           "system_bus_socket")  # fmt: skip
"""Names of sockets whose services do for a client what root can do."""


MEMORY = ("/dev/kmem", "/dev/mem", "/dev/port")
DISKS = ("/dev/disk/", "/dev/dm-", "/dev/hd", "/dev/mapper/", "/dev/md", "/dev/mmcblk",
         "/dev/nvme", "/dev/sd", "/dev/vd", "/dev/xvd")  # fmt: skip
"""What names of disks begin with."""


def risks(jobs: Iterable[JobSpec], *, privileged: bool = True) -> list[str]:
    """A line for each danger, with the names of the jobs that run it.

    `privileged`: root is to run them.
    """
    found: dict[str, list[str]] = {}
    for job in jobs:
        for text in (*_of(job), *(_of_owners(job) if privileged else ())):
            found.setdefault(text, []).append(job.group or job.name)
    return [f"{', '.join(dict.fromkeys(names))}: {text}" for text, names in found.items()]


def _of(job: JobSpec) -> Iterator[str]:
    mapped = job.user_namespace.kind != "host"
    is_root = job.user in (None, "root", "0") and not mapped
    if job.seccomp == "unconfined":
        yield 'seccomp = "unconfined": every system call of the kernel is open to it'
    if job.seccomp == "log":
        yield 'seccomp = "log": it may make every system call; they are only logged'
    if job.network == "host" and is_root:
        yield (
            'network = "host" as root: the host\'s loopback services and its ports below 1024 '
            "are open to it, and without Landlock (before Linux 6.12) its abstract sockets"
        )
    if not mapped:
        for name in job.capabilities.add:
            if name in POWERFUL:
                yield f"capabilities.add = {name}: {POWERFUL[name]}"
    if is_root and not job.hide and job.root == "host":
        yield 'hide = "nothing" as root: it reads every home directory and secret of the host'
    for device in job.devices:
        yield from _of_device(device)
    for mount in job.mounts:
        yield from _of_mount(mount, is_root=is_root)


def _of_owners(job: JobSpec) -> Iterator[str]:
    """What it writes to a mount belongs there to the host's user of that number (idmapped mounts).

    With CAP_SYS_ADMIN nothing is mapped for it (`container.idmaps`).
    """
    space = job.user_namespace
    unmapped = {"SYS_ADMIN", "ALL"} & {*job.capabilities.add} or space.files == "plain"
    if space.kind == "host" or (space.kind != "self" and unmapped):
        return
    user = "root" if job.user in (None, "root", "0") else job.user
    way_out = "" if space.kind == "self" else ', or say user_namespace = { files = "plain" }'
    for mount in job.mounts:
        if not mount.read_only:
            yield (
                f"mounts {os.path.normpath(mount.source)} writable: a set-user-ID program that it "
                f"makes there is one of the host's {user}; let nobody else get to it, mount that "
                f"file system nosuid on the host{way_out}"
            )


def _of_device(device: Device) -> Iterator[str]:
    name = os.path.normpath(device.path)
    if name in MEMORY:
        yield f"devices has {name}: the host's memory or ports, past every wall"
    elif name.startswith(DISKS):
        what = "writes past every file system" if "w" in device.access else "reads every file of it"
        yield f"devices has {name}: if that is a disk of the host's, the job {what}"


def _of_mount(mount: Mount, *, is_root: bool) -> Iterator[str]:
    source = os.path.normpath(mount.source)
    if os.path.basename(source) in SOCKETS and source.startswith(("/run/", "/var/run/")):
        yield f"mounts {source}: who speaks to it is as good as root on the host"
    elif is_root and not mount.read_only and source in SYSTEM:
        yield f"mounts {source} writable as root: it can put programs there for the host to run"
