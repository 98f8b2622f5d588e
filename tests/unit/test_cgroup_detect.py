"""Finding the hierarchies: what mountinfo and /proc/self/cgroup can look like."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.cgroup import delegate, detect, files, parts, v2
from supervisor.cgroup.api import JobCgroup
from supervisor.errors import KernelError, LimitError
from supervisor.linux import proc
from supervisor.model.limits import IoLimit, Limits
from tests.support.cgroup_tree import Hierarchies

MIB = 1 << 20
ALL = "cpu cpuset io memory pids"
V1 = ("memory", "pids", "cpu,cpuacct", "blkio", "cpuset", "freezer")


def grow(top: Path, patch: pytest.MonkeyPatch, v1: tuple[str, ...], v2: str | None) -> Hierarchies:
    tree = Hierarchies(top, v1=v1, v2=v2)
    tree.install(patch)
    return tree


def manager(tree: Hierarchies, parent: str | None = None) -> detect.CgroupManager:
    return detect.detect("test", parent, root=tree.root, proc=tree.proc)


@pytest.mark.parametrize(
    ("v1", "unified", "version"),
    [(V1, None, "v1"), (V1, "", "hybrid"), (V1[2:], "memory pids", "hybrid"), ((), ALL, "v2")],
)
def test_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, v1: tuple[str, ...], unified: str, version: str
) -> None:
    found = manager(grow(tmp_path, monkeypatch, v1, unified))
    assert found.version == version
    assert found.controllers == {"memory", "pids", "cpu", "cpuset", "io", "freezer"}
    assert found.missing(Limits(memory=MIB, pids=1, cpus=1.0, cpuset="0")) == ()


def test_nothing_at_all_says_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, (), None)
    found = manager(tree)
    assert (found.version, found.controllers) == ("none", frozenset())
    limits = Limits(memory=MIB, swap=0, pids=4, cpus=1.0, cpuset="0", io=(IoLimit("/", 1),))
    missing = found.missing(limits)
    assert [one.limit for one in missing] == ["memory", "swap", "pids", "cpus", "cpuset", "io"]
    assert all(one.why and "mount" in one.fix for one in missing)
    job = found.create("run")
    assert job.apply(Limits(open_files=5)) == ()
    assert (job.entry.init_files, job.entry.payload_dir) == ((), None)
    with pytest.raises(LimitError, match="memory"):
        job.apply(limits)
    with pytest.raises(KernelError, match="init"):
        job.kill()
    assert not job.populated()
    job.remove()
    found.close()


def test_one_hierarchy_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, V1, None)
    mounts = Path(tree.proc, "mountinfo")
    kept = [one for one in mounts.read_text().splitlines(True) if "rw,pids" not in one]
    mounts.write_text("".join(kept))
    found = manager(tree)
    (missing,) = found.missing(Limits(memory=MIB, pids=4))
    assert missing.limit == "pids"
    assert "mount -t cgroup -o pids" in missing.fix
    job = found.create("run")
    job.apply(Limits(memory=MIB))
    assert job.usage().pids is None
    with pytest.raises(LimitError, match="pids"):
        job.change("pids", 4)


def test_the_unified_hierarchy_lacks_a_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), "memory pids")
    (missing,) = manager(tree).missing(Limits(memory=MIB, cpus=1.0))
    assert missing.limit == "cpus"
    assert "/own/cgroup.controllers" in missing.why
    assert "Delegate=yes" in missing.fix


def test_no_permission_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, V1, None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = manager(tree)
    assert found.version == "none"
    (missing,) = found.missing(Limits(memory=MIB))
    assert "no permission" in missing.why and "Delegate" in missing.fix


def test_directories_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a hybrid host neither freezer nor cpuacct is used, and cpuset only when asked for."""
    tree = grow(
        tmp_path, monkeypatch, ("memory", "pids", "cpu", "cpuacct", "cpuset", "freezer"), ""
    )
    job = manager(tree).create("run")
    assert {Path(p).parts[-6] for p in job.entry.payload_files} == {"memory", "pids", "cpu"}
    job.apply(Limits(cpuset="0"))
    assert "cpuset" in {Path(p).parts[-6] for p in job.entry.payload_files}
    assert job.usage().cpu == 3.0


