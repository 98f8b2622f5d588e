"""Makes the meters of an instance's runs, and what they share.  For this package only.

What a run has none of on this host (a controller, PSI) its meter leaves out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, get_args

from supervisor.cgroup import meter_v1, meter_v2
from supervisor.cgroup.kept import Budget, File, Gate
from supervisor.cgroup.meter import (
    AccountFiles,
    Io,
    Kills,
    MemoryFiles,
    Open,
    Part,
    Pids,
    Pressure,
    RunMeter,
    totals,
)
from supervisor.model.job import Resource

if TYPE_CHECKING:
    from supervisor.cgroup.manager import Layer, Manager


class Metering:
    """The budget of descriptors and the gates, made with the first meter."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._budget = Budget()
        self._gates = self._pressure_gates()
        self._io_gate = self._find_io_gate()
        self._kill_gate = _find_kill_gate(manager.proc)

    def _pressure_gates(self) -> dict[Resource, Gate]:
        unified = self._manager.unified
        told = [one for one in get_args(Resource) if not self._manager.psi.lacks(one)]
        return {
            resource: _gate(f"{unified.directory}/{resource}.pressure", totals)
            for resource in told
            if unified
        }

    def _find_io_gate(self) -> Gate | None:
        """None before kernel 5.4, whose v1 counts are not those of the whole tree."""
        layer = self._manager.layer("io")
        if layer is None:
            return None
        if layer.unified:
            return _gate(f"{layer.directory}/io.stat", bytes)
        name = meter_v1.io_names(layer.offers)[1]
        return _gate(f"{layer.directory}/{name}", bytes) if name.endswith("recursive") else None

    def meter(self, name: str) -> RunMeter:
        """Of a run whose directories are there."""
        files: list[File] = []
        often = partial(self._file, files, often=True)
        rarely = partial(self._file, files, often=False)
        account, cpu = self._cpu(name, often)
        pids = self._directory("pids", name)
        unified = self._manager.unified
        more: list[Part] = [cpu] if cpu else []
        memory = self._memory(name, often)
        return RunMeter(
            account,
            memory,
            Pids(pids, often) if pids else None,
            more,
            Kills(memory.kills, self._kill_gate) if memory else None,
            self._io(name, rarely),
            Pressure(_payload(unified, name), self._gates, often, rarely) if unified else None,
            files,
        )

    def _file(self, files: list[File], path: str, *, often: bool) -> File:
        files.append(File(path, self._budget, often=often))
        return files[-1]

    def _directory(self, controller: str, name: str) -> str:
        layer = self._manager.layer(controller)
        return _payload(layer, name) if layer else ""

    def _memory(self, name: str, often: Open) -> MemoryFiles | None:
        layer = self._manager.layer("memory")
        if layer is None:
            return None
        kind = meter_v2.Memory if layer.unified else meter_v1.Memory
        return kind(_payload(layer, name), often, layer.offers)

    def _cpu(self, name: str, often: Open) -> tuple[AccountFiles | None, Part | None]:
        """Who tells of CPU time (as `Manager.account`), and who of the quota."""
        layer, unified = self._manager.layer("cpu"), self._manager.unified
        quota = meter_v1.Cpu(_payload(layer, name), often) if layer and not layer.unified else None
        if unified:
            both = layer is not None and layer.unified
            account = meter_v2.Account(_payload(unified, name), often, quota=both)
            return account, account if both else quota
        old = self._manager.layer("cpuacct")
        if old is None:
            return None, quota
        return meter_v1.Account(_payload(old, name), often, old.offers), quota

    def _io(self, name: str, rarely: Open) -> Io | None:
        layer = self._manager.layer("io")
        if layer is None:
            return None
        directory = _payload(layer, name)
        files = (
            meter_v2.Io(directory, rarely)
            if layer.unified
            else meter_v1.Io(directory, rarely, layer.offers)
        )
        return Io(files, self._io_gate)


def _payload(layer: Layer, name: str) -> str:
    return f"{layer.directory}/{name}/payload"


def _find_kill_gate(proc: str) -> Gate | None:
    """/proc/vmstat counts the OOM kills of the whole host, since kernel 4.13.

    A file that somebody has mounted over it tells of something else.
    """
    path = f"{proc}/vmstat"
    try:
        if os.stat(path).st_dev != os.stat(f"{proc}/self").st_dev or not kills_of_host(
            File(path, Budget(0)).read()
        ):
            return None
    except OSError:
        return None  # not shown here: then each run's own is read
    return _gate(path, kills_of_host)


def kills_of_host(data: bytes) -> bytes:
    """The line of /proc/vmstat; b"" where there is none."""
    at = data.find(b"\noom_kill ")
    return b"" if at < 0 else data[at + 1 : data.index(b"\n", at + 1)]


def _gate(path: str, part: Callable[[bytes], object]) -> Gate:
    """Opened and closed for each look: there are four at most."""
    return Gate(File(path, Budget(0)), part)
