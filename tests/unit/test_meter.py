"""What a meter reads of a run, and what it does not read again; on imagined kernels."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.cgroup import kept, meter
from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.detect import detect
from supervisor.cgroup.kept import Budget, File, Gate
from supervisor.cgroup.manager import Manager
from supervisor.cgroup.meter import SETTLED, RunMeter, Table, stall, totals
from supervisor.cgroup.sample import IoCount, Sample, Stall
from supervisor.errors import KernelError
from tests.support.cgroup_tree import Hierarchies
from tests.unit.test_cgroup_contract import KINDS

V1, V2 = KINDS["v1"], KINDS["v2"]
PSI = (
    "some avg10=1.50 avg60=0.00 avg300=0.00 total=4000\n"
    "full avg10=0.50 avg60=0.00 avg300=0.00 total=3000\n"
)
CALM = PSI.replace("1.50", "0.00").replace("0.50", "0.00")


class World:
    """An imagined kernel with one run on it, its meter, a clock, and the files that were read."""

    def __init__(self, tree: Hierarchies, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tree = tree
        self.now = 1000.0
        self.read: list[str] = []
        self.manager = detect("test", root=tree.root, proc=tree.proc)
        assert isinstance(self.manager, Manager)
        self.job: JobCgroup = self.manager.create("run")
        made = self.job.meter()
        assert isinstance(made, RunMeter)
        self.meter = made
        made._clock = lambda: self.now
        whole = File.read

        def noting(file: File) -> bytes:
            self.read.append(file.path.rpartition("/")[2])
            return whole(file)

        monkeypatch.setattr(File, "read", noting)

    def look(self, after: float = 1.0) -> Sample:
        self.now += after
        self.read.clear()
        return self.meter.read()

    def settle(self) -> None:
        """Nothing happens for so long that nothing is about to be written down either."""
        for _ in range(3):
            self.look(SETTLED)

    def file(self, name: str) -> str:
        """Of those that are open, the one of this name."""
        (found,) = (one.path for one in self.meter._files if one.path.endswith(f"/{name}"))
        return found

    def put(self, name: str, text: str) -> None:
        self.tree.put(self.file(name), text)


class MakeWorld:
    """Makes worlds, whose /proc/self is `proc`."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._top = top
        self._monkeypatch = monkeypatch
        self.proc = f"{top}/proc/self"
        self.made: list[World] = []

    def __call__(self, kind: str) -> World:
        v1, v2 = KINDS[kind]
        tree = Hierarchies(self._top, v1=v1, v2=v2)
        tree.install(self._monkeypatch)
        self.made.append(World(tree, self._monkeypatch))
        return self.made[-1]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorld]:
    one = MakeWorld(tmp_path, monkeypatch)
    yield one
    for world in one.made:
        world.meter.close()


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_read_on_every_kind_of_host(make: MakeWorld, kind: str) -> None:
    sample = make(kind).look()
    assert (sample.cpu, sample.cpu_user, sample.cpu_system) == (3_000_000, 2_000_000, 1_000_000)
    assert (sample.memory, sample.pids) == (0, 0)
    slow = sample.slow
    assert (slow.periods, slow.throttled_periods, slow.throttled) == (9, 4, 2_500_000)
    assert (slow.anon, slow.file, slow.shmem, slow.swap) == (4096, 7192, 1000, 700)
    assert (slow.oom_kills, slow.refused) == (0, 0)
    assert sample.io == IoCount(4096, 512, 1, 2)


def test_kernel_memory_is_known_where_memory_stat_has_it(make: MakeWorld) -> None:
    assert make("v2").look().slow.kernel == 900


def test_kernel_memory_of_older_kernels_is_the_sum_of_its_parts(make: MakeWorld) -> None:
    world = make("v2")
    world.put("memory.stat", "anon 1\nfile 2\nkernel_stack 10\npercpu 5\nslab 100\nshmem 0")
    assert world.look().slow.kernel == 115