def test_v1_cpuset_is_filled_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, V1, None)
    job = manager(tree).create("run")
    job.apply(Limits(cpuset="1"))
    payload = next(os.path.dirname(p) for p in job.entry.payload_files if "/cpuset/" in p)
    assert files.read(f"{payload}/cpuset.cpus") == "1"
    assert files.read(f"{payload}/cpuset.mems") == "0"
    assert files.read(f"{os.path.dirname(payload)}/cpuset.cpus") == "0-1"


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, V1, "")
    found = manager(tree)
    found.create("first").remove()
    make = tree.make

    def refuse(directory: str, *, hint: str = "") -> None:
        if "/cpu,cpuacct/" in directory and directory.endswith("payload"):
            raise KernelError("mkdir", directory, 28)
        make(directory, hint=hint)

    monkeypatch.setattr(files, "make", refuse)
    with pytest.raises(KernelError):
        found.create("second")
    monkeypatch.setattr(files, "make", make)
    assert found.leftovers() == ()
    found.create("second").remove()


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/", "/", ""),
        ("/a/b", "/", "/a/b"),
        ("/docker/x", "/docker/x", ""),
        ("/docker/x/y", "/docker/x", "/y"),
        ("/docker/xy", "/docker/x", None),
        ("/", "/..", None),
        ("/../other", "/", None),
        ("/gone (deleted)", "/", None),
    ],
)
def test_where_a_cgroup_is_within_a_mount(path: str, root: str, below: str | None) -> None:
    assert detect._relative(path, root) == below


def test_a_mount_of_a_part_and_a_parent_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Hierarchies(tmp_path, v1=(), v2=ALL, own="/pod")
    tree.install(monkeypatch)
    mounts, groups = Path(tree.proc, "mountinfo"), Path(tree.proc, "cgroup")
    mounts.write_text(mounts.read_text().replace(" / /sys/fs/cgroup", " /outer /sys/fs/cgroup"))
    groups.write_text("0::/outer/pod\n")
    job = manager(tree).create("run")
    assert job.path == f"{tree.v2}/pod/supervise.test/run/payload"
    kmsg = [n.path for n in job.notifications if n.kind == "kmsg"]
    assert kmsg == ["/outer/pod/supervise.test/run/payload"]
    job.remove()
    tree.make(f"{tree.v2}/pod/below")
    assert tree.v2
    for parent in ("below", "/pod/below"):
        place = detect.find(parent, root=tree.root, proc=tree.proc).hierarchies[0]
        assert (place.base, place.path) == (f"{tree.v2}/pod/below", "/outer/pod/below")
    (missing,) = manager(tree, "nowhere").missing(Limits(pids=3))
    assert "no cgroup" in missing.why and "pod/nowhere" in missing.why


def test_alone_we_step_down_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    own = f"{tree.v2}/own"
    tree.enter(own, os.getpid())
    found = manager(tree)
    assert tree.members(own) == [os.getpid()]  # looking moves nobody
    assert any("step down" in line for line in found.describe())
    job = found.create("run")
    assert tree.members(f"{own}/supervise.test.self") == [os.getpid()]
    assert tree.get(f"{own}/cgroup.subtree_control").split() == ["cpu", "io", "memory", "pids"]
    job.apply(Limits(cpuset="0-1"))  # enabled only now
    assert "cpuset" in tree.get(f"{own}/cgroup.subtree_control").split()
    job.remove()
    found.close()
    assert tree.members(own) == [os.getpid()]
    assert tree.get(f"{own}/cgroup.subtree_control") == ""
    assert files.names(own) == ()


def test_while_another_needs_them_controllers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    left = manager(tree)
    left.create("run").remove()
    right = detect.detect("right", root=tree.root, proc=tree.proc)
    job = right.create("run")
    left.close()
    job.apply(Limits(memory=MIB, pids=4))
    job.remove()
    right.close()


