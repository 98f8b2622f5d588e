"""docs/policies.md is true: its examples run as they stand there, its tables are complete."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import trio

from supervisor.errors import ConfigError
from supervisor.model import HOOKS, Action, Limits, Notify, RaiseLimit, Retry
from supervisor.policy.registry import GROUP, load
from tests.support.command import ROOT
from tests.support.policies import AT_LIMIT, EXITED, MIB, engine, view

TEXT = (ROOT / "docs/policies.md").read_text()
GIB = 1024 * MIB


def block(heading: str, number: int = 0, language: str = "python") -> str:
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "policies").mkdir()
    path = tmp_path / "policies/mine.py"
    path.write_text(block("Writing one"))
    return str(path)


def test_the_first_policy_takes_ten_lines() -> None:
    lines = [line for line in block("Writing one").splitlines() if line.strip()]
    assert len(lines) <= 10


async def test_the_first_policy_raises_to_2g_once_then_retries_tomorrow(mine: str) -> None:
    asks = engine(mine)
    assert (await asks.decide(AT_LIMIT, view())).action == RaiseLimit("memory", 2 * GIB)
    raised = view(limits=Limits(memory=2 * GIB), raised={"memory": 1})
    decision = await asks.decide(AT_LIMIT, raised)
    assert (decision.action, decision.answers[0].error) == (None, "")
    tomorrow = Retry({"memory": 4 * GIB}, after=86400)
    assert (await asks.decide(EXITED, view(reason="oom"))).action == tomorrow
    for job in (view(reason="oom", attempt=2), view(reason="failed"), view(reason="succeeded")):
        assert (await asks.decide(EXITED, job)).action is None


async def test_the_policy_with_arguments_tells_and_is_quiet_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "tells.py"
    path.write_text(block("Writing one", 1))
    asks = engine(str(path), tells={"above": "1M"})
    assert (await asks.decide(AT_LIMIT, view())).action == Notify(
        "sort is at its limit of 67108864 bytes"
    )
    assert (await asks.decide(AT_LIMIT, view())).action is None
    high = engine(str(path), tells={"above": "1G"})
    assert (await high.decide(AT_LIMIT, view())).action is None


async def test_the_test_that_it_recommends_passes(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(block("Testing one"), "docs/policies.md", "exec")
    await trio.to_thread.run_sync(exec, code, {})


def test_its_entry_point_is_in_the_group_that_is_looked_up() -> None:
    project = tomllib.loads(block("Installing one", language="toml"))["project"]
    assert list(project["entry-points"]) == [GROUP]
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [own["name"]]


def test_its_tables_have_every_hook_and_every_action() -> None:
    hooks = TEXT.split("\n## Hooks\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)\(", hooks, re.MULTILINE)) == {*HOOKS, "prepare"}
    actions = TEXT.split("\n## Actions\n")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)\(", actions, re.MULTILINE))
    assert named == {each.__name__ for each in get_args(Action)}


def test_its_error_messages_are_the_real_ones() -> None:
    lines = {"factor": 7, "maximum": 8}
    with pytest.raises(ConfigError) as caught:
        load(
            ["grow-memory"],
            {"grow-memory": {"factor": 1, "maximum": "8G"}},
            where=lambda *path: f"night.toml:{lines[path[-1]]}",
        )
    assert len(caught.value.problems) == 2
    for line in caught.value.problems:
        assert f"    {line}\n" in TEXT
