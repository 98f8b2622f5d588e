"""`rehearse` tells of a start exactly what a start does, and does nothing.

On imagined kernels of every kind; `tests/kernel/test_cgroup_kernel.py` asks the real one.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from supervisor.cgroup import files, parts, rehearsal
from supervisor.cgroup.api import Entry
from supervisor.cgroup.detect import detect
from supervisor.cgroup.fake import FakeManager
from supervisor.cgroup.manager import Manager
from supervisor.errors import KernelError, LimitError
from supervisor.model.limits import IoLimit, Limits
from tests.support.cgroup_tree import Hierarchies
from tests.support.cgroups import noted
from tests.unit.test_cgroup_contract import ALL, KINDS, LIMITS, MIB

EVERYTHING = [
    Limits(),
    LIMITS,
    Limits(memory=MIB, cpus=0.005),
    Limits(memory=MIB, io=(IoLimit("/disk", read_bps=5, write_iops=6),)),
]


@pytest.fixture(params=KINDS)
def tree(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Hierarchies:
    monkeypatch.setattr(parts, "block_device", lambda _path: "8:0")
    monkeypatch.setattr("supervisor.cgroup.manager.block_device", lambda _path: "8:0")
    v1, v2 = KINDS[request.param]
    imagined = Hierarchies(tmp_path, v1=v1, v2=v2)
    imagined.install(monkeypatch)
    return imagined


def manager(tree: Hierarchies) -> Manager:
    found = detect("test", root=tree.root, proc=tree.proc)
    assert isinstance(found, Manager)
    return found


def contents(tree: Hierarchies) -> dict[str, str]:
    return {str(path): path.read_text() for path in Path(tree.root).rglob("*") if path.is_file()}


def really(manager: Manager, limits: Limits, *, hold: bool, whole: bool) -> list[str]:
    with noted() as lines:
        job = manager.create("run", kill_whole_on_oom=whole)
        job.apply(limits)
        if hold:
            job.hold_at_limit(True)
    job.remove()
    return lines


@pytest.mark.parametrize("limits", EVERYTHING)
@pytest.mark.parametrize("hold", [False, True])
def test_the_plan_is_what_a_start_does(tree: Hierarchies, limits: Limits, hold: bool) -> None:
    before = contents(tree)
    found = manager(tree)
    told = found.rehearse("run", limits, kill_whole_on_oom=hold, hold=hold)
    assert contents(tree) == before and found.leftovers() == ()
    assert really(found, limits, hold=hold, whole=hold) == list(told.lines)
    job = manager(tree).create("run")
    job.apply(limits)
    assert (job.entry, job.notifications) == (told.entry, told.notifications)
    assert f"mkdir {job.path}" in told.lines


def test_the_second_start_makes_only_what_is_lacking(tree: Hierarchies) -> None:
    found = manager(tree)
    found.create("first").apply(LIMITS)
    lines = found.rehearse("run", LIMITS).lines
    assert really(manager(tree), LIMITS, hold=False, whole=True) == list(lines)
    assert not any(line.endswith("/supervise.test") for line in lines)


def test_prepared_directories_are_not_taken(tree: Hierarchies) -> None:
    found = manager(tree)
    found.prepare(1)
    told = found.rehearse("run", Limits(pids=1))
    directory = told.entry.payload_dir
    assert directory is None or directory.endswith("/run/payload")
    assert any(line.startswith("mkdir ") and line.endswith("/run/payload") for line in told.lines)
    assert found.create("run").name.startswith("run.")


def test_our_own_step_down_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Hierarchies(tmp_path, v1=(), v2=ALL)
    tree.install(monkeypatch)
    own = f"{tree.v2}/own"
    tree.enter(own, os.getpid())
    lines = manager(tree).rehearse("run", LIMITS).lines
    assert lines[:2] == (
        f"mkdir {own}/supervise.test.self",
        f"write {os.getpid()} > {own}/supervise.test.self/cgroup.procs",
    )
    assert tree.members(own) == [os.getpid()]
    assert really(manager(tree), LIMITS, hold=False, whole=True) == list(lines)


def test_a_run_that_is_there_already_is_refused_as_by_a_start(tree: Hierarchies) -> None:
    manager(tree).create("run")
    before = contents(tree)
    with pytest.raises(KernelError) as caught:
        manager(tree).rehearse("run", LIMITS)
    assert caught.value.errno == errno.EEXIST
    assert contents(tree) == before


def test_a_host_without_cgroups_has_nothing_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Hierarchies(tmp_path, v1=(), v2=None)
    tree.install(monkeypatch)
    told = manager(tree).rehearse("run", Limits())
    assert told.lines == () and told.entry == Entry()
    with pytest.raises(LimitError, match="memory"):
        manager(tree).rehearse("run", Limits(memory=MIB))


def test_the_fake_tells_too() -> None:
    fake = FakeManager()
    told = fake.rehearse("run", Limits(memory=MIB), hold=True)
    assert told.lines[-2:] == (
        f"write {MIB} > /fake/run/payload/memory",
        "write 1 > /fake/run/payload/hold",
    )
    assert told.entry == fake.create("run").entry


def test_only_the_rehearsing_thread_is_held_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with rehearsal.rehearse():
        files.write(str(path), "imagined")
        other = threading.Thread(target=files.write, args=(str(path), "real"))
        other.start()
        other.join()
        assert files.read(str(path)) == "imagined"
    assert path.read_text() == "real"


def test_what_was_made_may_be_removed_again(tmp_path: Path) -> None:
    """Nothing real is removed, whatever a failing start clears away."""
    with rehearsal.rehearse() as noted:
        files.make(f"{tmp_path}/a")
        assert files.remove(str(tmp_path / "a"))
        assert not files.exists(f"{tmp_path}/a")
        assert files.remove(str(tmp_path)) and not files.exists(str(tmp_path))
    assert tmp_path.is_dir()
    assert noted.lines[0] == f"mkdir {tmp_path}/a"