def test_beside_others_the_next_place_above_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Hierarchies(tmp_path, v1=(), v2=ALL, own="/slice/scope")
    tree.install(monkeypatch)
    for part in ("", "/slice"):
        tree.write(f"{tree.v2}{part}/cgroup.subtree_control", "+memory +pids +cpu +io")
    scope = f"{tree.v2}/slice/scope"
    for pid in (os.getpid(), 4_100_009):
        tree.enter(scope, pid)
    job = manager(tree).create("run")
    assert job.path == f"{tree.v2}/slice/supervise.test/run/payload"
    assert tree.members(scope) == [os.getpid(), 4_100_009]
    tree.write(f"{scope}/pids.max", "99")
    (missing,) = manager(tree).missing(Limits(memory=MIB))
    assert "not ours" in missing.why and "pids.max" in missing.why
    assert delegate.FIX in missing.fix


def test_who_comes_after_the_look_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    own = f"{tree.v2}/own"
    tree.enter(own, os.getpid())
    found = manager(tree)
    tree.enter(own, 4_100_009)
    with pytest.raises(KernelError, match="Delegate=yes"):
        found.create("run")
    assert tree.members(own) == [os.getpid(), 4_100_009]


def test_processes_outside_of_our_pid_namespace_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    Path(f"{tree.v2}/own/cgroup.procs").write_text(f"{os.getpid()}\n0\n")
    monkeypatch.setattr(delegate, "_limited", lambda directory: f"{directory}/memory.max")
    assert manager(tree).version == "none"
    assert files.processes(f"{tree.v2}/own") == (os.getpid(),)


def test_a_threaded_cgroup_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    tree.put(f"{tree.v2}/own/cgroup.type", "domain threaded")
    tree.put(f"{tree.v2}/own/memory.max", "1")
    (missing,) = manager(tree).missing(Limits(memory=MIB))
    assert "domain threaded" in missing.why


def test_v1_swap_needs_its_files_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, V1, None)
    (missing,) = manager(tree).missing(Limits(swap=0))
    assert "together with memory" in missing.why
    os.unlink(f"{tree.root}/sys/fs/cgroup/memory/own/memory.memsw.limit_in_bytes")
    (missing,) = manager(tree).missing(Limits(memory=MIB, swap=0))
    assert "swapaccount=1" in missing.fix


def test_v1_tells_an_own_oom_by_the_peak_where_failcnt_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, V1, None)
    job = manager(tree).create("run")
    job.apply(Limits(memory=16 * MIB, swap=0))
    tree.count(f"{job.path}/memory.oom_control", "oom_kill")
    assert job.foreign_oom() is True
    tree.put(f"{job.path}/memory.memsw.max_usage_in_bytes", str(16 * MIB))
    assert job.foreign_oom() is False
    assert job.counters().limit_hits == 1
    job.change("memory", 64 * MIB)  # the peak no longer shows it
    assert job.foreign_oom() is False


def test_hits_above_leave_a_v1_oom_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = grow(tmp_path, monkeypatch, V1, None)
    tree.put(f"{tree.root}/sys/fs/cgroup/memory/own/memory.failcnt", "7")
    job = manager(tree).create("run")
    tree.put(f"{job.path}/memory.failcnt", "1")
    tree.count(f"{job.path}/memory.oom_control", "oom_kill")
    assert job.foreign_oom() is False  # those seven were before our time
    tree.put(f"{tree.root}/sys/fs/cgroup/memory/own/memory.failcnt", "8")
    assert job.foreign_oom() is None


def test_a_group_kill_counts_its_victim_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    job = manager(tree).create("run")
    assert tree.get(f"{job.path}/memory.oom.group") == "1"
    for key in ("oom_kill", "oom_kill", "oom_group_kill"):
        tree.count(f"{job.path}/memory.events", key)
    assert job.counters().oom_kills == 1
    assert tree.get(
        manager(tree).create("other", kill_whole_on_oom=False).path + "/memory.oom.group"
    ) == "0"  # fmt: skip


