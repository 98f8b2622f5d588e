"""Which devices a job may use: those of every /dev, and what `devices` adds.

Two walls: nothing but the nodes of its own /dev can be opened at all, as every other mount is
`nodev`; and the cgroup lets these alone through, whatever nodes it makes or finds.

May import: `errors`, `model`, `linux`, `cgroup.api`, `container.mounts`.
"""

from __future__ import annotations

import os
import stat

from supervisor.cgroup.api import DeviceRule
from supervisor.container import mounts
from supervisor.errors import SpawnError
from supervisor.linux import caps
from supervisor.model.job import Device, JobSpec

_PTMX = (5, 2)
_PTS = 136
"""Of the first devpts instance's nodes, and of every other's (admin-guide/devices.txt)."""

STANDARD = (
    *(DeviceRule("c", major, minor, "rwm") for _, major, minor in mounts.DEV_NODES),
    DeviceRule("c", *_PTMX, "rw"),
    DeviceRule("c", _PTS, None, "rw"),
)
"""What every job may use; a job with CAP_MKNOD may make these nodes, too."""

_AROUND_MOUNTS = frozenset({caps.number("MKNOD"), caps.number("SYS_ADMIN")})
"""Who has one of these on the host gets past `nodev`, or needs no node that is there."""


def rules(spec: JobSpec) -> tuple[DeviceRule, ...]:
    """All that the job may use.  Raises SpawnError for a path that is no device."""
    return (*STANDARD, *(_rule(device) for device in spec.devices))


def _rule(device: Device) -> DeviceRule:
    try:
        status = os.stat(device.path)
    except OSError as error:
        hint = "devices names nodes of the host's /dev"
        raise SpawnError("mounts", error.errno or 0, device.path, "", hint=hint) from error
    if not is_device(status.st_mode):
        raise SpawnError(
            "mounts", 0, device.path, "is no device", hint="mounts takes files and directories"
        )
    number = status.st_rdev
    return DeviceRule(
        "b" if stat.S_ISBLK(status.st_mode) else "c",
        os.major(number),
        os.minor(number),
        device.access,
    )


def is_device(mode: int) -> bool:
    """Whether a file's mode is that of a character or block device."""
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def rests_on_cgroup(spec: JobSpec) -> bool:
    """Whether mounts alone would not keep the job to its rules.

    In a user namespace nobody makes nodes or opens those of his own mounts (capabilities(7)).
    """
    if spec.devices:
        return True
    asked = spec.capabilities
    allowed = caps.of_job(asked.add, asked.drop)
    return spec.user_namespace.kind == "host" and not _AROUND_MOUNTS.isdisjoint(allowed)
