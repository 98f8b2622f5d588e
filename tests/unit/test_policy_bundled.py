"""The bundled policies fire exactly when docs/policies.md says."""

from __future__ import annotations

import importlib.util

import attrs
import pytest
from attrs import evolve

from supervisor.model import (
    Freeze,
    KillJob,
    Limits,
    Notify,
    PidsLimit,
    Pressure,
    RaiseLimit,
    Retry,
    State,
    Thaw,
    Tick,
)
from supervisor.policy.registry import bundled
from tests.support.command import ROOT
from tests.support.policies import AT_LIMIT, EXITED, MIB, REFUSED, SPEC, engine, view

GIB = 1024 * MIB


def with_memory(memory: int | None, **changes: object) -> object:
    return view(limits=Limits(memory=memory), **changes)


@pytest.mark.parametrize(
    ("table", "memory", "to"),
    [
        ({}, 64 * MIB, 128 * MIB),
        ({}, 5 * GIB, 8 * GIB),
        ({}, 8 * GIB, None),
        ({}, 9 * GIB, None),
        ({}, None, None),
        ({"max": "100M"}, 64 * MIB, 100 * MIB),
        ({"factor": 1.5}, 64 * MIB, 96 * MIB),
        ({"live": False}, 64 * MIB, None),
    ],
)
async def test_grow_memory_raises_live_up_to_max(
    table: dict[str, object], memory: int | None, to: int | None
) -> None:
    asks = engine("grow-memory", **{"grow-memory": table})
    decision = await asks.decide(AT_LIMIT, with_memory(memory))
    assert decision.action == (to and RaiseLimit("memory", to))
    assert decision.answers[0].error == ""


@pytest.mark.parametrize(
    ("reason", "memory", "to"),
    [
        ("oom", 64 * MIB, 128 * MIB),
        ("oom", 8 * GIB, None),
        ("oom", None, None),
        ("oom_host", 64 * MIB, None),
        ("failed", 64 * MIB, None),
        ("succeeded", 64 * MIB, None),
        ("signal", 64 * MIB, None),
    ],
)
async def test_grow_memory_retries_only_a_proven_oom(
    reason: str, memory: int | None, to: int | None
) -> None:
    asks = engine("grow-memory", **{"grow-memory": {"live": False}})
    decision = await asks.decide(EXITED, with_memory(memory, reason=reason))
    assert decision.action == (to and Retry({"memory": to}))
    assert decision.answers[0].error == ""


