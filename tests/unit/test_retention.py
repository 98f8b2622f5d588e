"""What is left of runs: which of it goes when, and what never does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from supervisor.record.runs import Bounds, StateDir
from supervisor.supervise import retention
from supervisor.supervise.retention import Left, Rule, Sweeper, listed, remove

DAY = 86400.0
NOW = 1_800_000_000.0


class Log:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.told.append({"event": event, **fields})

    def observe(self, *_: object) -> None:
        raise AssertionError


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path)
    state.make()
    return state


def ended(state: StateDir, run: str, at: float, *, kept: str = "") -> None:
    """What a run leaves that ended at this time."""
    directory = state.runs / run
    directory.mkdir()
    state.exit(run).write_text("{}")
    state.spec(run).write_text("{}")
    job = run.partition("-")[2]
    for stream in ("out", "err"):
        state.log(job, run, stream).write_text("x")
    if kept:
        (directory / kept / "deep").mkdir(parents=True)
    os.utime(state.exit(run), (at, at))
    os.utime(directory, (at - 1, at - 1))


def left(state: StateDir) -> list[str]:
    return sorted(one.name for one in state.runs.iterdir())


ONES = [Left("a", 1.0, False), Left("b", 2.0, True), Left("c", 3.0, False), Left("d", 4.0, False)]


@pytest.mark.parametrize(
    ("bounds", "layers", "surplus"),
    [
        (Bounds(), False, []),
        (Bounds(), True, []),
        (Bounds(runs=2), False, ["a"]),
        (Bounds(runs=2), True, ["a", "b"]),
        (Bounds(runs=1), False, ["a", "c"]),
        (Bounds(runs=9), True, []),
        (Bounds(keep=7.5), False, ["a"]),
        (Bounds(keep=7.5), True, ["a", "b"]),
        (Bounds(keep=8.5, runs=1), True, ["a", "b", "c"]),
        (Bounds(keep=1.0), False, ["a", "c", "d"]),
    ],
)
def test_which_runs_are_too_many_or_too_old(
    bounds: Bounds, layers: bool, surplus: list[str]
) -> None:
    assert Rule(bounds, layers).surplus(ONES, 10.0) == surplus
    assert Rule(bounds, layers).asks == (bounds != Bounds())


def test_a_run_is_as_old_as_its_end(state: StateDir) -> None:
    ended(state, "aaaaaaaa-x", NOW)
    ended(state, "bbbbbbbb-y", NOW + 5, kept="upper")
    ended(state, "cccccccc-z", NOW + 6, kept="out")
    (state.runs / "file").write_text("no run")
    (state.runs / "link").symlink_to("/etc")
    os.utime(state.runs / "bbbbbbbb-y", (1, 1))
    os.utime(state.runs / "cccccccc-z", (1, 1))
    assert sorted(listed(state), key=lambda one: one.run) == [
        Left("aaaaaaaa-x", NOW, False), Left("bbbbbbbb-y", NOW + 5, True),
        Left("cccccccc-z", NOW + 6, True),
    ]  # fmt: skip


def test_logs_go_with_the_directory_and_nobody_elses(state: StateDir) -> None:
    for run in ("aaaaaaaa-x", "aaaaaaab-x", "aaaaaaaa-x.y"):
        ended(state, run, NOW)
    (state.logs / "x.aaaaaaaa.out.1").write_text("rotated")
    outside = state.root / "outside"
    outside.mkdir()
    (state.runs / "aaaaaaaa-x" / "link").symlink_to(outside)
    assert remove(state, ["aaaaaaaa-x"]) == []
    assert left(state) == ["aaaaaaaa-x.y", "aaaaaaab-x"]
    assert sorted(one.name for one in state.logs.iterdir()) == [
        "x.aaaaaaab.err", "x.aaaaaaab.out", "x.y.aaaaaaaa.err", "x.y.aaaaaaaa.out",
    ]  # fmt: skip
    assert outside.is_dir()


async def test_a_run_that_goes_on_stays_whatever_its_age(state: StateDir) -> None:
    for run in ("aaaaaaaa-x", "bbbbbbbb-y", "cccccccc-z"):
        ended(state, run, 1.0)
    rule = Rule(Bounds(keep=DAY, runs=1))
    await Sweeper(state, rule, lambda: ["aaaaaaaa-x", "bbbbbbbb-y"], Log()).sweep()
    assert left(state) == ["aaaaaaaa-x", "bbbbbbbb-y"]


async def test_it_looks_at_the_start_and_when_runs_have_ended(
    state: StateDir, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    async def sweep(_self: Sweeper) -> None:
        nonlocal looked
        looked += 1

    monkeypatch.setattr(Sweeper, "sweep", sweep)
    sweeper = Sweeper(state, Rule(Bounds(runs=1)), list, Log())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sweeper.run)
        await trio.sleep(3 * retention.PAUSE)
        assert looked == 1
        sweeper({"event": "job_started"})
        await trio.sleep(3 * retention.PAUSE)
        assert looked == 1
        for _ in range(5):
            sweeper({"event": "job_ended"})
        await trio.sleep(3 * retention.PAUSE)
        assert looked == 2
        nursery.cancel_scope.cancel()


async def test_without_bounds_it_does_not_even_look(state: StateDir) -> None:
    await Sweeper(state, Rule(Bounds()), list, Log()).run()


async def test_what_cannot_be_removed_is_told_once_and_hinders_nobody(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("aaaaaaaa-x", "bbbbbbbb-y", "cccccccc-z"):
        ended(state, run, 1.0)
    real = retention.remove_tree

    def refuses(path: Path) -> None:
        if path.name == "aaaaaaaa-x":
            raise PermissionError(1, "Operation not permitted", str(path / "upper"))
        real(path)

    monkeypatch.setattr(retention, "remove_tree", refuses)
    log = Log()
    sweeper = Sweeper(state, Rule(Bounds(keep=DAY)), list, log)
    for _ in range(2):
        await sweeper.sweep()
    assert left(state) == ["aaaaaaaa-x"]
    (told,) = log.told
    assert told["event"] == "cleanup_failed" and "aaaaaaaa-x/upper: Operation not" in told["text"]


async def test_a_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    log = Log()
    await Sweeper(StateDir(tmp_path / "none"), Rule(Bounds(runs=1)), list, log).sweep()
    assert "cannot look at" in log.told[0]["text"]
