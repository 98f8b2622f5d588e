"""Policies that act on real jobs: raise, retry, kill, freeze, tell; and those that misbehave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import policies
from tests.support.batch import Batch
from tests.support.command import Supervise

pytestmark = pytest.mark.kernel

MIB = 2**20
GROWS = (
    'print "$$\\n"; $| = 1; my $x = ""; for (1..48) { $x .= "x" x 1048576 } '
    'print "$$ ", length $x, "\\n"; exit 0'
)
"""Tells its pid, takes 48 MiB and more, tells its pid again: one process all the way."""
SMALL = 'limits = { memory = "24M", swap = 0 }'
NEIGHBOUR = """
[jobs.neighbour]
command = "true"
"""


def grower(settings: str = "") -> str:
    return f"[jobs.grow]\ncommand = {json.dumps(['perl', '-e', GROWS])}\n{SMALL}\n{settings}\n"


# Memory.


@pytest.mark.parametrize(
    "settings",
    ['on_memory_limit = { action = "raise", to = "256M" }', 'on_memory_limit = "grow-memory"'],
)
def test_a_raised_limit_lets_the_same_process_finish(batch: Batch, settings: str) -> None:
    """It is held, never killed: not once, in five jobs at once."""
    result = batch.run(
        grower(settings + "\nmatrix = { n = [1, 2, 3, 4, 5] }"),
        top='plugins = ["grow-memory"]\ncapacity = { jobs = 3 }',
    )
    assert result.status == 0, result.done.stderr
    assert len(result.runs) == 5
    for record in result.runs:
        first, last = batch.output(record).splitlines()
        assert last == f"{first} {48 * MIB}"
        memory = record["memory"]
        assert (record["attempt"], memory["oom_kills"]) == (1, 0)
        values = [change["value"] for change in memory["limit_history"]]
        assert values[0] == 24 * MIB and values == sorted(set(values)) and len(values) > 1
        assert values[-1] == memory["limit"] >= memory["peak"] > 48 * MIB
        assert memory["limit_history"][0]["by"] == "configuration"
        assert memory["limit_history"][1]["by"] in ("on_memory_limit", "grow-memory")


def test_the_raise_of_a_one_shot_run(supervise: Supervise, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    done = supervise("run", "--memory", "24M", "--swap", "0", "--on-memory-limit", "raise:200M",
                     "--record", record, "--", "perl", "-e", GROWS)  # fmt: skip
    assert done.status == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert last == f"{first} {48 * MIB}"
    history = json.loads(record.read_text())["memory"]["limit_history"]
    assert [change["value"] for change in history] == [24 * MIB, 200 * MIB]
    assert "200.0M" in done.stderr  # it is told


def test_without_an_answer_a_held_job_is_let_go_and_killed(batch: Batch) -> None:
    result = batch.run(grower('on_memory_limit = { action = "ignore" }'))
    assert result["grow"]["reason"] == "oom"
    assert result["grow"]["memory"]["oom_kills"] >= 1


def test_a_job_is_run_again_with_more_after_an_oom(batch: Batch) -> None:
    result = batch.run(
        grower('on_memory_limit = { action = "ignore" }'),
        top='plugins = ["grow-memory"]\n[policies.grow-memory]\nmax = "96M"',
    )
    assert result.status == 0, result.done.stderr
    story = [(run["attempt"], run["reason"], run["memory"]["limit"] // MIB) for run in result.runs]
    assert story == [(1, "oom", 24), (2, "oom", 48), (3, "succeeded", 96)]
    again = batch.entries("retry")
    assert [entry["limits"]["memory"] // MIB for entry in again] == [48, 96]


def test_a_raise_beyond_capacity_is_refused_and_told(batch: Batch) -> None:
    result = batch.run(
        grower('on_memory_limit = { action = "raise", to = "256M" }'),
        top='capacity = { memory = "64M" }',
    )
    record = result["grow"]
    assert record["reason"] == "oom"
    assert len(record["memory"]["limit_history"]) == 1
    assert "capacity lacks" in result.done.stderr


def test_a_retry_beyond_capacity_is_refused_and_told(batch: Batch) -> None:
    hooks = """on_memory_limit = { action = "ignore" }
    on_exit = { action = "retry", limits = { memory = "256M" } }"""
    result = batch.run(grower(hooks), top='capacity = { memory = "64M" }')
    assert [run["reason"] for run in result.runs] == ["oom"]
    assert "capacity never has" in result.done.stderr


# Processes.


def test_a_fork_bomb_is_ended(batch: Batch) -> None:
    result = batch.run(
        f"""
        [jobs.bomb]
        command = ["perl", "-e", "fork while 1"]
        limits = {{ pids = 16, cpus = 0.5 }}
        timeout = "60s"
        {NEIGHBOUR}""",
        top='plugins = ["kill-fork-bomb"]',
    )
    bomb = result["bomb"]
    assert (bomb["reason"], bomb["decided_by"]) == ("policy", "kill-fork-bomb")
    assert bomb["pids"]["refused"] > 0 and bomb["pids"]["peak"] == 16
    assert "forks were refused at 16" in bomb["detail"]
    assert result["neighbour"]["reason"] == "succeeded"


def test_pids_can_be_raised_while_the_job_forks(batch: Batch) -> None:
    code = (
        "my $n = 0; while ($n < 24) { my $p = fork; if (!defined $p) { select undef, undef, undef, "
        "0.01; next } if (!$p) { sleep 1000; exit } $n++ } print qq(all\\n); exit 0"
    )
    command = json.dumps(["perl", "-e", code])
    result = batch.run(
        f'[jobs.forks]\ncommand = {command}\nlimits = {{ pids = 8 }}\ntimeout = "60s"\n'
        'on_pids_limit = { action = "raise", to = 64 }\n'
    )
    record = result["forks"]
    assert record["reason"] == "succeeded" and record["pids"]["refused"] > 0
    assert record["pids"]["limit"] == 64


# The other actions, from a file by its path.


def test_a_policy_by_its_path_may_do_anything_there_is(batch: Batch, tmp_path: Path) -> None:
    """Notify at the start, SignalJob at the first timeout, KillJob at the end of it."""
    path = policies.plugin(
        tmp_path,
        "mine",
        """
        @hookimpl
        def prepare(spec):
            return attrs.evolve(spec, environment={**spec.environment, "GIFT": "from mine"})

        @hookimpl
        async def on_start(job):
            await trio.sleep(0)
            return Notify(f"{job.name} has started")

        @hookimpl
        def on_timeout(job, event):
            return SignalJob("USR1")
        """,
    )
    result = batch.run(
        """
        [jobs.one]
        script = "trap 'echo $GIFT; exit 0' USR1; while :; do sleep 0.1; done"
        timeout = "300ms"
        """,
        top=f'plugins = ["{path}"]',
    )
    record = result["one"]
    assert record["reason"] == "succeeded", result.done.stderr
    assert batch.output(record) == "from mine\n"
    assert "mine says: one has started" in result.done.stderr
    assert {entry["by"] for entry in batch.entries("decision")} == {"mine"}


def test_a_frozen_job_stands_still_until_it_is_thawed(batch: Batch, tmp_path: Path) -> None:
    path = policies.plugin(
        tmp_path,
        "ice",
        """
        @hookimpl
        def on_start(job):
            return Freeze() if job.name != "other" else None

        @hookimpl
        def on_timeout(job, event):
            return Thaw() if job.spec.timeout == 0.5 else None
        """,
    )
    result = batch.run(
        """
        [jobs.thawed]
        script = "sleep 0.2; echo done"
        timeout = "500ms"
        [jobs.stays]
        command = "sleep 0.2"
        timeout = "600ms"
        stop = { grace = "300ms" }
        [jobs.other]
        command = "sleep 0.2"
        """,
        top=f'plugins = ["{path}"]',
    )
    assert result.reasons == {"thawed": "succeeded", "stays": "timeout", "other": "succeeded"}
    assert result["thawed"]["wall_seconds"] >= 0.5


def test_a_policy_may_stop_everything(batch: Batch) -> None:
    result = batch.run("""
    [jobs.alarm]
    command = "false"
    on_exit = { action = "stop-all", why = "the data is bad" }
    [jobs.long]
    command = "sleep 1000"
    [jobs.later]
    command = "true"
    after = ["long"]
    """)
    assert result.status == 130
    assert result.reasons == {"alarm": "failed", "long": "stopped", "later": "skipped"}
    assert "the data is bad" in result.done.stderr


# Policies that misbehave.

BAD = {
    "raises": "raise RuntimeError('no')",
    "exits": "sys.exit(3)",
    "hangs": "time.sleep(1000)",
    "hangs-async": "await trio.sleep_forever()",
    "nonsense": "return 'please kill it'",
    "absurd": "return RaiseLimit('memory', float('nan'))",
    "shrinks": "return RaiseLimit('memory', 4096)",
    "deep": "return (lambda f: f(f))(lambda f: f(f))",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_policy_that_misbehaves_harms_nobody(batch: Batch, tmp_path: Path, kind: str) -> None:
    """The job beside it is done long before the deadline of a hung one; the next policy decides."""
    path = policies.plugin(
        tmp_path,
        "bad",
        f"""
        @hookimpl
        {"async " if "async" in kind else ""}def on_memory_limit(job, event):
            {BAD[kind]}
        """,
    )
    top = f'plugins = ["{path}", "grow-memory"]\n[policies.grow-memory]\nfactor = 8'
    result = batch.run(grower() + NEIGHBOUR, top=top)
    assert result.status == 0, result.done.stderr
    assert result["grow"]["memory"]["oom_kills"] == 0
    assert result["grow"]["memory"]["limit_history"][-1]["by"] == "grow-memory"
    assert "policy bad at on_memory_limit: " in result.done.stderr
    if "hangs" in kind:
        assert result["neighbour"]["finished_at"] < result["grow"]["finished_at"]
        assert result["neighbour"]["wall_seconds"] < 3


def test_a_policy_that_cannot_be_loaded_starts_nothing(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_at_all\n")
    result = batch.run(NEIGHBOUR, top=f'plugins = ["{tmp_path}/broken.py", "no-such-policy"]')
    assert result.status != 0 and not result.runs
    assert "no_such_module_at_all" in result.done.stderr
    assert "Traceback" not in result.done.stderr
    assert not batch.state.exists()