@pytest.mark.parametrize("unified", [None, ""], ids=["v1", "hybrid"])
def test_on_v1_the_rest_is_frozen_while_somebody_sleeps_at_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unified: str | None
) -> None:
    tree = grow(tmp_path, monkeypatch, V1, unified)
    job = manager(tree).create("run")
    state, on, off = "freezer.state", "FROZEN", "THAWED"
    if unified is not None:
        state, on, off = "cgroup.freeze", "1", "0"
    payload = job.entry.payload_dir or job.path.replace("/memory/", "/freezer/")
    control = f"{job.path}/memory.oom_control"

    def sleepers(disabled: int, asleep: int) -> str:
        tree.put(control, f"oom_kill_disable {disabled}\nunder_oom {asleep}\noom_kill 0")
        job.hold_others()
        return tree.get(f"{payload}/{state}")

    assert sleepers(1, 0) == off
    assert sleepers(0, 1) == off  # somebody is about to be killed, not to sleep
    assert sleepers(1, 1) == on
    assert sleepers(1, 0) == on  # who slept was woken, and is frozen like the others
    assert job.counters().under_oom
    job.change("pids", 9)
    assert tree.get(f"{payload}/{state}") == on
    job.change("memory", 128 * MIB)
    assert tree.get(f"{payload}/{state}") == off
    assert not job.counters().under_oom
    assert sleepers(1, 1) == on
    job.hold_at_limit(False)
    assert tree.get(f"{payload}/{state}") == off
    assert sleepers(1, 1) == on
    job.freeze()  # a policy's wish, which outlives the hold
    job.change("memory", 256 * MIB)
    assert tree.get(f"{payload}/{state}") == on
    job.thaw()
    assert tree.get(f"{payload}/{state}") == off


def test_without_a_freezer_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, ("memory", "pids"), None)
    job = manager(tree).create("run")
    tree.put(f"{job.path}/memory.oom_control", "oom_kill_disable 1\nunder_oom 1\noom_kill 0")
    job.hold_others()
    job.change("memory", 128 * MIB)


def test_the_v2_trip_wire_holds_and_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    job = manager(tree).create("run")
    wire = v2.trip_wire(64 * MIB)
    job.hold_at_limit(True)
    assert tree.get(f"{job.path}/memory.high") == "max"  # no limit, no wire
    job.apply(Limits(memory=64 * MIB))
    job.hold_at_limit(True)
    assert tree.get(f"{job.path}/memory.high") == str(wire)
    tree.put(f"{job.path}/memory.current", str(wire))
    assert not job.try_hold()
    tree.put(f"{job.path}/memory.current", str(61 * MIB))
    assert job.try_hold() and job.counters().under_oom
    assert tree.get(f"{job.path}/cgroup.freeze") == "1"
    job.change("memory", 128 * MIB)
    assert not job.counters().under_oom
    assert tree.get(f"{job.path}/cgroup.freeze") == "0"
    assert tree.get(f"{job.path}/memory.high") == str(v2.trip_wire(128 * MIB))
    assert not job.try_hold()
    tree.put(f"{job.path}/memory.current", str(121 * MIB))
    assert job.try_hold()
    job.hold_at_limit(False)
    assert tree.get(f"{job.path}/memory.high") == "max"
    assert tree.get(f"{job.path}/cgroup.freeze") == "0"
    assert not job.try_hold()


def at_wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Hierarchies, JobCgroup]:
    """A run of 64 MiB that uses 62 of them."""
    tree = grow(tmp_path, monkeypatch, (), ALL)
    job = manager(tree).create("run")
    job.apply(Limits(memory=64 * MIB))
    job.hold_at_limit(True)
    tree.put(f"{job.path}/memory.current", str(62 * MIB))
    return tree, job


def at_reclaim(
    tree: Hierarchies, job: JobCgroup, patch: pytest.MonkeyPatch, act: Callable[[], object]
) -> None:
    """`act` in the kernel's place, when the payload has been frozen for it."""

    def reclaim(_memory: v2.Memory) -> None:
        if tree.get(f"{job.path}/cgroup.freeze") == "1":
            act()

    patch.setattr(v2.Memory, "reclaim", reclaim)


