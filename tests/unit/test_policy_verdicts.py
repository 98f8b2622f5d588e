"""What may be performed: it is an action, it fits the event, and the kernel would take it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
from attrs import evolve

from supervisor.front.actions import hook
from supervisor.front.kinds import Context
from supervisor.model import (
    HOOKS,
    Action,
    DiskLimit,
    Freeze,
    Ignore,
    InlineAction,
    KillJob,
    Limits,
    Mount,
    Notify,
    RaiseLimit,
    Restart,
    Retry,
    SignalJob,
    State,
    StopAll,
    Thaw,
)
from supervisor.model.action import LimitName
from supervisor.policy.inline import action_of
from supervisor.policy.verdicts import RANGES, Nonsense, Refused, checked, checked_spec
from tests.support.policies import MIB, SPEC, view

GIB = 1024 * MIB


class Sly(int):
    def __lt__(self, other: object) -> bool:
        raise SystemExit


class SlyRaise(RaiseLimit):
    pass


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("kill", "returned str, which is no action"),
        (True, "returned bool"),
        (object(), "returned object"),
        (RaiseLimit, "returned type"),
        ([Ignore()], "returned list"),
        (SlyRaise("memory", GIB), "returned SlyRaise"),
        (RaiseLimit("memory", "2G"), 'a RaiseLimit whose to is "2G"'),
        (RaiseLimit("memory", math.nan), "whose to is nan"),
        (RaiseLimit("memory", math.inf), "whose to is inf"),
        (RaiseLimit("memory", True), "whose to is bool"),
        (RaiseLimit("memory", Sly(GIB)), "whose to is Sly"),
        (RaiseLimit("ram", GIB), 'whose limit is "ram"'),
        (RaiseLimit(None, GIB), "whose limit is NoneType"),
        (KillJob(3), "whose why is int"),
        (KillJob("x", now=1), "whose now is int"),
        (Retry(None), "whose limits is NoneType"),
        (Retry({1: 2}), "whose a key of limits is int"),
        (Retry({"memory": "2G"}), "whose limits['memory'] is \"2G\""),
        (Retry({"memory": math.nan}), "is nan"),
        (Retry(after="1d"), 'whose after is "1d"'),
        (Notify(None), "whose message is NoneType"),
        (SignalJob(15), "whose signal is int"),
    ],
)
def test_nonsense_is_told_by_its_type(answer: object, told: str) -> None:
    with pytest.raises(Nonsense) as caught:
        checked(answer, "on_memory_limit", view())
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (RaiseLimit("memory", 32 * MIB), "memory would go from 67108864 to 33554432, which is no"),
        (RaiseLimit("memory", 64 * MIB), "which is no raise"),
        (RaiseLimit("memory", 64 * MIB + 4095), "which is no raise"),
        (RaiseLimit("memory", -1), "memory would be -1, outside"),
        (RaiseLimit("memory", 1e300), "outside"),
        (RaiseLimit("pids", 0), "outside 1 to 4194304"),
        (RaiseLimit("pids", 32.9), "pids would go from 32 to 32, which is no raise"),
        (RaiseLimit("cpus", 2), "cpus cannot be raised: the job has no such limit"),
        (
            Retry({"ram": 5}),
            '"ram" is no limit that can change; allowed: memory, memory_high, swap',
        ),
        (Retry({"cpuset": 5}), '"cpuset" is no limit'),
        (Retry({"memory": 0}), "outside"),
        (Retry(after=-1), "after would be -1 seconds"),
        (Retry(after=1e12), "after would be"),
        (SignalJob("SIGHUP"), '"SIGHUP" is no signal'),
        (SignalJob("\n"), "is no signal"),
        (Notify("  "), "the message is empty"),
        (Thaw(), "the job is running, not frozen"),
    ],
)
def test_what_makes_no_sense_for_this_job_is_refused(answer: Action, told: str) -> None:
    with pytest.raises(Refused) as caught:
        checked(answer, "on_memory_limit", view())
    assert told in str(caught.value)


def test_when_the_run_has_ended_only_the_next_one_can_be_decided() -> None:
    late = (Retry(), Notify("x"), StopAll(), Ignore())
    for answer in late:
        assert checked(answer, "on_exit", view()) == answer
    for answer in (RaiseLimit("memory", GIB), KillJob(), SignalJob("HUP"), Freeze(), Thaw()):
        with pytest.raises(Refused, match="too late"):
            checked(answer, "on_exit", view())
    assert {type(each) for each in late} < set(get_args(Action))


def test_freezing_twice_is_refused_and_only_the_frozen_thaw() -> None:
    frozen, held = view(state=State.FROZEN), view(state=State.HELD)
    assert checked(Thaw(), "on_tick", frozen) == Thaw()
    assert checked(Freeze(), "on_tick", held) == Freeze()
    for answer, job in ((Freeze(), frozen), (Thaw(), held)):
        with pytest.raises(Refused):
            checked(answer, "on_tick", job)


def test_numbers_become_what_the_kernel_takes_and_dicts_are_copied() -> None:
    raised = checked(RaiseLimit("memory", 100.5 * MIB + 0.7), "on_memory_limit", view())
    assert (raised.to, type(raised.to)) == (int(100.5 * MIB), int)
    job = view(limits=Limits(cpus=0.5))
    assert checked(RaiseLimit("cpus", 1.5), "on_tick", job).to == 1.5
    theirs = {"memory": 2.0 * GIB}
    ours = checked(Retry(theirs), "on_exit", view())
    theirs["memory"] = -1
    assert ours == Retry({"memory": 2 * GIB})
    assert type(ours.limits["memory"]) is int


def test_every_limit_that_can_change_has_a_range() -> None:
    assert set(RANGES) == set(get_args(LimitName))


def test_a_prepared_job_is_checked_to_its_last_field() -> None:
    assert checked_spec(None, SPEC) is None
    good = evolve(SPEC, priority=3, environment={"A": "b"}, mounts=(Mount("/a", "/b"),))
    assert checked_spec(good, SPEC) is good
    wrong = {
        "returned str": "spec",
        "of another name": evolve(SPEC, name="other"),
        "without a command": evolve(SPEC, command=()),
        'whose command is "sort"': evolve(SPEC, command="sort"),
        "whose command[0] is int": evolve(SPEC, command=(3,)),
        "whose environment['A'] is int": evolve(SPEC, environment={"A": 1}),
        'whose limits.memory is "1G"': evolve(SPEC, limits=Limits(memory="1G")),
        "whose limits.memory would be -1": evolve(SPEC, limits=Limits(memory=-1)),
        "whose limits is NoneType": evolve(SPEC, limits=None),
        "whose mounts[0].read_only is NoneType": evolve(SPEC, mounts=(Mount("/a", "/b", None),)),
        'whose restart.when is "sometimes"': evolve(SPEC, restart=Restart("sometimes")),
        "whose timeout is nan": evolve(SPEC, timeout=math.nan),
        "whose hooks['on_exit'] is": evolve(SPEC, hooks={"on_exit": "ignore"}),
    }
    for told, spec in wrong.items():
        with pytest.raises(Nonsense) as caught:
            checked_spec(spec, SPEC)
        assert told in str(caught.value)


@pytest.mark.parametrize(
    ("inline", "action"),
    [
        (InlineAction("raise", {"limit": "memory", "to": GIB}), RaiseLimit("memory", GIB)),
        (InlineAction("raise", {"limit": "memory", "to": 64 * MIB}), None),
        (InlineAction("raise", {"limit": "memory", "to": 1}), None),
        (InlineAction("raise", {"limit": "swap", "to": GIB}), None),
        (InlineAction("retry"), Retry()),
        (InlineAction("retry", {"limits": {"memory": GIB}, "after": 5.0}),
         Retry({"memory": GIB}, 5.0)),
        (InlineAction("kill", {"why": "w", "now": True}), KillJob("w", now=True)),
        (InlineAction("signal", {"signal": "HUP"}), SignalJob("HUP")),
        (InlineAction("freeze"), Freeze()),
        (InlineAction("notify", {"message": "m"}), Notify("m")),
        (InlineAction("stop-all", {"why": "w"}), StopAll("w")),
        (InlineAction("ignore"), Ignore()),
    ],
)  # fmt: skip
def test_an_action_in_the_configuration_is_that_action(
    inline: InlineAction, action: Action | None
) -> None:
    assert action_of(inline, view()) == action


def test_a_retry_in_the_configuration_comes_to_an_end() -> None:
    """A job's own hook has no memory: without an end of its own it would be run for ever."""
    more = InlineAction("retry", {"limits": {"memory": GIB}})
    assert action_of(more, view(limits=Limits(memory=GIB), attempt=2, reason="oom")) is None
    assert action_of(more, view(attempt=5, reason="oom")) == Retry({"memory": GIB})
    assert action_of(more, view(reason="succeeded")) is None
    again = InlineAction("retry", {"after": 5.0})
    assert action_of(again, view(reason="failed")) == Retry({}, 5.0)
    assert action_of(again, view(attempt=2, reason="failed")) is None
    assert action_of(again, view(spec=evolve(SPEC, expect="failed"), reason="failed")) is None


