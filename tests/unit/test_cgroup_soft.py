"""memory.high, memory.low and cpu.idle on an imagined kernel: what is written where, and refused.

`test_cgroup_contract` has what every implementation must do; `tests/kernel/test_soft_limits` what
the real kernel does.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.cgroup.detect import detect
from supervisor.cgroup.manager import Manager
from supervisor.cgroup.v2 import trip_wire
from supervisor.model.limits import Limits
from tests.support.cgroup_tree import Hierarchies

MIB = 1 << 20


class Unified:
    """A v2 host whose cgroups above grant `low`."""

    def __init__(self, tree: Hierarchies) -> None:
        self.tree = tree
        self.top = f"{tree.v2}/own"
        self.instance = f"{self.top}/supervise.test"

    def manager(self) -> Manager:
        found = detect("test", root=self.tree.root, proc=self.tree.proc)
        assert isinstance(found, Manager)
        return found

    def text(self, path: str) -> str:
        return self.tree.get(path)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Unified:
    tree = Hierarchies(tmp_path, v1=(), v2="cpu cpuset io memory pids")
    tree.install(monkeypatch)
    return Unified(tree)


def test_a_protection_that_the_cgroups_above_do_not_grant_is_missing(host: Unified) -> None:
    (one,) = host.manager().missing(Limits(memory_low=MIB))
    assert one.limit == "memory_low"
    assert f"{host.top}/memory.low" in one.why and "MemoryLow" in one.fix


def test_runs_are_protected_as_far_as_they_ask_and_no_further(host: Unified) -> None:
    host.tree.put(f"{host.top}/memory.low", str(64 * MIB))
    manager = host.manager()
    assert manager.missing(Limits(memory_low=8 * MIB)) == ()
    first, second = manager.create("a"), manager.create("b")
    plain = manager.create("c")
    plain.apply(Limits(memory=MIB))
    for job in (first, second):
        job.apply(Limits(memory_low=8 * MIB))
    assert host.text(f"{first.path}/memory.low") == str(8 * MIB)
    assert host.text(f"{os.path.dirname(first.path)}/memory.low") == str(8 * MIB)
    assert host.text(f"{plain.path}/memory.low") == "0"
    assert host.text(f"{host.instance}/memory.low") == str(16 * MIB)
    first.remove()
    assert host.text(f"{host.instance}/memory.low") == str(8 * MIB)
    assert second.try_remove() and plain.try_remove()
    assert host.text(f"{host.instance}/memory.low") == "0"
    manager.close()


def test_the_plan_shows_the_protection(host: Unified) -> None:
    host.tree.put(f"{host.top}/memory.low", "max")
    lines = host.manager().rehearse("RUN", Limits(memory_low=MIB, memory_high=2 * MIB)).lines
    assert f"write {MIB} > {host.instance}/memory.low" in lines
    assert f"write {2 * MIB} > {host.instance}/RUN/payload/memory.high" in lines
    assert not os.path.exists(host.instance)


@pytest.mark.parametrize("wanted", [8 * MIB, 63 * MIB])
def test_the_lower_of_memory_high_and_the_wire_stands(host: Unified, wanted: int) -> None:
    job = host.manager().create("run")
    job.apply(Limits(memory=64 * MIB, memory_high=wanted))
    job.hold_at_limit(True)
    wire = trip_wire(64 * MIB)
    assert host.text(f"{job.path}/memory.high") == str(min(wire, wanted))
    job.change("memory_high", 16 * MIB)
    assert host.text(f"{job.path}/memory.high") == str(16 * MIB)
    job.hold_at_limit(False)
    assert host.text(f"{job.path}/memory.high") == str(16 * MIB)


def test_a_job_slowed_down_at_its_memory_high_is_not_held(host: Unified) -> None:
    job = host.manager().create("run")
    job.apply(Limits(memory=64 * MIB, memory_high=8 * MIB))
    job.hold_at_limit(True)
    host.tree.put(f"{job.path}/memory.current", str(9 * MIB))
    host.tree.count(f"{job.path}/memory.events.local", "high")
    assert not job.try_hold() and not job.counters().under_oom
    host.tree.put(f"{job.path}/memory.current", str(trip_wire(64 * MIB) + 4096))
    assert job.try_hold() and job.counters().under_oom


def test_a_kernel_without_cpu_idle_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import cgroup_tree

    monkeypatch.delitem(cgroup_tree.V2_FILES["cpu"], "cpu.idle")
    tree = Hierarchies(tmp_path, v1=(), v2="cpu memory pids")
    tree.install(monkeypatch)
    (one,) = Unified(tree).manager().missing(Limits(cpu_idle=True))
    assert one.limit == "cpu_idle" and "5.15" in one.fix
