"""What may change while a job runs: all of it or nothing, with cgroups that are imagined."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve, fields

from supervisor.cgroup.fake import FakeJob, FakeManager
from supervisor.errors import ConfigError, KernelError, LimitError, StateError
from supervisor.front.reader import load_whole
from supervisor.front.verbs import reload as reload_verb
from supervisor.front.verbs import steer
from supervisor.model.event import Timeout
from supervisor.model.job import InlineAction, JobSpec, Restart, Stop
from supervisor.model.limits import IoLimit, Limits
from supervisor.model.record import LimitChange, LimitSet
from supervisor.model.state import State
from supervisor.supervise import limiting, timers
from supervisor.supervise.admission import Admission, Demand, Room
from supervisor.supervise.difference import LIVE, changes, effect_of, flat
from supervisor.supervise.pausing import Freezing

MIB = 1 << 20


class Run:
    """What is asked of a run."""

    def __init__(self, limits: Limits, room: Room | None = None, lacks: str = "") -> None:
        self.manager = FakeManager(lacks=frozenset(lacks.split()))
        self.cgroup: FakeJob = self.manager.create("run")
        self.cgroup.apply(limits)
        self.spec = JobSpec("j", ("true",), limits=limits)
        self.limits = limits
        self.state = State.RUNNING
        self.alive = True
        self.held = False
        self.disk: Any = None
        self.flow: Any = None
        self.limiting = trio.Lock()
        self.limit_history = [LimitChange("", limits.memory, "configuration")]
        self.limits_set: list[LimitSet] = []
        self.admission = Admission(room or Room())
        self.engine = SimpleNamespace(wants=lambda *_: True)
        self.shared: Any = self
        self.told: list[dict[str, Any]] = []
        self.freezing = Freezing(self)  # type: ignore[arg-type]
        self.changed = trio.Event()
        self.events: list[Timeout] = []

    def emit(self, event: str, **told: Any) -> None:
        self.told.append({"event": event, **told})

    def warn(self, text: str) -> None:
        self.emit("warning", text=text)

    def limits_changed(self) -> None:
        self.pulse()

    def pulse(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def set_state(self, state: State) -> None:
        self.state = state

    def is_held(self) -> bool:
        return self.held

    async def handle(self, event: Timeout) -> None:
        self.events.append(event)

    @staticmethod
    def now() -> float:
        return 0.0


BEFORE = Limits(memory=64 * MIB, swap=0, pids=20, cpus=1.0)


async def set_limits(run: Run, *, force: bool = False, **changes: Any) -> None:
    await limiting.set_limits(run, changes, "me", force=force)  # type: ignore[arg-type]


async def test_every_limit_that_is_set_is_told() -> None:
    run = Run(BEFORE)
    await set_limits(run, memory=32 * MIB, pids=None, io=(IoLimit("/", read_bps=5),))
    assert run.limits == evolve(BEFORE, memory=32 * MIB, pids=None, io=(IoLimit("/", read_bps=5),))
    assert run.cgroup.limits == run.limits
    told = {one["limit"]: (one["to"], one["by"]) for one in run.told}
    assert told["memory"] == (32 * MIB, "me") and told["pids"] == (None, "me")
    assert told["io"][0][0]["read_bps"] == 5
    assert [change.value for change in run.limit_history] == [64 * MIB, 32 * MIB]


async def test_what_one_limit_is_refused_for_changes_none() -> None:
    run = Run(BEFORE)
    run.cgroup.charge(40 * MIB, 1)
    with pytest.raises(StateError, match=r"40M are in use.*nothing was changed"):
        await set_limits(run, pids=5, memory=16 * MIB, cpus=0.5)
    assert run.limits == BEFORE == run.cgroup.limits
    assert run.told == [] and len(run.limit_history) == 1


async def test_those_before_a_refusal_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(BEFORE, room=Room(memory=100 * MIB))
    real = FakeJob.change

    def change(self: FakeJob, limit: Any, to: Any, *, force: bool = False) -> Any:
        if limit == "cpus" and to == 0.5:
            raise KernelError("write", "cpu.max", 22)
        return real(self, limit, to, force=force)

    monkeypatch.setattr(FakeJob, "change", change)
    with pytest.raises(StateError, match=r"limits.cpus: .*nothing was changed"):
        await set_limits(run, memory=96 * MIB, swap=MIB, pids=9, cpus=0.5)
    assert run.limits == BEFORE == run.cgroup.limits
    assert run.admission.use().memory == 64 * MIB


async def test_capacity_and_the_host_have_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(BEFORE, room=Room(memory=100 * MIB), lacks="memory_low")
    await run.admission.acquire("j", 0, 0, Demand.of(BEFORE))
    with pytest.raises(StateError, match="capacity lacks"):
        await set_limits(run, memory=200 * MIB)
    with pytest.raises(LimitError, match="memory_low"):
        await set_limits(run, memory_low=MIB)
    with pytest.raises(StateError, match=r"needs limits.memory"):
        await set_limits(run, memory=None)
    await set_limits(run, memory=100 * MIB)
    assert run.admission.use().memory == 100 * MIB
    await set_limits(run, memory=20 * MIB)
    assert run.admission.use().memory == 20 * MIB


async def test_a_cgroup_that_has_vanished_is_told_so() -> None:
    run = Run(BEFORE)
    run.cgroup.vanish()
    with pytest.raises(StateError, match="nothing was changed"):
        await set_limits(run, pids=3)
    assert run.limits == BEFORE
    with pytest.raises(StateError, match="cannot pause it"):
        run.freezing.pause("me")
    assert run.state is State.RUNNING and not run.freezing.frozen


async def test_a_job_gone_meanwhile_is_told_so() -> None:
    run = Run(BEFORE)
    run.alive, run.state = False, State.STOPPING
    with pytest.raises(StateError, match="the job is stopping"):
        await set_limits(run, pids=3)


@pytest.mark.parametrize("name", sorted(limiting.AT_START))
async def test_what_is_given_at_the_start_is_refused(name: str) -> None:
    run = Run(BEFORE)
    with pytest.raises(StateError, match=f"limits.{name} cannot change now"):
        limits = {"cpuset": "0", "cpu_idle": True, "disk_inodes": None}
        await set_limits(run, **{name: limits.get(name, 50)})


def test_every_limit_is_live_or_has_its_reason() -> None:
    assert set(limiting.NAMES) == {*limiting.LIVE, *limiting.AT_START}


async def test_a_job_without_a_limit_is_held_at_its_first() -> None:
    run = Run(Limits())
    await set_limits(run, memory=MIB)
    assert run.held and run.cgroup.holds


# Frozen by a policy, paused by a person.


async def test_neither_undoes_what_the_other_wants() -> None:
    run = Run(BEFORE)
    run.freezing.freeze()
    run.freezing.pause("me")
    run.freezing.thaw()
    assert run.cgroup.frozen and run.state is State.FROZEN
    with pytest.raises(StateError, match="paused already, by me"):
        run.freezing.pause("you")
    run.freezing.freeze()
    run.freezing.resume()
    assert run.cgroup.frozen
    with pytest.raises(StateError, match="a policy has frozen it"):
        run.freezing.resume()
    run.freezing.thaw()
    assert not run.cgroup.frozen and run.state is State.RUNNING
    run.held = True
    run.freezing.pause("me")
    run.freezing.resume()
    assert run.state is State.HELD


async def test_time_stands_still_for_who_is_paused(autojump_clock: trio.testing.MockClock) -> None:
    run = Run(BEFORE)
    run.spec = evolve(run.spec, timeout=10.0)
    began = trio.current_time()
    run.freezing.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers._wall_time, run)
        await trio.sleep(4)
        run.freezing.pause("me")
        await trio.sleep(1000)
        assert run.events == [] and run.freezing.elapsed() == 4
        run.freezing.resume()
        await trio.sleep(3)
        run.spec = evolve(run.spec, timeout=8.0)  # by a reload
        run.pulse()
    assert trio.current_time() - began == pytest.approx(1008)
    (event,) = run.events
    assert (event.kind, event.limit) == ("wall", 8.0)


async def test_a_timeout_that_has_passed_already_is_over_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    run = Run(BEFORE)
    run.freezing.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers._wall_time, run)
        await trio.sleep(100)
        assert run.events == []
        run.spec = evolve(run.spec, timeout=8.0)
        run.pulse()
    assert len(run.events) == 1


async def test_cpu_time_is_not_looked_at_while_nothing_runs(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(BEFORE)
    run.spec = evolve(run.spec, cpu_time=1.0)
    run.freezing.begin()
    looks = 0
    real = FakeJob.usage

    def usage(self: FakeJob) -> Any:
        nonlocal looks
        looks += 1
        return real(self)

    monkeypatch.setattr(FakeJob, "usage", usage)
    run.freezing.pause("me")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers._cpu_time, run)
        await trio.sleep(1000)
        assert looks == 1
        run.cgroup.used = evolve(run.cgroup.used, cpu=2.0)
        run.freezing.resume()
    assert [event.kind for event in run.events] == ["cpu"]


# What a reload changes, and when.


OLD = JobSpec("j", ("true",), environment={"A": "1"}, limits=BEFORE)


def test_each_setting_that_differs_is_named() -> None:
    new = evolve(
        OLD,
        environment={"B": "2"},
        limits=evolve(BEFORE, memory=None, cpuset="0"),
        stop=Stop("INT", 3.0),
        user_group="nogroup",
        hooks={"on_exit": InlineAction("ignore")},
    )
    found = {
        change.key: (change.before, change.after, change.effect) for change in changes(OLD, new)
    }
    assert found == {
        "environment.A": ("1", None, "next run"),
        "environment.B": (None, "2", "next run"),
        "limits.memory": (64 * MIB, None, "now"),
        "limits.cpuset": (None, "0", "next run"),
        "stop.signal": ("TERM", "INT", "now"),
        "stop.grace": (10.0, 3.0, "now"),
        "group": (None, "nogroup", "next run"),
        "on_exit": (None, {"action": "ignore"}, "next run"),
    }
    assert changes(OLD, OLD) == ()


def test_who_always_runs_is_restarted_for_it() -> None:
    service = evolve(OLD, restart=Restart("always"))
    (change,) = changes(service, evolve(service, hostname="x"))
    assert change.effect == "restart"
    (change,) = changes(service, evolve(service, hostname="x"), restart=False)
    assert change.effect == "next run"
    (change,) = changes(OLD, evolve(OLD, hostname="x"), restart=True)
    assert change.effect == "restart"


def test_every_setting_has_its_effect() -> None:
    assert set(LIVE) <= {each.name for each in fields(JobSpec)}
    keys = flat(OLD)
    assert {effect_of(key, again=False) for key in keys} == {"now", "next run"}
    assert effect_of("limits.memory", again=True) == "now"
    assert effect_of("limits.open_files", again=True) == "restart"


# The file, and the words of the command line.


def test_a_file_that_is_open_for_writing_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[jobs.a]\ncommand = "true"\n')
    assert [job.name for job in load_whole(path).jobs] == ["a"]
    with path.open("a"), pytest.raises(ConfigError, match="somebody is writing it"):
        load_whole(path)
    assert [job.name for job in load_whole(path).jobs] == ["a"]
    with path.open() as file:  # readers are no matter, nor is any lease left
        load_whole(path)
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK
    with pytest.raises(ConfigError, match="cannot read"):
        load_whole(tmp_path / "none.toml")
    os.mkfifo(tmp_path / "fifo")  # nobody would ever write to it
    with pytest.raises(ConfigError, match="is no file"):
        load_whole(tmp_path / "fifo")


def test_a_file_that_changes_while_it_is_read_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supervisor.front import config

    path = tmp_path / "c.toml"
    path.write_text('[jobs.a]\ncommand = "true"\n')
    real = config.load

    def load(path: Path) -> Any:
        found = real(path)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(config, "load", load)
    with pytest.raises(ConfigError, match="has changed while it was read"):
        load_whole(path)


def test_limits_are_read_as_words() -> None:
    words = ["memory=2G", "io=/:read_bps=1", "io=/srv:write_bps=2", "cpu-weight=5", "swap=max"]
    io = ["/:read_bps=1", "/srv:write_bps=2"]
    assert steer.parsed(words) == {"memory": "2G", "io": io, "cpu_weight": "5", "swap": "max"}
    assert steer.parsed(["io=max"]) == {"io": []}
    for words in (["memory"], ["=3"], ["pids=1", "pids=2"]):
        with pytest.raises(ConfigError):
            steer.parsed(words)


def test_a_difference_is_shown_line_by_line() -> None:
    change = {
        "key": "limits.memory",
        "before": 1,
        "after": None,
        "effect": "next run",
        "why": "busy",
    }
    found = {
        "jobs": [
            {"job": "a\x1b", "what": "changed", "changes": [change]},
            {"job": "b", "what": "removed", "changes": []},
        ],
        "settings": [], "policies": True, "refused": [{**change, "key": "supervisor.name"}],
    }  # fmt: skip
    assert list(reload_verb.lines(found)) == [
        "changed a\\x1b",
        "  limits.memory: 1B -> max   (at its next run: busy)",
        "removed b",
        "policies are others now",
        "supervisor.name: 1 -> none   (not changed: takes another start of the instance)",
    ]
    nothing = {"jobs": [], "settings": [], "policies": False, "refused": []}
    assert list(reload_verb.lines(nothing)) == ["nothing has changed"]