def test_who_reads_files_is_not_even_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, job = at_wire(tmp_path, monkeypatch)

    def reclaim(_memory: v2.Memory) -> None:
        assert tree.get(f"{job.path}/cgroup.freeze") == "0"
        tree.put(f"{job.path}/memory.current", str(50 * MIB))

    monkeypatch.setattr(v2.Memory, "reclaim", reclaim)
    assert not job.try_hold()


def test_nobody_is_held_for_what_the_kernel_can_reclaim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, job = at_wire(tmp_path, monkeypatch)

    def reclaim() -> None:
        tree.put(f"{job.path}/memory.current", str(50 * MIB))

    at_reclaim(tree, job, monkeypatch, reclaim)
    assert not job.try_hold()
    assert not job.counters().under_oom
    assert tree.get(f"{job.path}/cgroup.freeze") == "0"


def test_a_raise_while_the_kernel_reclaims_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, job = at_wire(tmp_path, monkeypatch)

    def meanwhile() -> None:
        job.change("memory", 128 * MIB)
        tree.put(f"{job.path}/memory.high", str(58 * MIB))  # reclaim wrote it after the raise

    at_reclaim(tree, job, monkeypatch, meanwhile)
    assert not job.try_hold()
    assert tree.get(f"{job.path}/memory.high") == str(v2.trip_wire(128 * MIB))
    assert tree.get(f"{job.path}/cgroup.freeze") == "0"


def test_a_job_that_a_policy_froze_stays_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the kernel finds room in it, or the limit is raised, or it is let go."""
    tree, job = at_wire(tmp_path, monkeypatch)
    at_reclaim(tree, job, monkeypatch, job.freeze)
    assert job.try_hold()
    job.change("memory", 128 * MIB)
    assert tree.get(f"{job.path}/cgroup.freeze") == "1"
    job.hold_at_limit(False)
    assert not job.try_hold()
    assert tree.get(f"{job.path}/cgroup.freeze") == "1"
    job.thaw()
    assert tree.get(f"{job.path}/cgroup.freeze") == "0"


def test_a_hold_that_failed_half_way_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usage may be below the wire by then: it would stay frozen for ever."""
    tree, job = at_wire(tmp_path, monkeypatch)

    def fail() -> None:
        tree.put(f"{job.path}/memory.current", str(50 * MIB))
        raise KernelError("write", f"{job.path}/memory.high", errno.EMFILE)

    with monkeypatch.context() as patch:
        at_reclaim(tree, job, patch, fail)
        with pytest.raises(KernelError):
            job.try_hold()
    assert tree.get(f"{job.path}/cgroup.freeze") == "1"
    assert not job.try_hold()
    assert tree.get(f"{job.path}/cgroup.freeze") == "0"


@pytest.mark.parametrize("limit", [4096, 3 * MIB, 64 * MIB, 1 << 40])
def test_the_trip_wire_is_below_the_limit(limit: int) -> None:
    wire = v2.trip_wire(limit)
    assert 0 <= wire < limit and wire % parts.PAGE == 0
    assert limit - wire <= max(limit // 2 + parts.PAGE, parts.PAGE)


def test_the_kernel_must_hold_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, (), ALL)
    job = manager(tree).create("run")
    job.apply(Limits(memory=MIB + 1))  # rounded to a page: accepted
    monkeypatch.setattr(files, "write", lambda *_args, **_options: None)
    for limits in (Limits(memory=2 * MIB), Limits(cpus=2.0), Limits(cpu_weight=7)):
        with pytest.raises(LimitError, match="holds"):
            job.apply(limits)
    with pytest.raises((LimitError, ValueError)):
        job.apply(Limits(pids=3))


@pytest.mark.parametrize(
    ("cpus", "quota"),
    [(1.5, (150_000, 100_000)), (0.01, (1_000, 100_000)), (0.004, (4_000, 1_000_000))],
)
def test_quotas(cpus: float, quota: tuple[int, int]) -> None:
    assert parts.quota_and_period(cpus) == quota


