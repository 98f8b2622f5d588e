"""Which devices payloads may use: v1's lists on an imagined kernel, and who decides where."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.cgroup import devices
from supervisor.cgroup.api import DeviceRule, Missing
from supervisor.cgroup.detect import detect
from supervisor.cgroup.fake import FakeManager
from supervisor.cgroup.manager import Manager
from supervisor.errors import KernelError, LimitError
from supervisor.linux import bpf
from supervisor.model.job import Capabilities, Device, JobSpec, UserNamespace
from supervisor.supervise import preflight
from tests.support.cgroup_tree import Hierarchies
from tests.support.cgroups import noted
from tests.unit.test_cgroup_contract import ALL, V1

NULL = DeviceRule("c", 1, 3, "rwm")
DISK = DeviceRule("b", 8, 0, "r")
TERMINALS = DeviceRule("c", 136, None, "rw")


def manager(
    top: Path, monkeypatch: pytest.MonkeyPatch, v1: tuple[str, ...], v2: str | None
) -> Manager:
    tree = Hierarchies(top, v1=v1, v2=v2)
    tree.install(monkeypatch)
    found = detect("test", root=tree.root, proc=tree.proc)
    assert isinstance(found, Manager)
    return found


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    return manager(tmp_path, monkeypatch, (*V1, "devices"), "")


def test_runs_with_one_list_share_a_cgroup_of_it(old: Manager) -> None:
    one, two, wide = (old.create(name) for name in ("one", "two", "wide"))
    for job in (one, two):
        job.confine((NULL, TERMINALS))
    wide.confine((NULL, TERMINALS, DISK))
    last = [job.entry.payload_files[-1] for job in (one, two, wide)]
    assert last[0] == last[1] != last[2]
    lists = [Path(os.path.dirname(path), "devices.list").read_text() for path in last]
    assert lists[0].split("\n") == ["c 136:* rw", "c 1:3 rwm"]
    assert lists[2].split("\n") == ["b 8:0 r", "c 136:* rw", "c 1:3 rwm"]
    for job in (one, two, wide):
        job.remove()
    old.close()
    assert not os.path.exists(os.path.dirname(os.path.dirname(last[0])))


def test_a_list_that_was_left_is_taken_over_as_it_is(old: Manager, tmp_path: Path) -> None:
    job = old.create("one")
    job.confine((NULL,))
    place = os.path.dirname(job.entry.payload_files[-1])
    later = detect("test", root=str(tmp_path), proc=f"{tmp_path}/proc/self")
    with noted() as lines:
        later.create("two").confine((NULL,))
    assert not [line for line in lines if "devices" in line]
    Path(place, "devices.list").write_text("a *:* rwm")  # as one that was never finished
    third = detect("test", root=str(tmp_path), proc=f"{tmp_path}/proc/self")
    third.create("three").confine((NULL,))
    assert Path(place, "devices.list").read_text() == "c 1:3 rwm"


def test_the_plan_has_the_list_s_lines(old: Manager) -> None:
    told = old.rehearse("run", preflight_limits(), devices=(NULL, DISK))
    lines = [line for line in told.lines if "devices" in line]
    assert [line.split(" > ")[0] for line in lines if " > " in line] == [
        "write a", "write b 8:0 r", "write c 1:3 rwm"
    ]  # fmt: skip
    assert told.entry.payload_files[-1].endswith("/tasks")
    assert not old.leftovers()


def preflight_limits():
    return JobSpec("one", ("true",)).limits


@pytest.mark.parametrize(
    ("v1", "v2", "kind"),
    [
        ((*V1, "devices"), "", devices.Lists),
        ((*V1, "devices"), None, devices.Lists),
        (("memory,devices", "pids"), "", devices.Programs),
        (V1, "", devices.Programs),
        ((), ALL, devices.Programs),
        (V1, None, devices.Absent),
        (("memory,devices", "pids"), None, devices.Absent),
    ],
)
def test_who_decides(tmp_path, monkeypatch, v1, v2, kind) -> None:
    assert isinstance(manager(tmp_path, monkeypatch, v1, v2).devices, kind)


def test_a_program_is_loaded_once_and_attached_to_each_run(tmp_path, monkeypatch) -> None:
    loaded, attached = [], []

    def load(program: bytes) -> int:
        loaded.append(program)
        return os.open("/dev/null", os.O_RDONLY)

    monkeypatch.setattr(bpf, "load_device_program", load)
    monkeypatch.setattr(bpf, "attach_device_program", lambda fd, where: attached.append(where))
    new = manager(tmp_path, monkeypatch, (), ALL)
    assert new.missing_devices() is None and new.missing_devices() is None
    runs = [new.create(name) for name in ("one", "two", "three")]
    for run, rules in zip(runs, ((NULL,), (NULL,), (NULL, DISK)), strict=True):
        run.confine(rules)
    assert len(loaded) == 3  # the trial, and two lists
    assert attached == [run.entry.payload_dir for run in runs]
    told = new.rehearse("four", preflight_limits(), devices=(NULL,))
    assert f"bpf BPF_PROG_ATTACH 13 instructions to {told.entry.payload_dir}" in told.lines
    assert len(loaded) == len(attached) == 3
    for run in runs:
        run.remove()
    new.close()


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.EPERM, "CAP_BPF"), (errno.EINVAL, "no BPF program"), (errno.ENOMEM, "allocate")],
)
def test_a_kernel_that_takes_no_program_is_told(tmp_path, monkeypatch, number, why) -> None:
    def load(_program: bytes) -> int:
        raise KernelError("bpf BPF_PROG_LOAD", None, number)

    monkeypatch.setattr(bpf, "load_device_program", load)
    missing = manager(tmp_path, monkeypatch, (), ALL).missing_devices()
    assert missing is not None and why in missing.why and missing.key == "devices"


def test_where_nobody_decides_it_is_told(tmp_path, monkeypatch) -> None:
    none = manager(tmp_path, monkeypatch, V1, None)
    missing = none.missing_devices()
    assert isinstance(missing, Missing) and "mount -t cgroup -o devices" in missing.fix
    with pytest.raises(KernelError, match="limit devices"):
        none.create("one").confine((NULL,))


@pytest.mark.parametrize(
    ("job", "refused"),
    [
        ({}, False),
        ({"devices": (Device("/dev/null", "/dev/other"),)}, True),
        ({"capabilities": Capabilities(add=("MKNOD",))}, True),
        ({"capabilities": Capabilities(add=("SYS_ADMIN",))}, True),
        ({"capabilities": Capabilities(add=("ALL",))}, True),
        ({"capabilities": Capabilities(add=("ALL",), drop=("MKNOD", "SYS_ADMIN"))}, False),
        ({"capabilities": Capabilities(add=("MKNOD",)),
          "user_namespace": UserNamespace("map", 100000, 65536)}, False),
    ],
)  # fmt: skip
def test_a_host_without_is_refused_where_mounts_alone_would_not_do(
    monkeypatch, job, refused
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("supervisor.linux.caps.effective", lambda: (1 << 63) - 1)
    lacking = FakeManager(lacks=frozenset({"devices"}))
    spec = JobSpec("one", ("true",), **job)
    preflight.check(lacking, [spec], "warn")
    preflight.check(FakeManager(), [spec], "refuse")
    if not refused:
        preflight.check(lacking, [spec], "refuse")
        return
    with pytest.raises(LimitError, match="devices of one: imagined to be missing"):
        preflight.check(lacking, [spec], "refuse")
