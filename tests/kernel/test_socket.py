"""The socket of a real instance, and the verbs that speak to it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.front.verbs import place
from supervisor.front.verbs.client import Reply
from tests.support.batch import Batch, Running
from tests.support.command import ROOT, Done

pytestmark = pytest.mark.kernel

TWO = (
    '[jobs.one]\ncommand = "sleep 1000"\n[jobs.two]\ncommand = "sleep 1000"\nlimits.memory = "64M"'
)

Ask = Callable[..., Done]


@pytest.fixture
def ask(batch: Batch) -> Ask:
    """A client verb, told of this test's instance."""

    def call(*words: str) -> Done:
        path = batch.where.runtime / batch.name / "socket"
        return batch.supervise(*words, environment={"SUPERVISE_SOCKET": str(path)})

    return call


def test_jobs_are_listed_and_stopped(batch: Batch, ask: Ask) -> None:
    with batch.start(TWO) as running:
        running.wait_started("one", "two")
        path = batch.where.runtime / batch.name / "socket"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        table = ask("ps")
        assert [line.split()[:2] for line in table.stdout.splitlines()[1:]] == [
            ["one", "running"],
            ["two", "running"],
        ]
        assert ask("ps", "-q", "--state", "running").stdout == "one\ntwo\n"
        jobs = [json.loads(line) for line in ask("ps", "--json").stdout.splitlines()]
        assert [job["memory_limit"] for job in jobs] == [None, 64 << 20]

        assert ask("stop", "one", "--why", "enough").stdout == "one\n"
        running.wait_for(r" one ended: stopped")
        refused = ask("stop", "one")
        assert (refused.status, refused.stdout) == (1, "")
        assert "one has ended already: stopped" in refused.stderr
        unknown = ask("kill", "twp")
        assert unknown.status == 2
        assert "did you mean two?" in unknown.stderr
        assert ask("stop").status == 0
        result = running.finish()
    assert result.status == 130
    assert result.reasons == {"one": "stopped", "two": "stopped"}
    steered = batch.entries("steered")
    assert [(one["verb"], one.get("job"), one["by"], one["why"]) for one in steered] == [
        ("stop", "one", "root (uid 0)", "enough"),
        ("stop", None, "root (uid 0)", ""),
    ]


def test_a_signal_reaches_the_job_and_kill_is_final(batch: Batch, ask: Ask) -> None:
    ready = batch.fifo("ready")
    script = "trap 'echo heard > /tmp/ready' USR1; echo up > /tmp/ready; while :; do sleep 1; done"
    job = f'[jobs.one]\ncommand = ["sh", "-c", "{script}"]\nrestart.when = "always"'
    with batch.start(job, defaults=batch.sees(ready)) as running:
        assert batch.told(ready, 1) == ["up"]
        assert ask("kill", "-s", "sigusr1", "one").status == 0
        assert batch.told(ready, 1) == ["heard"]
        wrong = ask("kill", "-s", "NONSENSE", "one")
        assert wrong.status == 2
        assert '"NONSENSE" is no signal' in wrong.stderr
        assert ask("kill", "one").stdout == "one\n"
        result = running.finish()
    assert result["one"]["signal"] == 9
    assert len(result.runs) == 1


def test_without_an_instance_it_is_said_where_one_was_looked_for(batch: Batch, ask: Ask) -> None:
    gone = ask("ps")
    assert gone.status == 125
    assert f"{batch.name}/socket: no instance listens there" in gone.stderr


def test_events_are_followed_from_the_log_to_the_end(batch: Batch, ask: Ask) -> None:
    with batch.start(TWO) as running:
        running.wait_started("one", "two")
        socket = batch.where.runtime / batch.name / "socket"
        follow = batch.supervise.start("events", "-f", "--json", "--socket", socket)
        only = batch.supervise.start("events", "--new", "--event", "job_ended", "--socket", socket)
        assert follow.stdout is not None and only.stdout is not None
        first = json.loads(follow.stdout.readline())
        assert (first["seq"], first["event"]) == (1, "supervisor_started")
        assert "one started (pid" in ask("events", "one").stdout
        late = ask("events", "--json", "--since", str(first["seq"])).stdout.splitlines()
        assert json.loads(late[0])["seq"] == 2
        assert ask("events", "--event", "job_endet").status == 2
        assert ask("stop", "one", "--wait").stdout == "one\n"
        assert ask("stop", "--wait").status == 0
        # the lock is free: nothing is left, and the streams have their ends
        followed = [json.loads(line) for line in follow.stdout]
        told = [line.split()[1:4] for line in only.stdout]
        assert (follow.wait(), only.wait()) == (0, 0)
        for client in (follow, only):
            client.communicate()
        running.finish()
    assert [first, *followed] == batch.entries()
    assert followed[-1]["event"] == "supervisor_stopped"
    assert told[-1] == ["two", "ended:", "stopped"]


