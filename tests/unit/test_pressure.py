"""Which source tells of pressure on which host, and what is told where none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.cgroup.detect import detect
from supervisor.cgroup.fake import FakeManager
from supervisor.cgroup.manager import Manager
from supervisor.errors import LimitError
from supervisor.model import InlineAction, JobSpec, PressureAt
from supervisor.supervise import preflight
from tests.support.cgroup_tree import Hierarchies

TEXT = (
    "some avg10=12.50 avg60=2.08 avg300=0.45 total=1404696\nfull avg10=0 avg60=0 avg300=0 total=0"
)
V1 = ("memory", "pids", "cpu,cpuacct", "freezer")


def host(path: Path, patch: pytest.MonkeyPatch, v1: tuple[str, ...], v2: str | None) -> Manager:
    tree = Hierarchies(path, v1=v1, v2=v2)
    tree.install(patch)
    found = detect("test", root=tree.root, proc=tree.proc)
    assert isinstance(found, Manager)
    return found


def psi(path: Path) -> None:
    (path / "proc/pressure").mkdir(exist_ok=True)
    for resource in ("memory", "cpu", "io"):
        (path / f"proc/pressure/{resource}").write_text(TEXT)


@pytest.mark.parametrize(("v1", "v2"), [((), "memory pids cpu"), (V1, "")], ids=["v2", "hybrid"])
def test_psi_tells_wherever_there_is_a_unified_hierarchy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, v1: tuple[str, ...], v2: str
) -> None:
    manager = host(tmp_path, monkeypatch, v1, v2)
    psi(tmp_path)
    assert manager.missing_pressure(["memory", "cpu", "io"]) == ()
    job = manager.create("run")
    source = job.pressure("io", 0.15)
    assert (source.kind, source.text) == ("psi", "some 300000 2000000")
    assert source.path == f"{manager.tree('run').unified}/payload/io.pressure"
    Path(source.path).write_text(TEXT)
    assert job.stalled("io") == (0.125, 1.404696)


def test_v1_alone_has_levels_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import cgroup_tree

    monkeypatch.setitem(cgroup_tree.V1_FILES["memory"], "memory.pressure_level", "")
    manager = host(tmp_path, monkeypatch, V1, None)
    psi(tmp_path)
    assert [one.key for one in manager.missing_pressure(["memory", "io"])] == ["pressure.io"]
    job = manager.create("run")
    assert job.pressure("memory", 0.15).text == "medium"
    assert job.pressure("memory", 0.5).text == "critical"
    assert job.pressure("memory", 0.5).control == f"{job.path}/cgroup.event_control"
    assert job.stalled("memory") == (None, None)


def test_a_kernel_without_psi_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = host(tmp_path, monkeypatch, (), "memory pids cpu")
    (one,) = manager.missing_pressure(["memory"])
    assert one.key == "pressure.memory" and "psi=1" in one.fix
    assert f"{tmp_path}/proc/pressure/memory" in one.why


def test_only_jobs_with_the_hook_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    manager = FakeManager(lacks=frozenset({"pressure.memory"}))
    plain = JobSpec("plain", ("true",))
    asks = JobSpec("asks", ("true",), hooks={"on_pressure": InlineAction("ignore")})
    never = JobSpec(
        "never", ("true",), hooks={"on_pressure": InlineAction("ignore")},
        pressure=PressureAt(memory=None),
    )  # fmt: skip
    monkeypatch.setattr("supervisor.linux.caps.effective", lambda: (1 << 63) - 1)
    preflight.check(manager, [plain, never], "refuse")
    preflight.check(manager, [asks], "warn")
    with pytest.raises(LimitError, match=r"pressure\.memory of asks"):
        preflight.check(manager, [plain, asks], "refuse")