def test_idle_runs_cost_three_files(make: MakeWorld) -> None:
    world = make("v2")
    world.settle()
    sample = world.look()
    # io.stat is the gate's: the instance's own, read for all runs together
    assert world.read == ["cpu.stat", "memory.current", "pids.current", "io.stat"]
    assert sample.slow.anon == 4096  # known all the same


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("memory.current", "1"),
        ("pids.current", "1"),
        ("cpu.stat", "usage_usec 3000001\nuser_usec 1\nsystem_usec 1\nnr_periods 9\n"
         "nr_throttled 4\nthrottled_usec 1"),
    ],
)  # fmt: skip
def test_whoever_has_done_anything_is_read_in_full(make: MakeWorld, name: str, text: str) -> None:
    world = make("v2")
    world.settle()
    world.put(name, text)
    world.put("memory.events", "oom_kill 3")
    assert world.look().slow.oom_kills == 3
    # and once more after the kernel has written down what it writes late
    world.put("memory.stat", "anon 1234\nfile 0\nkernel 0\nkernel_stack 0\nshmem 0")
    assert world.look(SETTLED).slow.anon == 1234


def test_io_is_read_again_when_the_instance_has_any(make: MakeWorld) -> None:
    world = make("v2")
    world.look()
    own = world.file("io.stat")
    above = f"{own.split('/run/')[0]}/io.stat"
    text = "8:0 rbytes=9 wbytes=8 rios=7 wios=6\n8:16 rbytes=1 wbytes=1 rios=1 wios=1"
    world.tree.put(own, text)
    assert world.look().io == IoCount(4096, 512, 1, 2)  # the instance's says: none
    world.tree.put(above, text)
    assert world.look().io == IoCount(10, 9, 8, 7)


def test_pressure_is_read_until_it_is_calm_and_again_when_the_gate_opens(
    tmp_path: Path,
) -> None:
    own, above = tmp_path / "memory.pressure", tmp_path / "above"
    own.write_text(PSI)
    above.write_text(PSI)
    budget = Budget(0)
    gate = Gate(File(str(above), budget), totals)
    pressure = meter.Pressure(
        str(tmp_path), {"memory": gate}, lambda p: File(p, budget), lambda p: File(p, budget)
    )
    first = pressure.read(10.0, {})
    assert first == {"memory": Stall(1.5, 4000, 0.5, 3000)}
    own.write_text(CALM)  # an average goes down by itself
    calm = pressure.read(10.0 + 2 * SETTLED, first)
    assert calm["memory"].some_avg10 == 0.0
    own.write_text(PSI)
    assert pressure.read(10.0 + 3 * SETTLED, calm) is calm  # nobody stood still, says the gate
    above.write_text(PSI.replace("4000", "4001"))
    assert pressure.read(10.0 + 4 * SETTLED, calm) == first
    own.write_text(CALM)  # and once more when the kernel has written down what it writes late
    assert pressure.read(10.0 + 5 * SETTLED, first) == calm


def test_a_gate_is_read_once_for_many(tmp_path: Path) -> None:
    path = tmp_path / "gate"
    path.write_text("1")
    gate = Gate(File(str(path), Budget(0)), bytes)
    first, second = meter.Behind(gate, 0.0), meter.Behind(gate, 0.0)
    assert not first.holds(5.0) and not second.holds(5.0)
    path.write_text("2")
    later = 5.0 + kept.FRESH / 2
    assert first.holds(later) and second.holds(later)
    later = 5.0 + 2 * kept.FRESH
    assert not first.holds(later) and not second.holds(later)
    assert first.holds(later + 9) and second.holds(later + 9)


def test_a_gate_that_cannot_be_read_is_open(tmp_path: Path) -> None:
    for file, part in ((str(tmp_path / "none"), bytes), (os.devnull, stall)):
        behind = meter.Behind(Gate(File(file, Budget(0)), part), 0.0)
        assert not any(behind.holds(at) for at in (1.0, 2.0, 3.0))
    assert not meter.Behind(None, 0.0).holds(1.0)


