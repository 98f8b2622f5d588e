"""The event log of a real batch has the entries that docs/verdicts.md lists, with those fields."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from supervisor import __version__
from tests.support.batch import Batch
from tests.support.command import ROOT
from tests.support.policies import plugin

pytestmark = pytest.mark.kernel

ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| ([^|]*) \|$", re.MULTILINE)
COMMON = {"seq", "time", "event", "job", "run"}
TABLE = (ROOT / "docs/verdicts.md").read_text().split("## The event log")[1].split("\n## ")[0]
DOCUMENTED = {
    kind: set(re.findall(r"`(\w+)`", re.sub(r"\([^()]*\)", "", fields)))
    for kind, fields in ROW.findall(TABLE)
}


TELLS = """
@hookimpl
def prepare(spec): return attrs.evolve(spec, environment={**spec.environment, "X": "1"})
@hookimpl
def on_start(job): return Notify(job.name)
@hookimpl
def on_exit(job): return None
"""


def as_documented(entries: list[dict[str, Any]]) -> set[str]:
    """The kinds that are there; each entry has the fields of its kind and no other."""
    assert [entry["seq"] for entry in entries] == sorted({entry["seq"] for entry in entries})
    for entry in entries:
        assert entry.keys() - COMMON == DOCUMENTED[entry["event"]], entry
    return {entry["event"] for entry in entries}


def test_every_entry_of_a_batch_is_as_documented(batch: Batch, tmp_path: Path) -> None:
    tells = plugin(tmp_path, "tells", TELLS)
    result = batch.run(
        """
        [jobs.grows]
        command = ["perl", "-e", "$x = 'a' x (48 << 20)"]
        limits = { memory = "24M", swap = 0 }
        on_memory_limit = { action = "raise", to = "256M" }

        [jobs.dies]
        command = ["perl", "-e", "$x = 'a' x (48 << 20)"]
        limits = { memory = "24M", swap = 0 }
        on_exit = { action = "retry", limits = { memory = "256M" } }

        [jobs.forks]
        command = ["perl", "-e", "fork for 1..4; sleep 1000"]
        limits = { pids = 4 }
        on_pids_limit = { action = "kill", why = "too many" }
        expect = "policy"

        [jobs.fails]
        command = "false"
        restart = { when = "on-failure", attempts = 1, backoff = "10ms" }
        expect = "failed"

        [jobs.hangs]
        command = ["sleep", "1000"]
        timeout = "100ms"
        after = ["grows"]
        expect = "timeout"
        """,
        top=f'plugins = ["{tells}"]',
    )
    entries = batch.entries()
    assert as_documented(entries) >= {
        *("supervisor_started", "supervisor_stopped", "job_waiting", "job_starting", "job_started"),
        *("memory_limit", "oom_kill", "pids_limit", "timeout", "decision", "limit_changed"),
        *("job_stopping", "signal_sent", "job_ended", "retry", "notify", "prepared", "undecided"),
    }, result.done.stderr
    for one in batch.entries("undecided"):
        *_own, answer = one["answers"]
        assert answer["seconds"] > 0 and answer | {"seconds": 0} == {
            "policy": "tells", "verdict": "", "seconds": 0, "error": "",
        }  # fmt: skip
    first, last = entries[0], entries[-1]
    assert (first["event"], last["event"]) == ("supervisor_started", "supervisor_stopped")
    assert (first["version"], first["jobs"]) == (__version__, 5)
    assert first["cgroup"] in ("v1", "hybrid", "v2")
    assert (last["exit_status"], last["interrupted"]) == (result.status, "")


def test_a_failure_that_was_not_expected_is_started_again(batch: Batch) -> None:
    batch.run(
        """
        [jobs.fails]
        command = "false"
        restart = { when = "on-failure", attempts = 1, backoff = "10ms" }
        """
    )
    (entry,) = batch.entries("restart")
    assert entry.keys() - COMMON == DOCUMENTED["restart"]
    assert (entry["attempt"], entry["by"], entry["limits"]) == (2, "restart = on-failure", {})
    assert batch.entries()[-1]["exit_status"] == 1


def test_orphans_are_told_of(batch: Batch) -> None:
    """A child that the supervisor has from before its exec is as good as an adopted one."""
    log = batch.state / "events.ndjson"
    path = batch.write(
        f"""
        [jobs.waits]
        script = "until grep -q orphan_reaped {log}; do sleep 0.1; done"
        timeout = "60s"
        mounts = ["{batch.state}:{batch.state}:ro"]
        """
    )
    batch.state.mkdir()
    command = [sys.executable, "-m", "supervisor", str(path)]
    shell = ["sh", "-c", '(exit 3) & (kill -KILL "$(exec sh -c \'echo $PPID\')") & exec "$@"', "sh"]
    done = subprocess.run([*shell, *command], cwd=ROOT, check=False, timeout=100)
    assert done.returncode == 0
    reaped = batch.entries("orphan_reaped")
    assert as_documented(reaped) == {"orphan_reaped"}
    assert {(one["exit_code"], one["signal"]) for one in reaped} <= {(3, None), (None, 9)}


def test_what_prepare_makes_of_a_job_counts_for_all_that_follows(
    batch: Batch, tmp_path: Path
) -> None:
    """Its limits are enforced and its retries start from them; one that raises is told of."""
    body = """
    import attrs
    from attrs import evolve

    @hookimpl
    def prepare(spec):
        if spec.name == "bad":
            raise ValueError("no")
        return evolve(spec, limits=evolve(spec.limits, pids=23), expect="failed")
    """
    mine = plugin(tmp_path, "mine", textwrap.dedent(body))
    result = batch.run(
        """
        [jobs.good]
        command = "false"
        limits = { pids = 5 }

        [jobs.bad]
        command = "true"
        """,
        top=f'plugins = ["{mine}"]',
    )
    assert result.status == 0, result.done.stderr
    assert result["good"]["pids"]["limit"] == 23
    told = {item["source"].rpartition("/")[2]: item["what"] for item in result["good"]["evidence"]}
    assert told["pids.max"] == "23"
    (warning,) = batch.entries("warning")
    assert warning["job"] == "bad" and "ValueError" in warning["text"], json.dumps(warning)