def test_spares_are_taken_first_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = grow(tmp_path, monkeypatch, V1, "")
    found = manager(tree)
    found.prepare(2)
    assert found.leftovers() == ()
    job = found.create("run")
    assert job.name.startswith("run.") and f"/{job.name}/" in job.path
    assert found.create("run").name != job.name
    assert found.create("run").name == "run"  # none left
    assert manager(tree).leftovers() == ("run",)  # an unused spare is nobody's run
    for name in manager(tree).remove_leftovers():
        assert name == "run"
    found.prepare(1)
    assert not manager(tree).leftovers()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_io_limits_of_one_disk_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    tree = grow(tmp_path, monkeypatch, *((V1, None) if version == "v1" else ((), ALL)))
    devices = {"/a": "8:0", "/b": "8:0"}
    monkeypatch.setattr(parts, "block_device", lambda path: devices[path])
    monkeypatch.setattr("supervisor.cgroup.manager.block_device", lambda path: devices[path])
    job = manager(tree).create("run")
    limits = (IoLimit("/a", read_bps=100, write_iops=5), IoLimit("/b", read_bps=70, read_iops=9))
    texts = " ".join(r.text for r in job.apply(Limits(io=limits)))
    assert "70" in texts and "100" not in texts and "5" in texts and "9" in texts
    assert (job.usage().read_bytes, job.usage().write_bytes) == (4096, 512)
    (missing,) = manager(tree).missing(Limits(io=(IoLimit("/a", read_bps=0),)))
    assert "no rate" in missing.why


def test_paths_without_a_block_device(tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="without a block device"):
        parts.block_device("/proc")
    with pytest.raises(KernelError):
        parts.block_device(str(tmp_path / "absent"))


def test_a_partition_stands_for_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "devices/sda"
    (disk / "sda1").mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / "sda1/partition").write_text("1\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/8:1").symlink_to(disk / "sda1")
    real = os.stat(tmp_path)
    fields = [*real]
    fields[2] = os.makedev(8, 1)
    monkeypatch.setattr(parts.os, "stat", lambda _path: os.stat_result(fields))
    assert parts.block_device("/data", str(tmp_path)) == "8:0"


def test_the_kernels_lists_of_numbers() -> None:
    assert files.number_set("0-2,5\n") == {0, 1, 2, 5}
    assert files.number_set("") == frozenset()


def test_mountinfo_as_the_kernel_escapes_it(tmp_path: Path) -> None:
    line = (
        r"36 35 98:0 /a\134b /mnt\040x\011y rw,noatime shared:5 master:1 - ext4 /dev/r\040t rw,e=c"
    )
    (tmp_path / "mountinfo").write_text(line + "\n")
    (mount,) = proc.mountinfo(str(tmp_path / "mountinfo"))
    assert (mount.id, mount.parent, mount.major, mount.minor) == (36, 35, 98, 0)
    assert (mount.root, mount.mount_point) == (r"/a\b", "/mnt x\ty")
    assert mount.options == ("rw", "noatime")
    assert mount.optional == ("shared:5", "master:1")
    assert (mount.fstype, mount.source) == ("ext4", "/dev/r t")
    assert mount.super_options == ("rw", "e=c")
    with pytest.raises(ValueError, match="mountinfo"):
        proc.Mount("nonsense")


def test_stat_of_a_process_with_a_hostile_name() -> None:
    stat = proc.Stat("42 (a) b (c) S 7 " + " ".join(str(n) for n in range(5, 53)))
    assert (stat.pid, stat.comm, stat.state, stat.parent) == (42, "a) b (c", "S", 7)
    assert stat.start_ticks == 22


def test_children_and_descendants_of_this_process() -> None:
    reading, writing = os.pipe()
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "read x"], {}, file_actions=[
        (os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_CLOSE, writing)])  # fmt: skip
    try:
        assert pid in proc.children(os.getpid())
        assert pid in proc.descendants(os.getpid())
        assert proc.stat(pid).parent == os.getpid()
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)
    assert pid not in proc.children(os.getpid())
    with pytest.raises(KernelError) as caught:
        proc.children(pid)
    assert caught.value.errno == 2