async def test_grow_memory_goes_on_from_the_limit_in_force_until_max() -> None:
    asks = engine("grow-memory", **{"grow-memory": {"max": "500M"}})
    steps, memory = [], 64 * MIB
    while (decision := await asks.decide(AT_LIMIT, with_memory(memory))).action is not None:
        memory = decision.action.to
        steps.append(memory // MIB)
    assert steps == [128, 256, 500]


async def test_kill_fork_bomb_counts_the_whole_run() -> None:
    asks = engine("kill-fork-bomb", **{"kill-fork-bomb": {"refusals": 5}})
    assert (await asks.decide(evolve(REFUSED, refused=4), view())).action is None
    decision = await asks.decide(REFUSED, view())
    assert decision.action == KillJob("5 forks were refused at 32 processes", now=True)
    first = engine("kill-fork-bomb")
    assert (await first.decide(evolve(REFUSED, refused=1), view())).action is not None


async def test_kill_fork_bomb_counts_only_the_last_stretch_of_each_run() -> None:
    asks = engine("kill-fork-bomb", **{"kill-fork-bomb": {"refusals": 10, "within": "60s"}})

    async def killed(at: float, refused: int, run: str = "r1") -> bool:
        event = PidsLimit(at=at, refused=refused, limit=32)
        return (await asks.decide(event, view(run=run))).action is not None

    assert not await killed(0, 9)
    assert not await killed(100, 15)  # 6 of them since
    assert not await killed(170, 24)  # 9
    assert not await killed(171, 9, run="r2")
    assert await killed(180, 25)  # 10 within 60 s
    assert await killed(181, 100, run="r2")


async def test_kill_fork_bomb_does_not_remember_every_run_there_ever_was() -> None:
    asks = engine("kill-fork-bomb", **{"kill-fork-bomb": {"refusals": 2, "within": "60s"}})
    for run in range(1100):
        await asks.decide(PidsLimit(at=1.0, refused=1, limit=32), view(run=str(run)))
    # The first run is forgotten: its one old refusal counts again; that of the last does not.
    old = await asks.decide(PidsLimit(at=100.0, refused=2, limit=32), view(run="0"))
    new = await asks.decide(PidsLimit(at=100.0, refused=2, limit=32), view(run="1099"))
    assert (old.action is None, new.action is None) == (False, True)


def test_every_bundled_policy_and_each_of_its_arguments_is_documented() -> None:
    text = (ROOT / "docs/policies.md").read_text().split("## Bundled policies")[1]
    for name, path in bundled().items():
        section = text.split(f"### {name}\n")[1].split("\n### ")[0]
        spec = importlib.util.spec_from_file_location("documented", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for field in attrs.fields(module.Arguments):
            assert f"| `{field.name}` |" in section


def pressed(at: float, resource: str = "memory") -> Pressure:
    return Pressure(at, resource, 0.5, 1.0)  # type: ignore[arg-type]


def ranked(name: str, priority: int, **changes: object) -> object:
    spec = evolve(SPEC, name=name, priority=priority)
    return view(spec, run=f"{name}-1", **changes)


SHED = {"available": 100, "pause": "25s"}


async def test_shed_by_pressure_freezes_the_lowest_that_suffers_and_thaws_it() -> None:
    asks = engine("shed-by-pressure", **{"shed-by-pressure": {**SHED, "highest": 5}})
    low, high = ranked("low", 1), ranked("high", 5)
    assert (await asks.decide(pressed(1.0, "io"), low)).action is None
    first = await asks.decide(pressed(10.0), low)
    assert first.action == Freeze() and first.by == "shed-by-pressure"
    assert (await asks.decide(pressed(12.0), high)).action is None  # the host may recover
    assert (await asks.decide(pressed(21.0), high)).action == Freeze()
    frozen = evolve(low, state=State.FROZEN)
    assert (await asks.decide(Tick(34.0), frozen)).action is None
    assert (await asks.decide(Tick(35.5), frozen)).action == Thaw()
    assert (await asks.decide(Tick(60.0), frozen)).action is None  # not its own freeze any more


async def test_shed_by_pressure_spares_who_matters_more() -> None:
    asks = engine("shed-by-pressure", **{"shed-by-pressure": {**SHED, "highest": 5}})
    unwilling = ranked("frozen", 1, state=State.HELD)
    assert (await asks.decide(pressed(1.0), unwilling)).action is None
    assert (await asks.decide(pressed(2.0), ranked("above", 6))).action is None
    assert (await asks.decide(pressed(2.0), ranked("low", 1))).action == Freeze()
    other = engine("shed-by-pressure", **{"shed-by-pressure": {**SHED, "highest": 5}})
    assert (await other.decide(pressed(1.0), ranked("first", 9))).action is None
    assert (await other.decide(pressed(2.0), ranked("second", 3))).action == Freeze()


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ({"action": "kill", "available": 100}, KillJob),
        ({"action": "notify", "available": 100}, Notify),
        ({"available": 0}, type(None)),
    ],
)
async def test_shed_by_pressure_does_what_it_is_told_when_the_host_is_short(
    table: dict[str, object], kind: type
) -> None:
    asks = engine("shed-by-pressure", **{"shed-by-pressure": table})
    decision = await asks.decide(pressed(1.0), ranked("job", 0))
    assert type(decision.action) is kind
    assert all(answer.error == "" for answer in decision.answers)
