"""Which devices the payloads may use: v1's devices controller, or a BPF program on v2.

For this package only.  The two are twins: `Lists` has a cgroup for each distinct list of rules,
which the runs that have it share (a device has no counters and no limits to be kept apart);
`Programs` has a program for each, attached to the payload's directory of every run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from errno import EINVAL, ENOSYS, EPERM
from typing import Protocol

from attrs import evolve

from supervisor.cgroup import files
from supervisor.cgroup.api import DeviceRule, Missing
from supervisor.cgroup.rehearsal import acting
from supervisor.errors import KernelError
from supervisor.linux import bpf

KEY = "devices"


def merged(rules: Iterable[DeviceRule]) -> tuple[DeviceRule, ...]:
    """One rule for each device, in order: lists that allow the same are the same."""
    found: dict[tuple[object, ...], DeviceRule] = {}
    for rule in rules:
        which = (rule.kind, rule.major, rule.minor)
        both = {*rule.access, *(found[which].access if which in found else "")}
        found[which] = evolve(rule, access="".join(one for one in "rwm" if one in both))
    return tuple(sorted(found.values(), key=lambda rule: rule.text))


class Devices(Protocol):
    """One of the twins, or none."""

    def missing(self) -> Missing | None: ...

    def confine(self, payload: str | None, rules: tuple[DeviceRule, ...]) -> tuple[str, ...]:
        """Let the payload use these alone; the files into which it must write itself for that.

        `payload`: its directory in the unified hierarchy.  Raises KernelError.
        """

    def close(self) -> None: ...


class Absent:
    """Nothing here decides over devices but their permissions."""

    def missing(self) -> Missing | None:
        why = "there is neither a devices controller (v1) nor a unified hierarchy"
        return Missing(KEY, why, "mount -t cgroup -o devices none /sys/fs/cgroup/devices")

    def confine(self, payload: str | None, rules: tuple[DeviceRule, ...]) -> tuple[str, ...]:
        raise KernelError("limit devices", payload, ENOSYS)

    def close(self) -> None:
        return


class Lists:
    """v1: devices.deny and devices.allow (cgroup-v1/devices.rst) below the instance's directory.

    A list is written once, before anybody is in its cgroup; one that an earlier supervisor of this
    name has left, named after the same rules, holds them already.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._made: set[str] = set()

    def missing(self) -> Missing | None:
        return None

    def confine(self, payload: str | None, rules: tuple[DeviceRule, ...]) -> tuple[str, ...]:
        lines = [rule.text for rule in merged(rules)]
        name = "list." + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
        if name not in self._made:
            self._make(f"{self._directory}/{name}", lines)
            self._made.add(name)
        return (f"{self._directory}/{name}/tasks",)

    def _make(self, directory: str, lines: list[str]) -> None:
        if not files.exists(self._directory):
            files.make(self._directory)
        if not files.exists(directory):
            files.make(directory)
        elif set(files.read(f"{directory}/devices.list").split("\n")) == set(lines):
            return
        files.write(f"{directory}/devices.deny", "a")
        for line in lines:
            files.write(f"{directory}/devices.allow", line, hint="a cgroup above forbids it")

    def close(self) -> None:
        """Remove what is below the instance's directory, and it."""
        if not files.exists(self._directory):
            return
        for name in files.names(self._directory):
            files.remove(f"{self._directory}/{name}")
        files.remove(self._directory)
        self._made.clear()


class Programs:
    """v2: BPF_PROG_TYPE_CGROUP_DEVICE ("Device controller" in cgroup-v2.rst).

    Also where the unified hierarchy stands beside those of v1, without a devices controller there.
    """

    def __init__(self) -> None:
        self._loaded: dict[tuple[DeviceRule, ...], int] = {}
        self._obstacle: Missing | None = None
        self._tried = False

    def missing(self) -> Missing | None:
        """Tried by loading a program that refuses everything: no file tells whether one may."""
        if not self._tried:
            try:
                os.close(bpf.load_device_program(bpf.device_program(())))
            except KernelError as error:
                self._obstacle = _obstacle(error)
            self._tried = True
        return self._obstacle

    def confine(self, payload: str | None, rules: tuple[DeviceRule, ...]) -> tuple[str, ...]:
        assert payload is not None, "there is a unified hierarchy"
        rehearsal = acting()
        if rehearsal:
            length = len(_program(rules)) // bpf.INSTRUCTION_SIZE
            rehearsal.lines.append(f"bpf BPF_PROG_ATTACH {length} instructions to {payload}")
            return ()
        if rules not in self._loaded:
            self._loaded[rules] = bpf.load_device_program(_program(rules))
        bpf.attach_device_program(self._loaded[rules], payload)
        return ()

    def close(self) -> None:
        """The kernel keeps what is attached."""
        for fd in self._loaded.values():
            os.close(fd)
        self._loaded.clear()


def _program(rules: tuple[DeviceRule, ...]) -> bytes:
    return bpf.device_program((r.kind, r.major, r.minor, r.access) for r in merged(rules))


def _obstacle(error: KernelError) -> Missing:
    if error.errno == EPERM:
        return Missing(KEY, "a BPF program takes CAP_BPF and CAP_NET_ADMIN", "run as root")
    if error.errno in (EINVAL, ENOSYS):
        why = "the kernel takes no BPF program for devices"
        return Missing(KEY, why, "a kernel with CONFIG_CGROUP_BPF and CONFIG_BPF_SYSCALL")
    return Missing(KEY, error.message, "see the kernel log")
