"""config.toml.example, as it is shipped: every job ends as it says."""

from __future__ import annotations

import shutil
import tomllib

import pytest

from tests.support.batch import Batch, Result
from tests.support.command import ROOT

pytestmark = pytest.mark.kernel


def test_the_example_runs_as_it_is(batch: Batch) -> None:
    """Only its name and its directories are this test's: it shares the host with others."""
    text = (ROOT / "config.toml.example").read_text()
    head = f'{batch.where.table}name = "{batch.name}"'
    ours = text.replace('[supervisor]\nname = "example"', head, 1)
    assert ours != text
    batch.path.write_text(ours)
    done = batch.supervise(batch.path, "--json", timeout=60)
    batch.assert_clean()
    result = Result(done, batch)
    assert result.status == 0, done.stderr
    assert all(run["expected"] for run in result.runs if run["job"] != "histogram")
    last = {run["job"]: run for run in result.runs}
    jobs = tomllib.loads(text)["jobs"]
    assert {name.partition("@")[0] for name in last} == set(jobs)
    assert all(run["expected"] for run in last.values())
    held = last["distinct"]
    assert held["attempt"] == 1 and held["memory"]["oom_kills"] == 0
    assert len(held["memory"]["limit_history"]) > 1
    story = [run["reason"] for run in result.runs if run["job"] == "histogram"]
    assert story[0] == "oom" and story[-1] == "succeeded"
    assert last["bomb"]["decided_by"] == "kill-fork-bomb"
    assert "files" in batch.output(last["audit"])


def test_what_init_prints_is_the_example(batch: Batch) -> None:
    assert batch.supervise("init").stdout == (ROOT / "config.toml.example").read_text()
    shutil.copy(ROOT / "config.toml.example", batch.path)
    assert batch.supervise("check", batch.path).status == 0