def test_oom_kills_are_read_again_when_the_host_has_had_one(make: MakeWorld) -> None:
    vmstat = "nr_free_pages 1\noom_kill {}\nzone_reclaim_failed 0\n"
    path = Path(os.path.dirname(make.proc), "vmstat")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(vmstat.format(7))
    world = make("v2")
    world.look()
    world.look(2 * meter.Kills.LATE)  # once more: the host's is written first
    world.put("memory.events", "oom_kill 3")
    world.put("memory.current", "1")
    assert world.look().slow.oom_kills == 0
    assert "memory.events" not in world.read
    path.write_text(vmstat.format(8))
    world.put("memory.current", "2")
    assert world.look().slow.oom_kills == 3


def test_a_file_over_the_host_s_is_no_gate(tmp_path: Path) -> None:
    from supervisor.cgroup.metering import _find_kill_gate

    (tmp_path / "self").mkdir()
    assert _find_kill_gate(str(tmp_path)) is None
    (tmp_path / "vmstat").write_text("nr_free_pages 1\n")
    assert _find_kill_gate(str(tmp_path)) is None
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 0\n")
    assert _find_kill_gate(str(tmp_path)) is not None
    (tmp_path / "vmstat").unlink()
    (tmp_path / "vmstat").symlink_to("/proc/vmstat")  # of another file system
    assert _find_kill_gate(str(tmp_path)) is None


def test_pressure_without_a_full_line() -> None:
    assert stall(PSI.split("\n")[0].encode()) == Stall(1.5, 4000, None, None)


def test_a_table_finds_its_keys_again_when_the_file_is_laid_out_anew(tmp_path: Path) -> None:
    path = tmp_path / "table"
    table = Table(File(str(path), Budget(0)), b"b", b"a")
    path.write_text("a 1\nb 2\n")
    assert table.read() == [2, 1]
    path.write_text("a 3\nb 4\n")
    assert table.read() == [4, 3]
    path.write_text("x 9\na 5\nb 6\n")
    assert table.read() == [6, 5]
    path.write_text("b 7\nx 0\ny 0\n")
    assert table.read() == [7, None]
    path.write_text("")
    assert table.read() == [None, None]


def test_files_are_kept_open_as_far_as_the_budget_goes(make: MakeWorld) -> None:
    world = make("v1")
    before = len(os.listdir("/proc/self/fd"))
    world.look()
    held = len(os.listdir("/proc/self/fd")) - before
    assert held == len(world.meter._files) > 8
    world.meter.close()
    assert len(os.listdir("/proc/self/fd")) == before
    for file in world.meter._files:
        file._budget = Budget(0)
    assert world.look().slow.anon == 4096
    assert len(os.listdir("/proc/self/fd")) == before


def test_three_quarters_of_the_budget_are_for_what_is_read_often(tmp_path: Path) -> None:
    budget = Budget(4)
    (tmp_path / "f").write_text("1")
    rarely = [File(str(tmp_path / "f"), budget) for _ in range(3)]
    often = [File(str(tmp_path / "f"), budget, often=True) for _ in range(5)]
    for file in (*rarely, *often):
        assert file.read() == b"1"
    assert [file._fd >= 0 for file in rarely] == [True, False, False]
    assert [file._fd >= 0 for file in often] == [True, True, True, False, False]
    for file in (*rarely, *often):
        file.close()
    assert budget.used == 0


def test_half_of_the_descriptors_are_for_starting_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _what: (1000, 4000))
    assert Budget().most == 500
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _what: (unlimited, unlimited))
    assert Budget().most > 100_000


def test_a_file_of_many_pages_is_read_whole(tmp_path: Path) -> None:
    text = b"8:0 rbytes=1 wbytes=1 rios=1 wios=1\n" * 1000
    (tmp_path / "io.stat").write_bytes(text)
    file = File(str(tmp_path / "io.stat"), Budget(1), often=True)
    assert file.read() == file.read() == text
    file.close()


def test_a_run_that_is_gone_is_told_and_let_go_of(make: MakeWorld) -> None:
    world = make("v2")
    before = len(os.listdir("/proc/self/fd"))
    world.job.remove()
    with pytest.raises(KernelError) as caught:
        world.look()
    assert caught.value.errno == errno.ENOENT and caught.value.path
    assert len(os.listdir("/proc/self/fd")) == before