def test_waiting_for_jobs(batch: Batch, ask: Ask) -> None:
    ready = batch.fifo("ready")
    jobs = """
        [jobs.good]
        command = ["sh", "-c", "read line < /tmp/ready"]
        [jobs.bad]
        command = "false"
        [jobs.later]
        command = "true"
        after = ["good"]
        [jobs.never]
        command = "true"
        after = ["bad"]
    """
    with batch.start(jobs, defaults=batch.sees(ready)) as running:
        running.wait_started("good")
        assert ask("wait", "bad").status == 1
        assert ask("wait", "--for", "running", "good", "bad").stdout == "good\nbad\n"
        late = ask("wait", "good", "--timeout", "10ms")
        assert (late.status, late.stdout) == (124, "")
        assert late.stderr.startswith("supervise: not ended within ")
        assert ask("wait", "--for", "running", "never").status == 1
        assert ask("wait", "--any", "good", "bad").stdout == "bad\n"
        assert ask("wait", "nobody").status == 2
        assert ask("wait", "--timeout", "soon").status == 2
        # asked before the last job may end, which ends the instance
        with place.connect(batch.where.runtime / batch.name / "socket") as stream:
            stream.sendall(b"GET /v1/wait?job=good&job=later HTTP/1.1\r\nHost: x\r\n\r\n")
            ready.write_text("go\n")
            answer = json.loads(Reply(stream).read())
        running.finish()
    ended = [(job["name"], job["reason"]) for job in answer["jobs"]]
    assert ended == [("good", "succeeded"), ("later", "succeeded")]


def test_one_job_in_full_and_the_instance(batch: Batch, ask: Ask) -> None:
    with batch.start(TWO) as running:
        running.wait_started("one", "two")
        text = ask("status", "two").stdout
        assert text.startswith("two: running for ")
        assert "\n  command  sleep 1000\n" in text
        assert "\n  limits   memory = 64.0M\n" in text
        job = json.loads(ask("status", "two", "--json").stdout)
        assert job["spec"]["environment"] == {"SUPERVISE_BATCH": batch.name}
        assert job["status"]["run"].endswith("-two")
        instance = ask("status").stdout
        assert instance.startswith(f"{batch.name}: 2 running\n")
        assert f"\n  config   {batch.path}\n" in instance
        ask("kill", "one")
        running.wait_for(" one ended: ")
        assert "\n  attempt 1  stopped after " in ask("status", "one").stdout


def test_a_shell_offers_the_jobs_that_there_are(batch: Batch, ask: Ask, tmp_path: Path) -> None:
    command = tmp_path / "supervise"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m supervisor "$@"\n')
    command.chmod(0o755)
    (tmp_path / "script").write_text(ask("completion", "bash").stdout)
    line = f"{command} kill --socket {batch.where.runtime / batch.name / 'socket'} o"
    code = f"source {tmp_path}/script; COMP_LINE='{line}' COMP_POINT={len(line)}; _supervise"
    with batch.start(TWO) as running:
        running.wait_started("one", "two")
        shell = ["bash", "--norc", "-c", f'{code}; echo "${{COMPREPLY[@]}}"']
        done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("one\n", "")


def test_a_stale_socket_is_replaced(batch: Batch, ask: Ask) -> None:
    batch.write(TWO)
    killed = Running(batch.supervise.start(batch.path), batch)
    killed.wait_started("one", "two")
    killed.process.kill()
    killed.process.wait()
    assert (batch.where.runtime / batch.name / "socket").is_socket()
    assert ask("ps").status == 125
    with batch.start(TWO) as running:
        running.wait_started("one", "two")
        assert ask("ps", "-q").stdout == "one\ntwo\n"
    killed.finish()
