"""The files of `proc = "limits"`: what is in them, and how they get into a job's root."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cgroup.api import Share, Traffic
from supervisor.container import mirror, mirror_text, rootfs
from supervisor.container.host import Facts
from supervisor.container.layers import Layers
from supervisor.container.mirror_text import Book, Machine
from supervisor.container.mounts import Attach, OpenTree
from supervisor.model import JobSpec, UserNamespace
from supervisor.model.limits import Limits

MIB = 1 << 20
HOST = Machine(
    meminfo="MemTotal:       1048576 kB\nMemFree:         500000 kB\nSwapTotal:       2048 kB\n",
    swaps="Filename\n/dev/sda2 the host's\n",
    cpuinfo="processor\t: 0\nmodel\t: a\n\nprocessor\t: 1\nmodel\t: b\n\n",
    blocks=mirror_text.blocks("processor\t: 0\nmodel\t: a\n\nprocessor\t: 1\nmodel\t: b\n\n"),
    devices=mirror_text.devices("   8       0 sda 1 2 3\n 253       1 dm-1 0 0 0\n"),
)
SHARE = Share(
    memory_limit=64 * MIB,
    swap_limit=MIB,
    memory=10 * MIB,
    swap=MIB // 2,
    pages={"file": 4 * MIB, "active_file": 2 * MIB, "inactive_file": MIB, "anon": 5 * MIB,
           "pgfault": 7},
    cpus=0.5,
    cpu_user=2.0,
    cpu_system=1.0,
    tasks=3,
)  # fmt: skip


def shown(share: Share, cpus: tuple[int, ...] = (0,), at: float = 10.0) -> dict[str, str]:
    """The files of a job that began at 0, read once."""
    book = Book(0.0)
    book.update(at, share, cpus)
    return mirror_text.texts(share, book, HOST, cpus, booted=1000)


def table(text: str) -> dict[str, int]:
    words = (line.replace(":", " ").split() for line in text.splitlines())
    return {one[0]: int(one[1]) for one in words}


def test_every_file_is_written():
    assert set(shown(SHARE)) == set(mirror.TARGETS)


def test_memory_is_what_the_limit_leaves():
    found = table(shown(SHARE)["meminfo"])
    assert found["MemTotal"] == 64 * 1024 and found["MemFree"] == 54 * 1024
    assert found["MemAvailable"] == 57 * 1024, "page cache can be taken back"
    assert (found["Cached"], found["AnonPages"]) == (4 * 1024, 5 * 1024)
    assert (found["SwapTotal"], found["SwapFree"]) == (1024, 512)
    assert "Slab" not in found, "nobody has counted them"


def test_more_than_the_limit_is_never_in_use():
    found = table(shown(evolve(SHARE, memory=65 * MIB, swap=2 * MIB))["meminfo"])
    assert (found["MemFree"], found["SwapFree"]) == (0, 0)


@pytest.mark.parametrize("limit", [None, 2 << 30])
def test_without_a_limit_that_binds_memory_is_the_hosts(limit):
    files = shown(evolve(SHARE, memory_limit=limit))
    assert (files["meminfo"], files["swaps"]) == (HOST.meminfo, HOST.swaps)


def test_swap_is_one_area_or_none():
    assert shown(SHARE)["swaps"].splitlines()[1].split() == ["none", "virtual", "1024", "512", "0"]
    assert len(shown(evolve(SHARE, swap_limit=0))["swaps"].splitlines()) == 1


def test_idle_is_what_the_quota_leaves():
    whole, one, *rest = shown(SHARE)["stat"].splitlines()
    assert whole.split()[1:5] == one.split()[1:5] == ["200", "0", "100", "200"]
    assert "btime 1000" in rest


def test_the_kernels_times_are_divided_among_the_cpus_that_are_shown():
    whole, *each = shown(evolve(SHARE, cpus=2.0), (2, 5))["stat"].splitlines()
    assert whole.split()[1:5] == ["200", "0", "100", "1700"]
    assert [line.split()[:5] for line in each[:2]] == [
        ["cpu2", "100", "0", "50", "850"],
        ["cpu5", "100", "0", "50", "850"],
    ]
    assert not each[2].startswith("cpu")


readings = st.lists(
    st.tuples(
        st.floats(0, 100),
        st.floats(0, 300),
        st.floats(0, 300),
        st.floats(0.01, 8),
        st.integers(1, 4),
    ),
    max_size=20,
)


@given(readings)
def test_no_time_ever_goes_back_whatever_the_limit_becomes(steps):
    book, now, user, system = Book(0.0), 0.0, 0.0, 0.0
    last: dict[str, list[float]] = {}
    for passed, more_user, more_system, cpus, many in steps:
        now, user, system = now + passed, user + more_user, system + more_system
        share = Share(cpus=cpus, cpu_user=user, cpu_system=system)
        book.update(now, share, range(many))
        found = {"cpu": list(book.total)} | {str(n): list(v) for n, v in book.each.items()}
        for name, values in last.items():
            assert all(new >= old for new, old in zip(found[name], values, strict=True))
        assert math.isclose(sum(map(sum, book.each.values())), sum(book.total), abs_tol=1e-3)
        assert all(value >= 0 for value in book.load)
        last = found


def test_load_is_the_cpu_time_that_was_wanted():
    """At half a CPU a loop that never sleeps uses 0.5, and is held back for the other 0.5."""
    book = Book(0.0)
    for second in range(1, 1000):
        share = Share(cpus=0.5, cpu_user=second / 2, throttled=second / 2, tasks=1)
        book.update(float(second), share, (0,))
    assert book.load[0] == pytest.approx(1, abs=0.01) and 0.5 < book.load[2] < 0.7
    assert mirror_text.loadavg(book, share).split()[3:] == ["1/1", "0"]


def test_load_is_bounded_by_the_tasks_there_are():
    book = Book(0.0)
    book.update(1e9, Share(cpu_user=1.0, throttled=1e12, tasks=2), (0, 1))
    assert book.load == pytest.approx([2, 2, 2])


def test_no_more_cpus_are_described_than_are_shown():
    assert shown(SHARE)["cpuinfo"] == "processor\t: 0\nmodel\t: a\n\n"
    assert shown(SHARE, (1,))["cpuinfo"] == "processor\t: 1\nmodel\t: b\n\n"
    whole = evolve(HOST, cpuinfo="vendor_id: IBM/S390\n", blocks={})
    book = Book(0.0)
    assert mirror_text.texts(SHARE, book, whole, (0,), 0)["cpuinfo"] == whole.cpuinfo


@pytest.mark.parametrize(
    ("numbers", "text"), [((0,), "0"), ((0, 1, 2), "0-2"), ((0, 2, 3, 7), "0,2-3,7")]
)
def test_cpus_are_listed_as_the_kernel_does(numbers, text):
    assert mirror_text.ranges(numbers) == text
    assert mirror.numbers(text) == set(numbers)


def test_devices_are_those_it_has_used():
    share = evolve(SHARE, traffic={"8:0": Traffic(3, 4096, 5, 1024), "7:7": Traffic(1, 1, 1, 1)})
    (line,) = shown(share)["diskstats"].splitlines()
    assert line.split()[:10] == ["8", "0", "sda", "3", "0", "8", "0", "5", "0", "2"]
    found = table(shown(share)["vmstat"])
    assert (found["pgpgin"], found["pgpgout"], found["pgfault"]) == (4, 1, 7)


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host of which we may use four CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 4, 6})
    yield


@pytest.mark.parametrize(
    ("quota", "cpuset", "expected"),
    [
        (None, None, (1, 3, 4, 6)),
        (0.5, None, (1,)),
        (1.0, None, (1,)),
        (1.01, None, (1, 3)),
        (64, None, (1, 3, 4, 6)),
        (None, "3-4", (3, 4)),
        (1.5, "0,6-7", (0, 6)),
    ],
)
def test_cpus_are_the_quota_rounded_up_and_no_more_than_there_are(four, quota, cpuset, expected):
    assert mirror.cpus(quota, cpuset) == expected


def spec(**settings: Any) -> JobSpec:
    return JobSpec(name="job", command=("true",), **settings)


def test_programs_that_ask_for_the_affinity_are_told_by_the_environment(four):
    assert mirror.environment(spec(limits=Limits(cpus=1.5))) == {}
    assert mirror.environment(spec(proc="limits")) == {}
    assert mirror.environment(spec(proc="limits", limits=Limits(cpus=1.5))) == {mirror.THREADS: "2"}


def test_clocks_are_the_jobs_own_first():
    assert mirror.clocks(spec(), time_namespaces=True) is None
    assert mirror.clocks(spec(proc="limits"), time_namespaces=False) is None
    shifted = spec(proc="limits", time_offset=-1.5)
    assert mirror.clocks(shifted, time_namespaces=True) == (-1500000000, -1500000000)
    found = mirror.clocks(spec(proc="limits"), time_namespaces=True)
    assert found is not None and found[0] == 0 and found[1] < 0


@pytest.mark.parametrize(
    ("privileged", "space", "by"),
    [
        (True, UserNamespace(), ""),
        (True, UserNamespace("map", 1 << 20, 65536), "plain"),
        (False, UserNamespace("self"), ""),
    ],
)
def test_each_file_is_laid_read_only_over_the_kernels_own(privileged, space, by):
    layers = Layers(None)
    layers.mirror = "/run/x/proc/RUN"
    facts = Facts(work="/run/x/work", privileged=privileged)
    one = spec(proc="limits", user_namespace=space)
    operations = rootfs.plan(one, facts, layers, 0)
    targets = {o.tree: o.target for o in operations if isinstance(o, Attach)}
    laid = {
        o.source: (targets[o.tree], o.by, bool(o.attributes & 1))
        for o in operations
        if isinstance(o, OpenTree) and o.source.startswith(layers.mirror)
    }
    assert laid["/run/x/proc/RUN/meminfo"] == ("/proc/meminfo", by, True)
    assert {target for target, *_ in laid.values()} <= set(mirror.TARGETS.values())
    names = [type(o).__name__ for o in operations]
    last = max(n for n, o in enumerate(operations) if isinstance(o, Attach))
    assert names.index("DropOldRoot") < last, "over what has been mounted, not under it"


def test_nothing_is_laid_over_anything_else_by_default():
    operations = rootfs.plan(spec(), Facts(work="/run/x/work", privileged=True), Layers(None), 0)
    assert not any(isinstance(o, Attach) and o.target == "/proc/meminfo" for o in operations)
