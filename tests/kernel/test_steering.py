"""A running instance changed from outside: limits, pause, restart, jobs handed in, reload."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from supervisor.cgroup import files
from supervisor.front.verbs.client import Client, Refused
from supervisor.linux import proc
from tests.support.batch import PATIENCE, Batch
from tests.support.command import ROOT, Done
from tests.support.images import Built, file, folder, layer

pytestmark = pytest.mark.kernel

MIB = 1 << 20
ONE = '[jobs.one]\ncommand = "sleep 1000"\n'
BUSY = '[jobs.busy]\nscript = "while :; do :; done"\nlimits.cpus = 0.2\n'
STAY = 'when_done = "stay"'

Ask = Callable[..., Done]


def socket_of(batch: Batch) -> Path:
    return batch.where.runtime / batch.name / "socket"


@pytest.fixture
def ask(batch: Batch) -> Ask:
    """A client verb, told of this test's instance."""

    def call(*words: str, stdin: str | None = None) -> Done:
        variables = {"SUPERVISE_SOCKET": str(socket_of(batch))}
        return batch.supervise(*words, environment=variables, stdin=stdin)

    return call


@pytest.fixture
def client(batch: Batch) -> Client:
    """The same without a process for each question."""
    return Client(socket_of(batch))


def limit(pid: int, v1: str, v2: str) -> int:
    """What the kernel has for the payload `pid`, in the hierarchy of its controller."""
    controller = v1.partition(".")[0]
    for line in proc.read_file(f"/proc/{pid}/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for mount in proc.mountinfo():
            below = path.removeprefix(mount.root.rstrip("/"))
            options = str(mount.super_options).replace("'", ",").split(",")
            if (
                mount.fstype == "cgroup"
                and controller in names.split(",")
                and controller in options
            ):
                found = f"{mount.mount_point}{below}/{v1}"
            elif mount.fstype == "cgroup2" and not names:
                found = f"{mount.mount_point}{below}/{v2}"
            else:
                continue
            if os.path.exists(found):
                return files.number(found)
    raise AssertionError(f"no {v1} and no {v2} for {pid}")


def memory(pid: int) -> int:
    return limit(pid, "memory.limit_in_bytes", "memory.max")


def pids(pid: int) -> int:
    return limit(pid, "pids.max", "pids.max")


def until(client: Client, job: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask for the job until it is as wanted; fails when it does not get so."""
    deadline = time.monotonic() + PATIENCE
    while not wanted(found := client.get("jobs", job)["status"]):
        assert time.monotonic() < deadline, found
    return dict(found)


def test_limits_are_set_read_back_and_written_down(batch: Batch, ask: Ask) -> None:
    with batch.start(ONE + 'limits.memory = "64M"') as running:
        pid = running.wait_started("one")["one"]
        done = ask("set", "one", "memory=128M", "pids=20", "cpus=0.5", "swap=0")
        assert done.stdout.split() == ["memory=128M", "pids=20", "cpus=0.5", "swap=0"], done
        assert (memory(pid), pids(pid)) == (128 * MIB, 20)
        assert ask("set", "one", "swap=8M").status == 0
        assert ask("set", "one", "memory=max", "swap=max", "pids=max").status == 0
        assert memory(pid) >= files.UNLIMITED
        assert pids(pid) >= files.UNLIMITED
        assert ask("set", "one", "memory=32M").status == 0
        assert memory(pid) == 32 * MIB
        ask("stop")
        result = running.finish()
    history = result["one"]["memory"]["limit_history"]
    assert [change["value"] for change in history] == [64 * MIB, 128 * MIB, None, 32 * MIB]
    assert {change["by"] for change in history[1:]} == {"root (uid 0)"}
    every = [(change["limit"], change["value"]) for change in result["one"]["limit_history"]]
    assert sorted(every[:4]) == [("cpus", 0.5), ("memory", 128 * MIB), ("pids", 20), ("swap", 0)]
    assert every[4:5] == [("swap", 8 * MIB)] and every[-1] == ("memory", 32 * MIB)
    changed = {(e["limit"], e["to"]) for e in batch.entries("limit_changed")}
    assert changed >= {("memory", 128 * MIB), ("swap", 0), ("pids", 20), ("cpus", 0.5)}
    assert [e["verb"] for e in batch.entries("steered")][:3] == ["set", "set", "set"]


def test_what_cannot_be_is_refused_with_the_reason(batch: Batch, ask: Ask) -> None:
    with batch.start(ONE) as running:
        running.wait_started("one")
        wrong = ask("set", "one", "memory=lots", "cpu=1", "pids=0")
        assert wrong.status == 2
        assert len(wrong.stderr.splitlines()) == 3
        assert "limits.memory: must be a size" in wrong.stderr
        for words, why in (
            (("cpuset=0",), "the job joins it when it is started"),
            (("open_files=100",), "inherited"),
            (("swap=0",), "needs limits.memory"),
            (("disk=1G",), "was made without one"),
            (("output=1M",), "was started without one"),
        ):
            done = ask("set", "one", *words)
            assert (done.status, done.stdout) == (1, ""), done
            assert "one: " in done.stderr and why in done.stderr, done
        assert ask("set", "--next", "one", "open_files=100").status == 0
        assert ask("set", "nobody", "pids=9").status == 2
        assert ask("set", "one", "pids").status == 2


EATER = """
[jobs.eater]
command = ["python3", "-c", "b = bytearray(64 << 20); import time; time.sleep(1000)"]
limits = { memory = "256M", swap = 0, pids = 50 }
hide = "nothing"
"""


def has_it(batch: Batch, client: Client) -> None:
    until(client, "eater", lambda job: (job["memory"] or 0) > 64 * MIB)


def test_less_memory_than_is_in_use_is_refused_and_nothing_changes(
    batch: Batch, ask: Ask, client: Client
) -> None:
    with batch.start(EATER) as running:
        pid = running.wait_started("eater")["eater"]
        has_it(batch, client)
        done = ask("set", "eater", "memory=16M", "swap=0", "pids=9")
        assert done.status == 1
        assert "are in use" in done.stderr and "nothing was changed" in done.stderr
        assert (memory(pid), pids(pid)) == (256 * MIB, 50)
        assert client.get("jobs", "eater")["limits"]["pids"] == 50
        assert ask("set", "eater", "pids=9", "memory=128M").status == 0
        assert (memory(pid), pids(pid)) == (128 * MIB, 9)
        ask("stop")
        result = running.finish()
    assert result["eater"]["reason"] == "stopped"
    assert result["eater"]["memory"]["oom_kills"] == 0


@pytest.mark.v2
def test_with_force_the_kernel_kills_for_it(batch: Batch, ask: Ask, client: Client) -> None:
    with batch.start(EATER) as running:
        running.wait_started("eater")
        has_it(batch, client)
        ask("set", "--force", "eater", "memory=16M")
        result = running.finish()
    assert result["eater"]["reason"] == "oom"


def test_a_paused_job_stands_still_and_goes_on(batch: Batch, ask: Ask, client: Client) -> None:
    with batch.start(BUSY) as running:
        running.wait_started("busy")
        until(client, "busy", lambda job: job["cpu_seconds"] > 0)
        assert ask("pause", "busy").stdout == "busy\n"
        before = client.get("jobs", "busy")["status"]
        assert (before["state"], before["paused_by"]) == ("frozen", "root (uid 0)")
        assert "paused by root (uid 0)" in ask("ps").stdout
        again = ask("pause", "busy")
        assert again.status == 1
        assert "paused already, by root (uid 0)" in again.stderr
        # the kernel calls a task frozen some microseconds before it leaves its CPU
        after = client.get("jobs", "busy")["status"]
        looks = [client.get("jobs", "busy")["status"]["cpu_seconds"] for _ in range(50)]
        assert set(looks) == {after["cpu_seconds"]}
        assert ask("set", "busy", "pids=7").status == 0  # a frozen job's limits can be set
        assert ask("resume", "busy").status == 0
        until(client, "busy", lambda job: job["cpu_seconds"] > after["cpu_seconds"])
        assert "not paused: it is running" in ask("resume", "busy").stderr


def test_a_paused_job_can_be_stopped_and_killed(batch: Batch, ask: Ask) -> None:
    jobs = ONE + '[jobs.two]\ncommand = "sleep 1000"\n'
    with batch.start(jobs) as running:
        running.wait_started("one", "two")
        assert ask("pause", "one", "two").status == 0
        assert ask("stop", "one").status == 0
        assert ask("kill", "two").status == 0
        result = running.finish()
    assert result.reasons == {"one": "stopped", "two": "stopped"}
    assert result["one"]["signal"] == signal.SIGTERM
    assert result["two"]["signal"] == signal.SIGKILL


def test_a_job_is_restarted_from_any_state(batch: Batch, ask: Ask, client: Client) -> None:
    jobs = (
        ONE
        + '[jobs.flaky]\ncommand = "false"\n'
        + 'restart = { when = "always", backoff = "1h", max_backoff = "1h" }\n'
        + '[jobs.done]\ncommand = "true"\n[jobs.later]\ncommand = "true"\nafter = ["one"]\n'
    )
    with batch.start(jobs) as running:
        first = running.wait_started("one")["one"]
        until(client, "flaky", lambda job: job["state"] == "backoff")
        until(client, "done", lambda job: job["state"] == "ended")
        assert ask("restart", "one", "flaky", "done").stdout.split() == ["one", "flaky", "done"]
        waits = ask("restart", "later")
        assert (waits.status, "has not been started" in waits.stderr) == (1, True)
        second = running.wait_started("one")["one"]
        assert second != first
        until(client, "flaky", lambda job: job["state"] == "backoff")
        deadline = time.monotonic() + PATIENCE
        while client.get("jobs", "done")["attempts"] < 2:
            assert time.monotonic() < deadline
        ask("stop", "one")
        ask("stop", "flaky")
        result = running.finish()
    assert [r["reason"] for r in result.runs if r["job"] == "one"] == ["stopped", "stopped"]
    assert {r["attempt"] for r in result.runs if r["job"] in ("one", "done")} == {1}
    assert len([r for r in result.runs if r["job"] == "done"]) == 2
    assert len([r for r in result.runs if r["job"] == "flaky"]) == 2


def test_jobs_are_submitted_to_an_instance_that_stays(
    batch: Batch, ask: Ask, client: Client, tmp_path: Path
) -> None:
    with batch.start("", top=STAY, defaults='limits = { memory = "48M" }') as running:
        until_there(batch)
        done = ask("submit", "--pids", "20", "--", "sh", "-c", "echo out; exit 3")
        assert (done.status, done.stdout) == (0, "sh\n"), done
        running.wait_for(r" sh ended: failed with exit code 3")
        assert ask("submit", "--", "sh", "-c", "exit 0").stdout == "sh-2\n"
        clash = ask("submit", "--name", "sh", "--", "true")
        assert clash.status == 1
        assert "there is a job sh already" in clash.stderr and "another name" in clash.stderr
        job = tmp_path / "from-file.toml"
        job.write_text('command = "cat mine"\nworking_dir = "/here"\nmounts = ["./here:/here"]\n')
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "mine").write_text("of the file\n")
        assert ask("submit", "--memory", "32M", str(job)).stdout == "from-file\n"
        running.wait_for(r" from-file ended: succeeded")
        table = {"command": ["sleep", "1000"], "after": ["from-file"]}
        assert ask("submit", "--name", "j", "-", stdin=json.dumps(table)).stdout == "j\n"
        running.wait_started("j")
        wrong = ask("submit", "--name", "w", "-", stdin='{"comand": "true", "after": ["nobody"]}')
        assert wrong.status == 2
        assert "jobs.w.comand" in wrong.stderr, wrong.stderr
        running.signal(signal.SIGTERM)
        result = running.finish()
    assert result.status == 0
    assert result["sh"]["submitted_by"] == "root (uid 0)"
    assert result["sh"]["memory"]["limit"] == 48 * MIB
    assert result["sh"]["pids"]["limit"] == 20
    assert result["from-file"]["memory"]["limit"] == 32 * MIB
    assert batch.output(result["from-file"]) == "of the file\n"
    assert [e["job"] for e in batch.entries("submitted")] == ["sh", "sh-2", "from-file", "j"]


def test_whoever_submits_may_wait_for_the_end(batch: Batch, ask: Ask) -> None:
    with batch.start(ONE) as running:
        running.wait_started("one")
        assert ask("submit", "--wait", "--", "sh", "-c", "exit 7").status == 7
        assert ask("submit", "--wait", "--timeout", "100ms", "--", "sleep", "1000").status == 124
        done = ask("submit", "--wait", "--json", "--name", "n", "--", "/no/such/program")
        assert done.status == 127
        assert json.loads(done.stdout)["submitted_by"] == "root (uid 0)"
        matrix = '{"command": ["sh", "-c", "exit {n}"], "matrix": {"n": [0, 1]}}'
        several = ask("submit", "--wait", "--name", "m", "-", stdin=matrix)
        assert (several.status, several.stdout) == (1, "m@n=0\nm@n=1\n")


def until_there(batch: Batch) -> None:
    """An instance without a job says nothing on its terminal: its event log does."""
    deadline = time.monotonic() + PATIENCE
    while not socket_of(batch).exists() or not batch.entries("supervisor_started"):
        assert time.monotonic() < deadline


def test_without_jobs_and_without_staying_it_is_over(batch: Batch) -> None:
    batch.write("")
    done = batch.supervise(batch.path)
    assert done.status == 2
    assert "no job is configured" in done.stderr


def test_what_this_host_lacks_is_told_at_submission(batch: Batch, ask: Ask) -> None:
    with batch.start(ONE) as running:
        running.wait_started("one")
        refused = ask("submit", "--name", "x", "--seccomp", "/nowhere.json", "--", "true")
        assert refused.status == 2
        assert "/nowhere.json" in refused.stderr
        assert ask("ps", "-q").stdout == "one\n"


THREE = """
[jobs.stays]
command = "sleep 1000"
[jobs.goes]
command = "sleep 1000"
[jobs.grows]
command = "sleep 1000"
timeout = "1h"
limits.memory = "64M"
[jobs.web]
command = "sleep 1000"
restart.when = "always"
"""


def test_a_reload_does_what_has_changed_and_no_more(batch: Batch, ask: Ask, client: Client) -> None:
    with batch.start(THREE, top="capacity.jobs = 10") as running:
        before = running.wait_started("stays", "goes", "grows", "web")
        changed = (
            THREE.replace("[jobs.goes]", "[jobs.comes]")
            .replace("64M", "96M")
            .replace('"1h"', '"2h"')
            .replace("[jobs.web]", '[jobs.web]\nenvironment.NEW = "1"')
            .replace("[jobs.stays]", "# a comment\n[jobs.stays]")
        )
        batch.write(changed, top="capacity.jobs = 11\ncgroup_parent = '/elsewhere'")
        dry = ask("reload", "--dry-run")
        assert dry.status == 0
        assert client.get("jobs", "goes")["status"]["state"] == "running"
        assert ask("reload", "--dry-run").stdout == dry.stdout  # nothing has been taken
        done = ask("reload")
        assert done.stdout == dry.stdout, done.stderr
        assert done.stdout.splitlines() == [
            "removed goes",
            "added comes",
            "changed grows",
            "  limits.memory: 64.0M -> 96.0M   (now)",
            "  timeout: 3600.0 -> 7200.0   (now)",
            "changed web",
            '  environment.NEW: none -> "1"   (by a restart)',
            "supervisor.capacity: "
            '{"memory": null, "cpus": null, "jobs": 10} -> '
            '{"memory": null, "cpus": null, "jobs": 11}',
            'supervisor.cgroup_parent: "None" -> "/elsewhere"   '
            "(not changed: takes another start of the instance)",
        ]
        after = running.wait_started("comes", "web")
        assert after["web"] != before["web"]
        assert memory(before["grows"]) == 96 * MIB
        assert Path(f"/proc/{before['stays']}").exists()
        until_gone(client, "goes")
        batch.write(changed, top="capacity.jobs = 11")
        assert ask("reload").stdout == "nothing has changed\n"
        ask("stop")
        result = running.finish()
    assert result["goes"]["detail"] == f"it is no longer in {batch.path}"
    assert [r["job"] for r in result.runs if r["reason"] == "stopped"].count("stays") == 1


def until_gone(client: Client, job: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while job in [one["name"] for one in client.get("jobs")["jobs"]]:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "text", ["", "[jobs.one\n", '[jobs.one]\ncommand = "x"\nlimits.memory = "lots"\n[job.two]\n'],
    ids=["empty", "no TOML", "wrong"],
)  # fmt: skip
def test_a_wrong_file_changes_nothing(batch: Batch, ask: Ask, text: str) -> None:
    with batch.start(ONE) as running:
        pid = running.wait_started("one")["one"]
        batch.path.write_text(batch.where.table + f'name = "{batch.name}"\n' + text)
        done = ask("reload")
        assert (done.status, done.stdout) == (2, "")
        assert str(batch.path) in done.stderr and "nothing was changed" in done.stderr
        running.signal(signal.SIGHUP)
        running.wait_for(r"did not take the configuration, and changed nothing: .*")
        assert Path(f"/proc/{pid}").exists()
        batch.path.unlink()
        assert "no such file" in ask("reload").stderr
    assert len(batch.entries("reload_failed")) == 3


def test_a_file_that_is_being_written_is_not_taken(batch: Batch, ask: Ask) -> None:
    """Half of it is right TOML, with a job missing."""
    with batch.start(ONE + '[jobs.two]\ncommand = "sleep 1000"\n') as running:
        pids = running.wait_started("one", "two")
        whole = batch.path.read_text()
        with batch.path.open("w") as file:
            file.write(whole[: whole.index("[jobs.two]")])
            file.flush()
            done = ask("reload")
            assert done.status == 2, done
            assert "somebody is writing it" in done.stderr
            file.write(whole[whole.index("[jobs.two]") :])
        assert ask("reload").stdout == "nothing has changed\n"
        assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_a_hangup_reloads(batch: Batch) -> None:
    with batch.start(ONE) as running:
        running.wait_started("one")
        batch.write(ONE + '[jobs.two]\ncommand = "sleep 1000"\n')
        running.signal(signal.SIGHUP)
        running.wait_started("two")
        running.signal(signal.SIGHUP)
        running.wait_for("reread the configuration: nothing has changed")


POLICY = """
from attrs import frozen
from supervisor.model import Notify
from supervisor.policy.hookspec import hookimpl

@frozen
class Arguments:
    word: str = "nothing"

class Policy:
    def __init__(self, arguments):
        self.word = arguments.word

    @hookimpl
    def on_start(self, job, event):
        return Notify(self.word)
"""


def test_policies_get_their_new_arguments(batch: Batch, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "says.py"
    path.write_text(POLICY)

    def write(word: str) -> None:
        batch.write(f'[policies.says]\nword = "{word}"\n' + ONE, top=f'plugins = ["{path}"]')

    with batch.start(f'[policies.says]\nword = "first"\n{ONE}', top=f'plugins = ["{path}"]') as run:
        run.wait_for("says: first")
        write("second")
        assert ask("reload").stdout == "policies are others now\n"
        ask("restart", "one")
        run.wait_for("says: second")
        batch.write(f'[policies.says]\nwodr = "x"\n{ONE}', top=f'plugins = ["{path}"]')
        assert ask("reload").status == 2
        ask("restart", "one")
        run.wait_for("says: second")


def test_whoever_goes_away_leaves_nothing_half(batch: Batch, ask: Ask, tmp_path: Path) -> None:
    """The policy hangs while it is loaded, and the client is killed."""
    path, release = tmp_path / "says.py", tmp_path / "release"
    path.write_text(POLICY)
    with batch.start(ONE, top=f'plugins = ["{path}"]') as running:
        running.wait_started("one")
        hangs = (
            f"import os, time\nwhile not os.path.exists({str(release)!r}):\n    time.sleep(0.01)\n"
        )
        path.write_text(hangs + POLICY)
        variables = {"SUPERVISE_SOCKET": str(socket_of(batch))}
        with batch.supervise.start("reload", environment=variables) as client:
            until_logged(batch, "reloading")
            client.kill()
        until_logged(batch, "reload_failed")
        release.touch()
        assert ask("reload").stdout == "policies are others now\n"


def until_logged(batch: Batch, event: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not batch.entries(event):
        assert time.monotonic() < deadline


def test_a_waiting_job_waits_for_what_it_is_told_last(batch: Batch, ask: Ask) -> None:
    jobs = ONE + '[jobs.two]\ncommand = "true"\nafter = ["one"]\n'
    with batch.start(jobs) as running:
        running.wait_started("one")
        batch.write(jobs.replace('after = ["one"]', ""))
        assert ask("reload").status == 0
        running.wait_for(r" two ended: succeeded")


def answers(client: Client, *calls: tuple[str, tuple[str, ...], dict[str, Any]]) -> list[int]:
    """The status of each; anything but an answer fails."""
    found = []
    for method, path, body in calls:
        try:
            client.ask(method, *path, body=body)
            found.append(200)
        except Refused as refused:
            found.append(refused.status)
    return found


def test_a_job_may_end_in_the_very_moment(batch: Batch, client: Client) -> None:
    job = (
        '[jobs.short]\ncommand = "true"\n'
        'restart = { when = "always", attempts = "max", backoff = 0, max_backoff = 0 }\n'
    )
    with batch.start(job) as running:
        running.wait_started("short")
        seen = []
        for number in range(40):
            one = ("jobs", "short")
            seen += answers(
                client,
                ("PATCH", (*one, "limits"), {"limits": {"pids": 10 + number, "memory": "64M"}}),
                ("POST", (*one, "pause"), {}),
                ("POST", (*one, "resume"), {}),
                ("POST", (*one, "restart"), {}),
            )
        assert set(seen) <= {200, 409}, seen
        assert client.get("jobs", "short")["limits"]["pids"] is not None
        running.signal(signal.SIGINT)
        result = running.finish()
    assert result.status == 130
    assert not [e for e in batch.entries("warning") if "bug" in e["text"]]


def test_reloads_while_jobs_come_and_go(batch: Batch, client: Client) -> None:
    """Two at a time, a hundred in all, each with another file."""
    with batch.start(ONE, top=STAY) as running:
        pid = running.wait_started("one")["one"]

        def reload(number: int) -> int:
            lines = "".join(f'[jobs.j{n}]\ncommand = "true"\n' for n in range(number % 4))
            new = batch.path.with_name(f"{batch.path.name}.{number}")
            text = batch.path.read_text()
            new.write_text(text[: text.index(ONE) + len(ONE)] + lines)
            new.rename(batch.path)
            return answers(client, ("POST", ("reload",), {}))[0]

        with ThreadPoolExecutor(2) as pool:
            seen = list(pool.map(reload, range(100)))
        assert set(seen) <= {200, 400}, seen  # 400: replaced by the other one while it was read
        assert seen.count(200) >= 10
        assert Path(f"/proc/{pid}").exists()
        running.signal(signal.SIGTERM)
        result = running.finish()
    assert result.status == 0
    assert set(result.reasons.values()) <= {"succeeded", "stopped", "skipped"}


def switches(pid: int) -> int:
    """How often the process has gone to sleep (proc_pid_status(5)), threads left out."""
    text = proc.read_file(f"/proc/{pid}/status")
    return int(text.split("voluntary_ctxt_switches:")[1].split()[0])


def test_an_instance_that_stays_sleeps(batch: Batch, client: Client) -> None:
    with batch.start("", top=STAY) as running:
        until_there(batch)
        assert client.post("jobs", body={"name": "j", "job": {"command": "true"}, "wait": True})
        deadline, before = time.monotonic() + PATIENCE, -1
        while (now := switches(running.process.pid)) != before:  # the last of it settles
            assert time.monotonic() < deadline, "it wakes at least every two seconds"
            before = now
            subprocess.run(["sleep", "2"], check=True)
        running.signal(signal.SIGTERM)
        assert running.finish().status == 0


HOLDING = """
import os, time
from supervisor.policy.hookspec import hookimpl

@hookimpl
def on_memory_limit(job, event):
    while event.held and not os.path.exists({release!r}):
        time.sleep(0.01)
"""


def test_a_job_held_at_its_limit_is_paused_raised_and_goes_on(
    batch: Batch, client: Client, ask: Ask, tmp_path: Path
) -> None:
    """It is held while its policy thinks, which then has nothing to say."""
    policy, release = tmp_path / "holding.py", tmp_path / "release"
    policy.write_text(HOLDING.format(release=str(release)))
    eater = EATER.replace("256M", "24M").replace("time.sleep(1000)", "print(len(b))")
    with batch.start(eater, top=f'plugins = ["{policy}"]') as running:
        running.wait_for("reached its memory limit of 24.0M, held")
        refused = ask("exec", "eater", "--", "true")
        assert refused.status == 125 and "eater is held, not running" in refused.stderr
        assert "supervise set a higher memory limit first" in refused.stderr
        client.post("jobs", "eater", "pause", body={})
        assert client.get("jobs", "eater")["status"]["state"] == "frozen"
        client.post("jobs", "eater", "resume", body={})
        assert client.get("jobs", "eater")["status"]["state"] == "held"
        client.post("jobs", "eater", "pause", body={})
        client.ask("PATCH", "jobs", "eater", "limits", body={"limits": {"memory": "256M"}})
        assert client.get("jobs", "eater")["status"]["state"] == "frozen"
        client.post("jobs", "eater", "resume", body={})
        release.touch()
        result = running.finish()
    assert result["eater"]["reason"] == "succeeded"
    assert [one["value"] for one in result["eater"]["memory"]["limit_history"]] == [
        24 * MIB,
        256 * MIB,
    ]


def test_of_a_terminal_that_has_hung_up_it_means_the_end(batch: Batch) -> None:
    """kill -HUP rereads the file; a closed terminal ends the instance, as it did before."""
    batch.write(ONE)
    pid, master = pty.fork()
    if pid == 0:
        os.environ.update(batch.where.environment, PYTHONPATH=str(ROOT))
        os.execv(sys.executable, [sys.executable, "-m", "supervisor", str(batch.path), "--plain"])
    text = ""
    while " one started" not in text:
        text += os.read(master, 4096).decode()
    os.kill(pid, signal.SIGHUP)
    while "nothing has changed" not in text:
        text += os.read(master, 4096).decode()
    os.close(master)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert batch.entries("supervisor_stopped")[0]["interrupted"] == "SIGHUP"
    batch.assert_clean()


def test_an_instance_may_end_without_ever_having_had_a_job(batch: Batch) -> None:
    with batch.start("", top=STAY) as running:
        until_there(batch)
        running.signal(signal.SIGTERM)
        assert running.finish().status == 0


def test_a_job_in_an_image_is_submitted_where_there_was_none(
    batch: Batch, ask: Ask, busybox: Path, tmp_path: Path
) -> None:
    base = layer(
        *(folder(name) for name in ("bin", "dev", "etc", "proc", "run", "sys", "tmp")),
        file("bin/sh", busybox.read_bytes(), 0o755),
    )
    built = Built([base], {"Cmd": ["sh", "-c", "echo in it"], "Env": ["PATH=/bin"]})
    with batch.start(ONE) as running:
        running.wait_started("one")
        root = f"oci:{built.layout(tmp_path / 'layout', '1')}:1"
        done = ask("submit", "--wait", "--json", "--name", "boxed", "--root", root)
        assert done.status == 0, done
        assert batch.output(json.loads(done.stdout)) == "in it\n"