def test_every_action_the_configuration_lets_through_is_known() -> None:
    arguments = {"raise": {"to": "1G"}, "signal": {"signal": "HUP"}, "notify": {"message": "x"}}
    for name in HOOKS:
        for action in (
            "raise",
            "retry",
            "kill",
            "signal",
            "freeze",
            "notify",
            "stop-all",
            "ignore",
        ):
            if name == "on_exit" and action in ("raise", "kill", "signal", "freeze"):
                continue
            table = {"action": action, **arguments.get(action, {})}
            if name == "on_pids_limit" and action == "raise":
                table["to"] = 99
            job = view()
            if name == "on_disk_limit":
                job = view(limits=Limits(disk=64 * MIB))
            inline = hook(name)(table, Context(Path("/")))
            assert checked(action_of(inline, job), name, job) is not None


def test_while_a_disk_is_only_nearly_full_an_action_of_the_job_is_a_raise_or_nothing() -> None:
    job = view(limits=Limits(disk=64 * MIB))
    for full in (False, True):
        event = DiskLimit(1.0, full, "bytes", 60 * MIB, 64 * MIB, 1, 9)
        kill = InlineAction("kill", {"why": "full"})
        assert action_of(kill, job, event) == (KillJob("full") if full else None)
        memory = InlineAction("raise", {"limit": "memory", "to": 4 * GIB})
        assert (action_of(memory, view(limits=Limits(memory=MIB)), event) is None) is not full
        disk = InlineAction("raise", {"limit": "disk", "to": GIB})
        assert action_of(disk, job, event) == RaiseLimit("disk", GIB)
    assert checked(RaiseLimit("disk", 1.5 * GIB), "on_disk_limit", job).to == int(1.5 * GIB)
    for to in (MIB, 64 * MIB):
        with pytest.raises(Refused, match="no raise"):
            checked(RaiseLimit("disk", to), "on_disk_limit", job)
    with pytest.raises(Refused, match="outside 1048576"):
        checked(Retry({"disk": 4096}), "on_exit", job)
